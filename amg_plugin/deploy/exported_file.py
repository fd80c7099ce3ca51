"""An exported file: what it says about itself, one JSON text inside it, and what all runtimes have in common."""

from __future__ import annotations

import json
import re
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from amg_plugin.deploy.probe import crashes
from amg_plugin.errors import AMGError, CheckpointError, InputError, RunError, shown
from amg_plugin.registries.formats import FORMATS, PRECISIONS, file_format
from amg_plugin.registries.imports import stored_imports
from amg_plugin.utils.files import kind_of, parse_json
from amg_plugin.utils.imports import need
from amg_plugin.utils.preprocessing import INPUTS, Preprocessing, damaged, is_size

FORMAT = "amg_plugin.export"
VERSION = 1
#: Under which name the text is in the file.
KEY = "amg_plugin"
#: Under which name an OpenVINO file (.xml) keeps the SHA-256 of the weights (.bin) that belong to it.
WEIGHTS_KEY = "amg_plugin_weights"
#: Name of the same text among the extra files of TorchScript and ExportedProgram archives.
EXTRA_FILE = "amg_plugin.json"
#: Most images per call of a file that takes a fixed number.
LARGEST_BATCH = 1024

#: Labels of images, and what the description of a network calls the number of their values.
_LABELS = {"camids": "cameras", "viewids": "views"}


@dataclass(frozen=True)
class ExportInfo:
    """Everything a user of the file has to know.

    Attributes:
        file_format: One of :data:`~amg_plugin.registries.formats.FORMATS`.
        precision: One of :data:`~amg_plugin.registries.formats.PRECISIONS`; inputs and outputs are float32 in each.
        batch: Images per call, None for any number.
        inputs: Names in order: ``images`` ``[B, 3, height, width]``, then ``camids`` and ``viewids`` ``[B]`` int64 if
            the network uses them (from 0; negative for unseen ones).
        input: What was done to the images, one of :data:`~amg_plugin.utils.preprocessing.INPUTS`; the graph does the
            rest.
        l2_normalize: Features have length 1.
        feature_dim: D of the features ``[B, D]``.
        preprocessing: How images become inputs.
        spec: The dense network, as in the checkpoint.
        plan: What is pruned, as in the checkpoint.
        source: ``name`` and ``sha256`` of the checkpoint, and the ``metrics`` that it was saved with.
        config: The checkpoint's configuration without its folders.
        versions: Packages that wrote the file.
    """

    file_format: str
    precision: str
    batch: int | None
    inputs: tuple[str, ...]
    input: str
    l2_normalize: bool
    feature_dim: int
    preprocessing: Preprocessing
    spec: dict[str, Any] = field(default_factory=dict)
    plan: dict[str, Any] = field(default_factory=dict)
    source: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        values = {**asdict(self), "inputs": list(self.inputs), "preprocessing": self.preprocessing.to_dict()}
        return {"format": FORMAT, "version": VERSION, **values}

    def to_json(self) -> str:
        """The text that goes into the file."""
        return json.dumps(self.to_dict(), sort_keys=True)

    @classmethod
    def from_json(cls, text: str, path: str | Path) -> ExportInfo:
        """Inverse of :meth:`to_json`; messages name the file ``path``.

        Raises:
            CheckpointError: If it is not a text of ours.
        """
        data = parse_json(text, f"The description in '{path}'", CheckpointError)
        if not isinstance(data, dict) or data.pop("format", None) != FORMAT:
            raise foreign(path)
        if (version := data.pop("version", None)) != VERSION:
            raise CheckpointError(
                f"'{path}' has export version {shown(version)}; this release reads version {VERSION}."
            )
        if isinstance(data.get("normalize_input"), bool):  # how it was said when there were two kinds of input
            data["input"] = "unit" if data.pop("normalize_input") else "network"
        try:
            preprocessing = Preprocessing.from_dict(data["preprocessing"], path)
            info = cls(**{**data, "inputs": tuple(data["inputs"]), "preprocessing": preprocessing})
        except AMGError:
            raise
        except Exception as error:  # values of any type fail anywhere
            raise CheckpointError(f"The description in '{path}' is incomplete or damaged: {error}.") from error
        info._check(path)
        stored_imports(info.config, f"'{path}'")
        return info

    def _check(self, path: str | Path) -> None:
        spec, config = (value if isinstance(value, dict) else {} for value in (self.spec, self.config))
        side = spec.get("side_information") or {}
        objects = {name: getattr(self, name) for name in ("spec", "plan", "source", "config", "versions")}
        objects |= {"spec.side_information": side, "config.data": config.get("data", {})}
        for name, value in objects.items():
            if not isinstance(value, dict):
                raise damaged(path, name, value, "an object")
        for count in _LABELS.values():
            if type(side.get(count, 0)) is not int or not 0 <= side.get(count, 0) <= 1 << 20:
                raise damaged(path, f"spec.side_information.{count}", side[count], "a whole number from 0 to 2**20")
        inputs = ("images", *(name for name, count in _LABELS.items() if side.get(count)))
        checks = {
            "file_format": (
                isinstance(self.file_format, str) and self.file_format in FORMATS,
                f"one of {', '.join(FORMATS)}",
            ),
            "precision": (self.precision in PRECISIONS, f"one of {', '.join(PRECISIONS)}"),
            "batch": (self.batch is None or is_size(self.batch, LARGEST_BATCH), f"null or 1 to {LARGEST_BATCH}"),
            "inputs": (self.inputs == inputs, f"{', '.join(inputs)} for its network"),
            "input": (isinstance(self.input, str) and self.input in INPUTS, f"one of {', '.join(INPUTS)}"),
            "l2_normalize": (isinstance(self.l2_normalize, bool), "true or false"),
            "feature_dim": (is_size(self.feature_dim, 1 << 20), "a whole number from 1 to 2**20"),
        }
        for name, (fine, allowed) in checks.items():
            if not fine:
                raise damaged(path, name, getattr(self, name), allowed)

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.preprocessing.image_size

    @property
    def label_inputs(self) -> tuple[str, ...]:
        """Inputs after the images."""
        return tuple(name for name in self.inputs if name != "images")

    def labels_in_turn(self, start: int, count: int) -> dict[str, np.ndarray]:
        """Labels int64 ``[count]`` per label input that take every value in turn, unseen (-1) included."""
        side = self.spec.get("side_information") or {}
        totals = {name: side.get(_LABELS[name], 0) for name in self.label_inputs}
        return {name: (start + np.arange(count)) % (total + 1) - 1 for name, total in totals.items()}


