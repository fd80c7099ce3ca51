"""Features of images, with one call for checkpoints and exported files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from amg_plugin.deploy.exported_file import ExportedFile, open_exported
from amg_plugin.deploy.images import as_given, prepare
from amg_plugin.errors import InputError
from amg_plugin.registries.formats import FORMATS, file_format
from amg_plugin.utils.finite import check_finite
from amg_plugin.utils.imports import need

OUTPUTS = ("auto", "numpy", "torch")


class FeatureExtractor:
    """torchreid's ``FeatureExtractor`` for the plugin's files, with nothing to configure but the file.

    Size, mean, std and interpolation come from the file, so that features equal those of ``amg-reid test``. For ONNX,
    OpenVINO and LiteRT files neither torch nor torchreid is needed. A pickled extractor opens its file again.

    Args:
        path: A checkpoint of ``amg-reid``, or a file of ``amg-reid export``.
        device: ``cpu``, ``cuda``, ``cuda:1``; what the file's runtime knows.
        batch_size: Images that go through the network at once.
        normalize: Give features of length 1.
        output: ``torch`` or ``numpy`` float32 ``[B, D]``; ``auto`` gives tensors, as torchreid, for what runs in
            PyTorch, and arrays for other files.
        threads: Threads of ONNX Runtime and OpenVINO; 0 leaves it to them.
        trusted: Open TorchScript, ``torch.export`` and ExecuTorch files, which run what is in them: only if you would
            run a program from where the file comes.

    Raises:
        CheckpointError: If the file is missing, damaged or foreign.
        InputError: If an argument is impossible, or the file is a program and ``trusted`` is False.
        MissingDependencyError: If the file's runtime is missing.

    Example::

        extract = FeatureExtractor("model.onnx")
        features = extract(["query/0001.jpg", "query/0002.jpg"])   # [2, D]
    """

    def __init__(
        self,
        path: str | Path,
        device: str = "cpu",
        *,
        batch_size: int = 32,
        normalize: bool = False,
        output: str = "auto",
        threads: int = 0,
        trusted: bool = False,
    ) -> None:
        if output not in OUTPUTS:
            raise InputError(f"output '{output}' is unknown; allowed are {', '.join(OUTPUTS)}.")
        if not isinstance(batch_size, int | np.integer) or batch_size < 1:
            raise InputError(f"batch_size is {batch_size!r}, but must be a whole number from 1.")
        if threads < 0:
            raise InputError(f"threads is {threads}, but must be at least 0.")
        self._opened = (Path(path).absolute(), str(device), threads, trusted)
        self.file = _open(Path(path), *self._opened[1:])
        self.info = self.file.info
        self.batch_size, self.normalize = batch_size, normalize
        row = FORMATS.rows.get(self.info.file_format)  # none for a checkpoint
        in_torch = row is None or "torch" in row.runtime
        self.output = ("torch" if in_torch else "numpy") if output == "auto" else output
        if self.output == "torch":
            need("torch", "output 'torch'")

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the opened file: sessions of runtimes stay in their process, and a copy opens it again."""
        return {name: value for name, value in vars(self).items() if name != "file"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.file = _open(*self._opened)

    @property
    def feature_dim(self) -> int:
        """D of the features."""
        return self.info.feature_dim

    def __call__(self, images: Any, camids: Any = None, viewids: Any = None) -> Any:
        """Extract features ``[B, D]``.

        Args:
            images: A path, an opened file (``BytesIO`` too), a PIL image, a ``uint8`` array ``[H, W, 3]`` (RGB, not
                OpenCV's BGR) or ``[H, W]``, or a list of these in any mixture. Or a float tensor or array
                ``[B, 3, height, width]`` or ``[3, height, width]``, which, as with torchreid, is taken as prepared
                already: resized and normalised.
            camids: Cameras as the network was trained with, one number or one per image, for networks with camera
                embedding; unknown ones are negative. Without them every image counts as of an unseen camera.
            viewids: Views, in the same form.

        Raises:
            DataError: If an image is missing or cannot be decoded.
            InputError: If something else was given.
            RunError: If features are NaN or infinite.
        """
        items, prepared = _as_items(images)
        given = {"camids": camids, "viewids": viewids}
        labels = {name: _labels(values, len(items)) for name, values in given.items() if values is not None}
        preprocessing, given_as = self.info.preprocessing, self.info.input
        parts = [np.zeros((0, self.feature_dim), dtype=np.float32)]
        for start in range(0, len(items), self.batch_size):
            here = slice(start, start + self.batch_size)
            batch = (as_given if prepared else prepare)(items[here], preprocessing, given_as)
            found = self.file.features(batch, {name: column[here] for name, column in labels.items()})
            check_finite(found, f"features of '{self.file.path}'", _names(items[here], start))
            parts.append(found)
        features = np.concatenate(parts)
        if self.normalize:
            features /= np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
        return need("torch", "output 'torch'").from_numpy(features) if self.output == "torch" else features


def _open(path: Path, device: str, threads: int, trusted: bool) -> ExportedFile:
    if file_format(path) is not None:
        return open_exported(path, device, threads, trusted=trusted)
    need("torch", f"'{path}' is not an exported file, and a checkpoint")
    from amg_plugin.deploy.networks import CheckpointFile

    return CheckpointFile(path, device)


def _is_tensor(value: Any) -> bool:
    """Whether a value is torch's, without importing torch; opened files have a ``detach``, too."""
    return hasattr(value, "detach") and hasattr(value, "cpu")


def _as_items(images: Any) -> tuple[Any, bool]:
    """A sequence of images, and whether it is a prepared batch."""
    if _is_tensor(images):
        images = images.detach().cpu()
        images = (images.float() if images.is_floating_point() else images).numpy()  # numpy knows no bfloat16
    if isinstance(images, np.ndarray) and np.issubdtype(images.dtype, np.floating):
        if images.ndim not in (3, 4):
            raise InputError(f"A prepared batch is [B, 3, height, width] or [3, height, width], not {images.shape}.")
        return (images[None] if images.ndim == 3 else images).astype(np.float32), True
    stacked = isinstance(images, np.ndarray) and images.ndim == 4
    several = stacked or (isinstance(images, Sequence) and not isinstance(images, str | bytes))
    return list(images) if several else [images], False


def _names(items: Any, start: int) -> list[str]:
    """What messages call images: their paths, or their numbers from 0."""
    return [
        str(item) if isinstance(item, str | Path) else f"number {start + place}" for place, item in enumerate(items)
    ]


def _labels(values: Any, count: int) -> np.ndarray:
    if _is_tensor(values):
        values = values.detach().cpu().numpy()
    try:
        column = np.asarray(values)
    except ValueError as error:  # lists of different lengths
        raise InputError(f"Labels must be one whole number or {count} of them, not lists of lists.") from error
    if column.dtype.kind not in "iu" or column.shape not in ((), (count,)):
        raise InputError(f"Labels must be one whole number or {count} of them, not {column.dtype} {column.shape}.")
    return np.broadcast_to(column, (count,)).astype(np.int64)
