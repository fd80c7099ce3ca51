"""``amg-reid export``: write a checkpoint for another runtime and prove that it gives the same features."""

from __future__ import annotations

import argparse
from pathlib import Path

from amg_plugin.registries.formats import FORMATS

HELP = "write a checkpoint for another runtime: ONNX Runtime, OpenVINO, TorchScript, torch.export"
DESCRIPTION = """Write a checkpoint, pruned or not, as a file for another runtime.

The file is then run in that runtime and compared with PyTorch. If the features differ by more than 1e-4 of the largest
feature (fp16: 1e-2; int8: cosine below 0.99), nothing is kept and the command fails. FILE.json holds the outcome. The
file also says how images are prepared: amg_plugin.FeatureExtractor(FILE) needs nothing else.

example: amg-reid export log/vit_small_pruned/best.pth --format onnx --output model.onnx --dynamic-batch
         amg-reid export log/vit_small_pruned/best.pth --format onnx --output model_int8.onnx \\
                  --int8 market1501 --root reid-data
         amg-reid test --weights model_int8.onnx -t market1501 --root reid-data"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("checkpoint", metavar="CKPT", help="a checkpoint written by amg-reid")
    parser.add_argument(
        "--format",
        required=True,
        metavar="FORMAT",
        help=f"one of {', '.join(row.words for row in FORMATS.rows.values())}",
    )
    parser.add_argument("--output", required=True, metavar="FILE", type=Path, help="the file to write")
    parser.add_argument("--opset", type=int, metavar="N", help="ONNX opset, 18 (the default) or above")
    parser.add_argument(
        "--fp16", action="store_true", help="weights and computation in half precision; inputs and outputs stay float32"
    )
    parser.add_argument(
        "--int8",
        nargs="?",
        const="",
        metavar="CALIBRATION_DATA",
        help="quantise to 8 bits, calibrated on a folder of images or on the training images of a data set",
    )
    parser.add_argument("--root", metavar="FOLDER", help="folder that holds the data sets, if --int8 names one")
    parser.add_argument(
        "--calibration-images", type=int, metavar="N", help="largest number of images to calibrate on (128)"
    )
    parser.add_argument(
        "--dynamic-batch", action="store_true", help="take any number of images per call instead of one"
    )
    parser.add_argument(
        "--normalize-input",
        action="store_true",
        help="the file takes RGB from 0 to 1 and normalises it by itself",
    )
    parser.add_argument("--l2-normalize", action="store_true", help="the file gives features of length 1")
    parser.add_argument(
        "--images", type=Path, metavar="FOLDER", help="compare on these images instead of generated ones"
    )


def run(args: argparse.Namespace) -> int:
    """Export; 0 on success."""
    from amg_plugin.deploy.export import ExportOptions, export

    given = {name: getattr(args, name) for name in ExportOptions.__dataclass_fields__ if name != "file_format"}
    options = ExportOptions(args.format, **given)
    outcome = export(args.checkpoint, options, say=print)
    print(f"{args.output}: {outcome['bytes'] / 1e6:.1f} MB, run by {outcome['runtime']}")
    return 0
