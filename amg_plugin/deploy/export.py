"""From a checkpoint to a file for another runtime that is known to give the same features."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from tqdm import tqdm

from amg_plugin.deploy import int8, writers
from amg_plugin.deploy.graph import FeatureGraph, deployed
from amg_plugin.deploy.images import as_image, images_below, spread
from amg_plugin.deploy.info import FORMATS, ExportInfo, file_size
from amg_plugin.deploy.parity import Comparison, compare, generated_images
from amg_plugin.deploy.probe import crashes
from amg_plugin.deploy.reference import CheckpointFile, open_checkpoint
from amg_plugin.deploy.runtimes import PACKAGES, need, open_exported
from amg_plugin.errors import InputError, RunError
from amg_plugin.utils.environment import environment
from amg_plugin.utils.files import sha256
from amg_plugin.version import __version__

#: What an output file has to be called.
SUFFIXES = {
    "onnx": (".onnx",),
    "torchscript": (".pt", ".ts", ".torchscript"),
    "exported_program": (".pt2",),
    "openvino": (".xml",),
}
INT8_FORMATS = ("onnx", "openvino")
#: Images of the comparison: generated ones, and the most of the user's.
GENERATED, REAL = 8, 32
#: Most images to calibrate on, unless said otherwise.
CALIBRATION = 128


@dataclass(frozen=True)
class ExportOptions:
    """What to write.

    Attributes:
        file_format: One of :data:`~amg_plugin.deploy.info.FORMATS`.
        output: The file.
        opset: ONNX opset; None for :data:`~amg_plugin.deploy.writers.DEFAULT_OPSET`.
        fp16: Half precision.
        int8: Calibration data (a folder of images, or the name of a data set), or None.
        dynamic_batch: Any number of images per call instead of one.
        normalize_input: The graph normalises RGB from 0 to 1.
        l2_normalize: Features of length 1.
        images: Folder of images for the comparison; None for generated ones, or for some of the calibration data.
        root: Data root, if ``int8`` names a data set.
        calibration_images: Most images to calibrate on; None for :data:`CALIBRATION`.
    """

    file_format: str
    output: Path
    opset: int | None = None
    fp16: bool = False
    int8: str | None = None
    dynamic_batch: bool = False
    normalize_input: bool = False
    l2_normalize: bool = False
    images: Path | None = None
    root: str | None = None
    calibration_images: int | None = None

    @property
    def precision(self) -> str:
        """``fp32``, ``fp16`` or ``int8``."""
        return "fp16" if self.fp16 else "fp32" if self.int8 is None else "int8"

    @property
    def onnx_opset(self) -> int:
        """The opset of an ONNX file."""
        return writers.DEFAULT_OPSET if self.opset is None else self.opset

    @property
    def beside(self) -> list[Path]:
        """What is written beside the file."""
        weights = [self.output.with_suffix(".bin")] if self.file_format == "openvino" else []
        return [self.output.with_name(f"{self.output.name}.json"), *weights]

    def check(self) -> None:
        """Check everything that can be known without the checkpoint.

        Raises:
            InputError: If a value, a combination or the output's name is impossible.
            MissingDependencyError: If the runtime is missing.
        """
        if self.file_format not in FORMATS:
            raise InputError(f"--format '{self.file_format}' is unknown; allowed are {', '.join(FORMATS)}.")
        suffixes = SUFFIXES[self.file_format]
        if self.output.suffix.lower() not in suffixes:
            raise InputError(f"--output '{self.output}' must end in {' or '.join(suffixes)} for {self.file_format}.")
        if self.output.is_dir():
            raise InputError(f"--output '{self.output}' is a folder; give the name of a file.")
        for path in self.beside:
            if path.is_dir():
                raise InputError(f"'{path}', which is written beside --output, is a folder; choose another name.")
        if self.opset is not None and self.file_format != "onnx":
            raise InputError(f"--opset is for onnx only, not for {self.file_format}.")
        if self.int8 is not None:
            if not self.int8:
                raise InputError("--int8 needs calibration data: a folder of images, or the name of a data set.")
            if self.fp16:
                raise InputError("--fp16 and --int8 exclude each other; give one of them.")
            if self.file_format not in INT8_FORMATS:
                raise InputError(f"--int8 is for {' and '.join(INT8_FORMATS)}, not for {self.file_format}.")
        elif self.root is not None:
            raise InputError("--root is for --int8 only, which may name a data set below it; leave it out.")
        elif self.calibration_images is not None:
            raise InputError("--calibration-images is for --int8 only; leave it out.")
        if self.calibration_images is not None and self.calibration_images < 1:
            raise InputError(f"--calibration-images is {self.calibration_images}, but must be at least 1.")
        for package in PACKAGES[self.file_format]:
            need(package, f"Exporting to {self.file_format}")
        if self.file_format == "onnx":
            writers.check_opset(self.onnx_opset)
        elif self.int8 is not None:
            need("nncf", "--int8 for openvino")


def export(checkpoint: str | Path, options: ExportOptions, say: Callable[[str], None] = lambda text: None) -> dict:
    """Write a file, run it in its runtime and compare it with PyTorch.

    The file appears under its name only if it passed; beside it lies ``<name>.json`` with the outcome.

    Args:
        checkpoint: A checkpoint of ``amg-reid``.
        options: What to write.
        say: Gets one line per step.

    Returns:
        What is in the ``.json`` file.

    Raises:
        InputError: If something given is impossible, missing or unreadable.
        RunError: If writing fails, or the features differ by more than the limit.
    """
    options.check()
    output, path = options.output, Path(checkpoint)
    for written in (output, *options.beside):
        if written.exists() and path.exists() and written.samefile(path):
            raise InputError(f"--output '{output}' would overwrite the checkpoint '{path}'; choose another file.")
    reference = open_checkpoint(path)
    calibration, pictures, kind = _images(options, reference.info)
    info = replace(
        reference.info,
        file_format=options.file_format,
        precision=options.precision,
        batch=None if options.dynamic_batch or options.file_format == "torchscript" else 1,
        normalize_input=options.normalize_input,
        l2_normalize=options.l2_normalize,
        versions=_versions(options),
    )
    folders = [folder for folder in output.parents if not folder.exists()]
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=".amg-export-", dir=output.parent))
    except OSError as error:
        raise InputError(f"--output '{output}' cannot be written ({error.strerror}); choose another place.") from error
    try:
        draft = work / output.name
        say(f"writing {options.file_format}, {info.precision}")
        _write(reference, info, draft, options, calibration, say)
        if info.file_format == "openvino" and crashes(draft):
            info = _with_open_batch(reference, info, draft, options, calibration, say)
        exported = open_exported(draft)
        comparison = compare(exported, reference, pictures, kind)
        say(comparison.sentence())
        if not comparison.within:
            raise RunError(
                f"The features of the {info.precision} {info.file_format} file differ from PyTorch's by "
                f"{comparison.relative_difference:.1e} of the largest feature, cosine {comparison.cosine:.4f} "
                f"(limit: {comparison.limit}); '{output}' was not written."
            )
        outcome = _outcome(draft, output, info, comparison, exported.runtime, options, len(calibration))
        del exported  # lets go of the file, which Windows would not rename
        side = work / f"{output.name}.json"
        side.write_text(json.dumps(outcome, indent=1) + "\n", encoding="utf-8")
        # The description before what it describes, weights before the graph that needs them.
        for name in (side.name, draft.with_suffix(".bin").name, draft.name):
            if (work / name).exists():
                (work / name).replace(output.with_name(name))
    except OSError as error:
        raise RunError(f"'{output}' cannot be written: {error}.") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
        if not output.exists():
            with contextlib.suppress(OSError):  # somebody else put something there
                for folder in folders:
                    folder.rmdir()
    return outcome


def _images(options: ExportOptions, info: ExportInfo) -> tuple[list[Path], list[Any], str]:
    """Calibration files, images of the comparison and what kind they are."""
    calibration: list[Path] = []
    pictures: list[Any] = []
    if options.images is not None:
        pictures = spread(images_below(options.images), REAL)
    if options.int8 is not None:
        files = int8.calibration_files(options.int8, options.root)
        calibration = spread(files, options.calibration_images or CALIBRATION)
        for file in tqdm(calibration, desc="checking calibration images", leave=False, disable=None):
            as_image(file)
        if not pictures:
            held_out = sorted(set(files) - set(calibration))
            kind = "real" if held_out else "calibration"
            return calibration, [as_image(picture) for picture in spread(held_out or calibration, REAL)], kind
    if pictures:
        return calibration, [as_image(picture) for picture in pictures], "real"
    return calibration, generated_images(GENERATED, *info.image_size), "generated"


def _write(
    reference: CheckpointFile,
    info: ExportInfo,
    draft: Path,
    options: ExportOptions,
    calibration: list[Path],
    say: Callable[[str], None],
) -> None:
    half = options.fp16 and options.file_format != "openvino"  # which halves its weights itself, when it saves
    graph = FeatureGraph(
        deployed(reference.network, half=half),
        info.label_inputs,
        info.preprocessing,
        normalize_input=info.normalize_input,
        l2_normalize=info.l2_normalize,
    ).eval()
    if info.file_format == "onnx":
        plain = draft if options.int8 is None else draft.with_name("float.onnx")
        writers.write_onnx(graph, plain, info, options.onnx_opset)
        if options.int8 is not None:
            say(f"calibrating on {len(calibration)} images")
            int8.quantize_onnx(plain, draft, int8.Calibration(calibration, info), info)
    elif options.int8 is None:
        writers.WRITERS[info.file_format](graph, draft, info)
    else:
        model = writers.openvino_model(graph, info)
        say(f"calibrating on {len(calibration)} images")
        model = int8.quantize_openvino(model, int8.Calibration(calibration, info))
        writers.save_openvino(model, draft, info)


def _with_open_batch(
    reference: CheckpointFile,
    info: ExportInfo,
    draft: Path,
    options: ExportOptions,
    calibration: list[Path],
    say: Callable[[str], None],
) -> ExportInfo:
    """Write a file that its runtime crashes on again, for any number of images; gives its new description.

    OpenVINO's CPU plugin makes kernels out of shapes that are fixed, and those of some small pruned networks crash.

    Raises:
        RunError: If the runtime crashes on that, too.
    """
    if info.batch is not None:
        say("OpenVINO crashes on this network with one image per call: writing a file for any number of images")
        info = replace(info, batch=None)
        _write(reference, info, draft, options, calibration, say)
        if not crashes(draft):
            return info
    raise RunError(f"OpenVINO crashes when it runs the {info.precision} file; '{options.output}' was not written.")


def _versions(options: ExportOptions) -> dict[str, str]:
    names = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("openvino",)}.get(options.file_format, ())
    names += ("nncf",) if options.file_format == "openvino" and options.int8 is not None else ()
    found = {"amg_plugin": __version__}
    for name in ("torch", "timm", *names):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed as a package"
    return found


def _outcome(
    draft: Path,
    output: Path,
    info: ExportInfo,
    comparison: Comparison,
    runtime: str,
    options: ExportOptions,
    calibration: int,
) -> dict:
    return {
        "file": output.name,
        "bytes": file_size(draft),
        "sha256": sha256(draft),
        "opset": options.onnx_opset if info.file_format == "onnx" else None,
        "calibration_images": calibration,
        "comparison": comparison.to_dict(),
        "runtime": runtime,
        **environment(use_gpu=False),
        "info": info.to_dict(),
    }
