"""From a checkpoint to a file for another runtime that is known to give the same features."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from amg_plugin import compat
from amg_plugin.data.checks.folders import check_dataset_folder, known_datasets
from amg_plugin.deploy import plain, writers
from amg_plugin.deploy.clients import CLIENTS, Client
from amg_plugin.deploy.exported_file import ExportInfo, first_line, open_exported
from amg_plugin.deploy.images import as_image, images_below, prepare, spread
from amg_plugin.deploy.networks import CheckpointFile, FeatureGraph, deployed
from amg_plugin.deploy.parity import compare, generated_images
from amg_plugin.deploy.probe import crashes
from amg_plugin.errors import CheckpointError, DataError, InputError, RunError
from amg_plugin.registries.formats import FORMATS, ExportFormat, file_size
from amg_plugin.registries.imports import imports_told
from amg_plugin.utils.environment import environment, versions
from amg_plugin.utils.files import sha256
from amg_plugin.utils.imports import need
from amg_plugin.utils.preprocessing import INPUTS

#: Images of the comparison: generated ones, and the most of the user's.
GENERATED, REAL = 8, 32
#: Most images to calibrate on, unless said otherwise.
CALIBRATION = 128
_CALIBRATION_BATCH = 8


@dataclass(frozen=True)
class ExportOptions:
    """What to write.

    Attributes:
        file_format: A name of :data:`~amg_plugin.registries.formats.FORMATS`.
        output: The file.
        opset: ONNX opset; None for :data:`~amg_plugin.deploy.writers.DEFAULT_OPSET`.
        fp16: Half precision.
        int8: Calibration data (a folder of images, or the name of a data set), or None.
        dynamic_batch: Any number of images per call instead of one.
        input: What the caller does to images, one of :data:`~amg_plugin.utils.preprocessing.INPUTS`; the graph does the
            rest. None for ``network``, or for what ``client`` does.
        client: The program that will call the file, one of :data:`~amg_plugin.deploy.clients.CLIENTS`, or None.
        l2_normalize: Features of length 1.
        images: Folder of images for the comparison; None for generated ones, or for some of the calibration data.
        root: Data root, if ``int8`` names a data set.
        calibration_images: Most images to calibrate on; None for :data:`CALIBRATION`.
        plain: Fixed shapes and few kinds of operators, for compilers of NPUs; see :mod:`amg_plugin.deploy.plain`.
    """

    file_format: str
    output: Path
    opset: int | None = None
    fp16: bool = False
    int8: str | None = None
    dynamic_batch: bool = False
    input: str | None = None
    client: str | None = None
    l2_normalize: bool = False
    images: Path | None = None
    root: str | None = None
    calibration_images: int | None = None
    plain: bool = False

    @property
    def row(self) -> ExportFormat:
        """The format."""
        return FORMATS.row(self.file_format)

    @property
    def precision(self) -> str:
        """``fp32``, ``fp16`` or ``int8``."""
        return "fp16" if self.fp16 else "fp32" if self.int8 is None else "int8"

    @property
    def packages(self) -> tuple[str, ...]:
        """What has to be installed."""
        return (*self.row.packages, *(self.row.quantiser_packages if self.int8 is not None else ()))

    @property
    def beside(self) -> list[Path]:
        """What is written next to the file; the description comes first."""
        description = self.output.with_name(f"{self.output.name}.json")
        read = [self.caller.beside(self.output)] if self.caller else []
        return [description, *read, *self.row.files(self.output)[:-1]]

    @property
    def caller(self) -> Client | None:
        """The program that ``client`` names."""
        return CLIENTS.get(self.client) if self.client is not None else None

    def check(self) -> None:
        """Check everything that can be known without the checkpoint.

        Raises:
            InputError: If a value, a combination or the output's name is impossible.
            MissingDependencyError: If a package is missing.
        """
        row, quantised, limit = self.row, self.int8 is not None, self.calibration_images
        given_root = self.root is not None and not quantised
        able = [other.name for other in FORMATS.rows.values() if other.quantiser]
        folders = [str(path) for path in self.beside if path.is_dir()]
        faults = {
            f"--input '{self.input}' is unknown; allowed are {', '.join(INPUTS)}.": (
                self.input is not None and self.input not in INPUTS
            ),
            f"--for '{self.client}' is unknown; allowed are {', '.join(CLIENTS)}.": (
                self.client is not None and self.caller is None
            ),
            f"--output '{self.output}' must end in {' or '.join(row.suffixes)} for {row.name}.": (
                self.output.suffix.lower() not in row.suffixes
            ),
            f"--output '{self.output}' is a folder; give the name of a file.": self.output.is_dir(),
            f"'{''.join(folders[:1])}', which is written next to --output, is a folder; choose another name.": folders,
            f"--opset is for onnx only, not for {row.name}.": self.opset is not None and "opset" not in row.options,
            "--int8 needs calibration data: a folder of images, or the name of a data set.": self.int8 == "",
            "--fp16 and --int8 cannot be combined; give one of them.": self.fp16 and quantised,
            f"--fp16 is not for {row.name}; leave it out.": self.fp16 and not row.half,
            f"--int8 is for {', '.join(able)}, not for {row.name}.": quantised and not row.quantiser,
            f"--dynamic-batch is not for {row.name}: {row.batch_reason}.": self.dynamic_batch and row.batch == "one",
            "--root is for --int8 only, which may name a data set below it; leave it out.": given_root,
            "--calibration-images is for --int8 only; leave it out.": limit is not None and not quantised,
            f"--calibration-images is {limit}, but must be at least 1.": limit is not None and limit < 1,
            **plain.faults(self),
        }
        for sentence, applies in faults.items():
            if applies:
                raise InputError(sentence)
        if self.caller:
            self.caller.check(self.file_format, self.precision, self.output, self.input)
        for package in self.packages:
            need(package, f"Exporting to {row.name}", row.extras[0])
        if row.check is not None:
            row.load("check")(self)


def export(checkpoint: str | Path, options: ExportOptions, say: Callable[[str], None] = lambda text: None) -> dict:
    """Write a file, run it in its runtime and keep it if it agrees with PyTorch; ``<name>.json`` holds the outcome.

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
    if path.exists() and any(file.exists() and file.samefile(path) for file in (output, *options.beside)):
        raise InputError(f"--output '{output}' would overwrite the checkpoint '{path}'; choose another file.")
    reference, caller = CheckpointFile(path), options.caller
    if caller and reference.info.label_inputs:
        raise InputError(f"'{path}' takes {reference.info.label_inputs[0]} with images, which {caller.program} lacks.")
    if options.plain and reference.info.label_inputs:
        raise InputError(f"'{path}' takes {reference.info.label_inputs[0]} with images, which --plain has no room for.")
    calibration, pictures, kind = _images(options, reference.info)
    info = replace(
        reference.info,
        file_format=options.file_format,
        precision=options.precision,
        batch=None if caller or options.row.batch == "any" or options.dynamic_batch else 1,
        input=options.input or (caller.input if caller else "network"),
        l2_normalize=options.l2_normalize,
        versions=versions("torch", "timm", *options.packages),
    )
    with _folder_beside(output) as work:
        draft = work / output.name
        job = _Job(options, reference, calibration, say)
        info = _write_what_runs(job, info, draft)
        outcome = _outcome(job, info, draft, (pictures, kind))
        (work / options.beside[0].name).write_text(json.dumps(outcome, indent=1) + "\n", encoding="utf-8")
        if caller:
            (work / caller.beside(output).name).write_text(caller.text(info, output.name), encoding="utf-8")
        # The description before what it describes, weights before the graph that needs them.
        for file in (*options.beside, output):
            (work / file.name).replace(file)
    return outcome