def foreign(path: str | Path) -> CheckpointError:
    """The error for a file of another program."""
    return CheckpointError(
        f"'{path}' was not written by 'amg-reid export': it does not say how images are prepared for it."
    )


class ExportedFile:
    """An exported file, opened; ``runtime`` is the name and version of what runs it."""

    runtime = ""

    def __init__(self, path: Path, info: ExportInfo) -> None:
        self.path, self.info = path, info

    def features(self, images: np.ndarray, labels: Mapping[str, np.ndarray] | None = None) -> np.ndarray:
        """Features float32 ``[B, D]``.

        Args:
            images: float32 ``[B, 3, height, width]`` as :attr:`info` says; any B, cut to the file's own batch size.
            labels: Per label input int64 ``[B]``; one that is missing counts as unseen for every image.

        Raises:
            InputError: If the shape is not the file's.
            RunError: If its runtime fails.
        """
        if images.ndim != 4 or images.shape[1:] != (3, *self.info.image_size):
            raise InputError(
                f"'{self.path}' takes images [B, 3, {', '.join(map(str, self.info.image_size))}], "
                f"not {list(images.shape)}."
            )
        count, step = len(images), self.info.batch or len(images)
        columns = [np.ascontiguousarray(images, dtype=np.float32)]
        for name in self.info.label_inputs:
            given = (labels or {}).get(name)
            given = np.full(count, -1) if given is None else np.asarray(given)
            if given.shape != (count,):
                raise InputError(f"'{self.path}' takes {name} [{count}] for {count} images, not {list(given.shape)}.")
            columns.append(given.astype(np.int64))
        if not count:
            return np.zeros((0, self.info.feature_dim), dtype=np.float32)
        parts = []
        for start in range(0, count, step):
            batch = [column[start : start + step] for column in columns]
            short = step - len(batch[0])
            if short:  # a fixed batch size is filled up with copies of the last image
                batch = [np.concatenate([column, np.repeat(column[-1:], short, axis=0)]) for column in batch]
            try:
                parts.append(self.run(batch)[: step - short])
            except Exception as error:  # each runtime has exceptions of its own
                raise RunError(f"'{self.path}' does not run on {step} images: {first_line(error)}") from error
        return np.concatenate(parts)

    def run(self, columns: list[np.ndarray]) -> np.ndarray:
        """Features float32 ``[B, D]`` of one batch that the file takes; what a format has to define.

        Args:
            columns: Images, then one array per label input, as :meth:`features` describes them.
        """
        raise NotImplementedError

    @staticmethod
    def check_device(device: str) -> None:
        """Check that the runtime computes on a device here.

        Raises:
            InputError: If it does not.
        """


