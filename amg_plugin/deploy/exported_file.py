"""An exported file, opened: what all runtimes have in common."""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from amg_plugin.deploy.info import ExportInfo
from amg_plugin.errors import CheckpointError, InputError
from amg_plugin.registries.formats import FORMATS, file_format
from amg_plugin.utils.imports import need


class ExportedFile:
    """An exported file, opened.

    Args:
        path: The file.
        info: What it says about itself.

    Attributes:
        runtime: Name and version of what runs it.
    """

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
        """
        if images.ndim != 4 or images.shape[1:] != (3, *self.info.image_size):
            raise InputError(
                f"'{self.path}' takes images [B, 3, {', '.join(map(str, self.info.image_size))}], "
                f"not {list(images.shape)}."
            )
        count, step = len(images), self.info.batch or len(images)
        columns = [np.ascontiguousarray(images, dtype=np.float32)]
        for name in self.info.label_inputs:
            given = None if labels is None else labels.get(name)
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
            parts.append(self.run(batch)[: step - short])
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


def open_exported(path: str | Path, device: str = "cpu", threads: int = 0) -> ExportedFile:
    """Open an exported file.

    Args:
        path: File written by ``amg-reid export``.
        device: ``cpu``, or what the runtime knows besides (``cuda``, ``cuda:1``; ``gpu`` for OpenVINO).
        threads: Threads of ONNX Runtime and OpenVINO; 0 leaves it to them. Torch has a setting of its own.

    Raises:
        CheckpointError: If the file is missing, damaged or of another program.
        MissingDependencyError: If its runtime is missing.
        InputError: If the runtime lacks the device.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"The exported file '{path}' does not exist.")
    kind = file_format(path)
    if kind is None:
        raise CheckpointError(f"'{path}' is not a file that 'amg-reid export' writes.")
    row = FORMATS.row(kind)
    for package in row.runtime:
        need(package, f"Running a file of the format {kind}", row.extras[1])
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