@contextlib.contextmanager
def _folder_beside(output: Path) -> Iterator[Path]:
    """A temporary folder on the same disk; if nothing comes out of it, folders made for ``output`` go as well."""
    made = [folder for folder in output.parents if not folder.exists()]
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=".amg-export-", dir=output.parent))
    except OSError as error:
        raise InputError(f"--output '{output}' cannot be written ({error.strerror}); choose another place.") from error
    try:
        yield work
    except OSError as error:
        raise RunError(f"'{output}' cannot be written: {error}.") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
        if not output.exists():
            with contextlib.suppress(OSError):  # somebody else put something there
                for folder in made:
                    folder.rmdir()


def _images(options: ExportOptions, info: ExportInfo) -> tuple[list[Path], list[Any], str]:
    """Calibration files, images of the comparison and what kind they are."""
    calibration: list[Path] = []
    pictures: list[Any] = [] if options.images is None else spread(images_below(options.images), REAL)
    kind = "real"
    if options.int8 is not None:
        files = calibration_files(options.int8, options.root)
        calibration = spread(files, options.calibration_images or CALIBRATION)
        for file in tqdm(calibration, desc="checking calibration images", leave=False, disable=None):
            as_image(file)
        if not pictures:
            held_out = sorted(set(files) - set(calibration))
            pictures, kind = spread(held_out or calibration, REAL), "real" if held_out else "calibration"
    if not pictures:
        return calibration, generated_images(GENERATED, *info.image_size), "generated"
    return calibration, [as_image(picture) for picture in pictures], kind


@dataclass(frozen=True)
class _Job:
    """What an export has in hand once everything is checked."""

    options: ExportOptions
    reference: CheckpointFile
    calibration: list[Path]
    say: Callable[[str], None]