def open_exported(path: str | Path, device: str = "cpu", threads: int = 0, *, trusted: bool = False) -> ExportedFile:
    """Open an exported file.

    TorchScript, ``torch.export`` and ExecuTorch files are programs, whose runtime runs what is in them. They are opened
    only if somebody vouches for them. A runtime that a file may take down is first tried in a process of its own.

    Args:
        path: File written by ``amg-reid export``.
        device: ``cpu``, or what the runtime knows besides (``cuda``, ``cuda:1``; ``gpu`` for OpenVINO).
        threads: Threads of ONNX Runtime and OpenVINO; 0 leaves it to them. Torch has a setting of its own.
        trusted: The file comes from where you would take a program from.

    Raises:
        CheckpointError: If the file is missing, damaged or of another program, or takes its runtime down.
        MissingDependencyError: If its runtime is missing.
        InputError: If the runtime lacks the device, or the file is a program and ``trusted`` is False.
    """
    path = Path(path)
    if kind_of(path) != "file":
        raise CheckpointError(f"The exported file '{path}' does not exist.")
    kind = file_format(path)
    if kind is None:
        raise CheckpointError(f"'{path}' is not a file that 'amg-reid export' writes.")
    row = FORMATS.row(kind)
    if row.runs_code and not trusted:
        raise InputError(
            f"'{path}' is a file of {kind}, and opening such a file runs what is in it, which may do all that you may: "
            "if you would run a program from where it comes, say trusted=True, or --trusted to a command."
        )
    for package in row.runtime:
        need(package, f"Running a file of the format {kind}", row.extras[1])
    if row.fragile and not trusted and crashes(path):
        raise CheckpointError(f"'{path}' takes the runtime of {kind} down with it: it is damaged, or made to.")
    try:
        file = row.load("opener")(path, device, threads)
    except (zipfile.BadZipFile, zlib.error) as error:
        raise CheckpointError(f"'{path}' is damaged: {first_line(error)}.") from error
    if file.info.file_format != kind:
        raise CheckpointError(f"'{path}' is described as {file.info.file_format}, but is {kind}.")
    return file


def check_graph(
    path: Path,
    info: ExportInfo,
    names: Sequence[str],
    shapes: Sequence[Sequence[int | None]],
    width: int | None,
) -> None:
    """Check that a description belongs to the graph that it is stored with.

    Args:
        path: The file.
        info: Its description.
        names: The graph's inputs.
        shapes: Their shapes, None for open sizes.
        width: D of the graph's features, None if the runtime does not tell.

    Raises:
        CheckpointError: If it does not.
    """
    if list(names) != list(info.inputs) or len(shapes) != len(names):
        raise other_graph(path, f"inputs {list(names)}", list(info.inputs))
    wanted = [[info.batch, 3, *info.image_size], *[[info.batch]] * len(info.label_inputs)]
    for name, shape, described in zip(names, shapes, wanted, strict=True):
        if list(shape) != described:
            raise other_graph(path, f"{name} {list(shape)}", described)
    if width not in (None, info.feature_dim):
        raise other_graph(path, f"features of {width} numbers", info.feature_dim)


def other_graph(path: Path, graph: str, described: Any) -> CheckpointError:
    """The error for a description of another graph."""
    return CheckpointError(f"The graph in '{path}' has {graph}, but its description says {described}.")


def first_line(error: BaseException) -> str:
    """The first line of an error's message that is not a place in OpenVINO's source code, for a sentence."""
    lines = str(error).strip().splitlines()
    message = [line for line in lines if not re.match(r"Exception from \S+:\d+|Check '.*' failed at ", line)]
    return (message or lines or [type(error).__name__])[0][:300]
