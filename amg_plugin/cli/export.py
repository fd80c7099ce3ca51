r"""Write a checkpoint for another runtime: ONNX Runtime, OpenVINO, LiteRT, ExecuTorch, TorchScript, torch.export.

The file is then run in that runtime and compared with PyTorch. If the features differ by more than 1e-4 of the largest
feature (fp16: 1e-2; int8: cosine below 0.99), nothing is kept and the command fails. FILE.json holds the outcome. The
file also says how images are prepared: amg_plugin.FeatureExtractor(FILE) needs nothing else.

example: amg-reid export log/vit_small_pruned/best.pth --format onnx --output model.onnx --dynamic-batch
         amg-reid export log/vit_small_pruned/best.pth --format onnx --output model_int8.onnx --int8 market1501 \
                  --root reid-data
         amg-reid test --weights model_int8.onnx -t market1501 --root reid-data

more: docs/export.md
"""

from argparse import SUPPRESS, ArgumentParser, Namespace
from pathlib import Path

from amg_plugin.cli.arguments import CHECKPOINT, adder, argument
from amg_plugin.deploy.clients import CLIENTS
from amg_plugin.errors import InputError
from amg_plugin.registries.formats import FORMATS
from amg_plugin.utils.preprocessing import INPUTS

_INT8 = "quantise to 8 bits, calibrated on a folder of images or on the training images of a data set"
_INPUT = (
    "what the file's caller does to RGB images that are resized: network: normalises them with the network's mean and "
    "std (the default); unit: scales them to 0 to 1; raw255: nothing, they go from 0 to 255; imagenet: normalises them "
    "with ImageNet's mean and std"
)
_FOR = (
    "a file for another program ("
    + ", ".join(f"{name}: {row.program}" for name, row in CLIENTS.items())
    + "): takes any number of images as that program prepares them, and what it reads is written beside the file"
)
_PLAIN = (
    "an ONNX file for the compilers of NPUs (RKNN, Hailo, ncnn): one image, fixed shapes, operators of a short list in "
    "docs/export.md"
)


def add_arguments(parser: ArgumentParser) -> None:
    """Add the command's arguments; the formats are those that are registered by then."""
    formats = f"one of {', '.join(row.words for row in FORMATS.rows.values())}"
    adder(
        CHECKPOINT,
        argument("--format", formats, required=True, metavar="FORMAT"),
        argument("--output", "the file to write", required=True, metavar="FILE", type=Path),
        argument("--opset", "ONNX opset, 18 (the default) or above", type=int, metavar="N"),
        argument("--fp16", "weights and computation in half precision; inputs and outputs stay float32"),
        argument("--int8", _INT8, nargs="?", const="", metavar="CALIBRATION_DATA"),
        argument("--root", "folder that holds the data sets, if --int8 names one", metavar="FOLDER"),
        argument("--calibration-images", "largest number of images to calibrate on (128)", type=int, metavar="N"),
        argument("--plain", _PLAIN),
        argument("--dynamic-batch", "take any number of images per call instead of one"),
        argument("--input", _INPUT, choices=INPUTS),
        argument("--for", _FOR, dest="client", choices=CLIENTS),
        argument("--normalize-input", SUPPRESS, action="store_true"),
        argument("--l2-normalize", "the file gives features of length 1"),
        argument("--images", "compare on these images instead of generated ones", type=Path, metavar="FOLDER"),
    )(parser)


def run(args: Namespace) -> int:
    """Export; 0 on success."""
    from amg_plugin.deploy.export import ExportOptions, export

    if args.normalize_input:
        raise InputError("--normalize-input is gone; say --input unit.")
    given = {name: getattr(args, name) for name in ExportOptions.__dataclass_fields__ if name != "file_format"}
    outcome = export(args.checkpoint, ExportOptions(args.format, **given), say=print)
    print(f"{args.output}: {outcome['bytes'] / 1e6:.1f} MB, run by {outcome['runtime']}")
    return 0