def _write(job: _Job, info: ExportInfo, draft: Path) -> None:
    row = job.options.row
    half = info.precision == "fp16" and row.half == "graph"
    graph = FeatureGraph(deployed(job.reference.network, half=half), info).eval()
    given = {name: getattr(job.options, name) for name in row.options}
    if info.precision != "int8":
        row.load("writer")(graph, draft, info, **given)
        if job.options.plain:
            plain.check_plain(draft)
    else:
        job.say(f"calibrating on {len(job.calibration)} images")
        row.load("quantiser")(graph, draft, info, _calibration_batches(job.calibration, info), **given)


def _write_what_runs(job: _Job, info: ExportInfo, draft: Path) -> ExportInfo:
    """Write a file that does not crash its runtime; gives its description.

    OpenVINO's CPU plugin makes kernels out of shapes that are fixed, and those of some small pruned networks crash;
    then the file is written again for any number of images.
    """
    options = job.options
    job.say(f"writing {info.file_format}, {info.precision}")
    _write(job, info, draft)
    if not (options.row.fragile and crashes(draft)):
        return info
    if info.batch is not None and options.row.batch == "choice":
        job.say(
            f"The runtime of {info.file_format} crashes on this network with one image per call: writing a file for "
            "any number of images"
        )
        info = replace(info, batch=None)
        _write(job, info, draft)
        if not crashes(draft):
            return info
    raise RunError(
        f"The runtime of {info.file_format} crashes when it runs the {info.precision} file; "
        f"'{options.output}' was not written."
    )


def _outcome(job: _Job, info: ExportInfo, draft: Path, images: tuple[list[Any], str]) -> dict[str, Any]:
    """Compare a file with PyTorch on ``images`` of a kind; gives what there is to say about it, or a RunError."""
    options = job.options
    try:
        with imports_told():
            exported = open_exported(draft, trusted=True)
    except CheckpointError as error:  # the exporter knows operators that the runtime lacks
        raise RunError(f"What was written for {info.file_format} does not run there: {error}") from error
    comparison = compare(exported, job.reference, *images)
    job.say(comparison.sentence())
    if not comparison.within:
        raise RunError(
            f"The features of the {info.precision} {info.file_format} file differ from PyTorch's by "
            f"{comparison.relative_difference:.1e} of the largest feature, cosine {comparison.cosine:.4f} "
            f"(limit: {comparison.limit}); '{options.output}' was not written."
        )
    return {
        "file": draft.name,
        "for": options.caller.program if options.caller else None,
        "bytes": file_size(draft),
        "sha256": sha256(draft),
        "opset": (options.opset or writers.DEFAULT_OPSET) if "opset" in options.row.options else None,
        "plain": options.plain,
        "calibration_images": len(job.calibration),
        "comparison": comparison.to_dict(),
        "runtime": exported.runtime,
        **environment(use_gpu=False),
        "info": info.to_dict(),
    }


def calibration_files(data: str, root: str | None) -> list[Path]:
    """Images to calibrate on: those of a folder, or the training images of a data set below ``root``."""
    known = known_datasets(data) if compat.is_installed() else {}
    is_folder, is_dataset = Path(data).is_dir(), data in known
    if root is None and is_folder:
        if is_dataset:  # such a folder holds test images as well
            raise DataError(
                f"--int8 '{data}' is a data set and a folder here: add --root for the data set's training images, or "
                f"write ./{data} for the folder."
            )
        return images_below(data)
    if not is_dataset:
        raise DataError(
            f"--int8 '{data}' is a folder, but --root is for the name of a data set; leave --root out."
            if is_folder
            else f"--int8 '{data}' is neither a folder of images nor a data set known to torchreid."
        )
    if root is None:
        raise DataError(f"--int8 '{data}' names a data set, so --root must name the folder that holds it.")
    check_dataset_folder(data, root)
    try:
        dataset = known[data](root=root, mode="train", verbose=False)
    except Exception as error:  # a stock class raises whatever its parser meets
        raise DataError(f"The data set {data} below {root} cannot be read: {first_line(error)}.") from error
    files = [Path(item[0]) for item in dataset.train]
    if not files:
        raise DataError(f"The data set {data} below {root} has no training images.")
    return files


def _calibration_batches(files: Sequence[Path], info: ExportInfo) -> list[dict[str, np.ndarray]]:
    """Network inputs by name, prepared for a file in batches; labels take every value in turn."""
    step, batches = info.batch or _CALIBRATION_BATCH, []
    for start in tqdm(range(0, len(files), step), desc="reading calibration images", leave=False, disable=None):
        part = list(files[start : start + step])
        part += [part[-1]] * ((info.batch or 1) - len(part))
        images = prepare(part, info.preprocessing, info.input)
        batches.append({"images": images, **info.labels_in_turn(start, len(part))})
    return batches
