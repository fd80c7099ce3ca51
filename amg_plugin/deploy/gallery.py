"""A gallery of known images: enrol, search, keep in a file. Light: numpy only, besides what the extractor needs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from amg_plugin.deploy.extractor import FeatureExtractor
from amg_plugin.errors import CheckpointError, InputError
from amg_plugin.utils.archives import check_archive
from amg_plugin.utils.files import kind_of, parse_json, replacing

METRICS = ("cosine", "euclidean")
FORMAT, VERSION = "amg_plugin.gallery", 1
_ENTRIES = ("about", "features", "names")
#: What has to be the same for distances to mean something: the checkpoint, and whether lengths are kept.
_SAME = ("sha256", "unit_length")


class Match(NamedTuple):
    """An image of the gallery that was found: its name, and its distance to the query, the smaller the closer."""

    name: str
    distance: float


class Gallery:
    """Features of known images with a name each, searched by distance.

    Queries go through the same network as the gallery, in any format and precision: the distances of features of
    different networks say nothing.

    Args:
        extract: Gives the features.
        metric: ``cosine`` (1 - cosine, from 0 to 2) or ``euclidean``; names as in ``test.dist_metric``.

    Attributes:
        names: The name of each image, in the order in which they came.
        features: float32 ``[N, D]``; of length 1 for ``cosine``.

    Raises:
        InputError: If the metric is unknown.

    Example::

        gallery = Gallery(FeatureExtractor("model.onnx"))
        gallery.enrol(["anna.jpg", "ben_1.jpg", "ben_2.jpg"], ["anna", "ben", "ben"])
        gallery.save("people.npz")
        name, distance = gallery.search("unknown.jpg", count=1)[0][0]
    """

    def __init__(self, extract: FeatureExtractor, metric: str = "cosine") -> None:
        if metric not in METRICS:
            raise InputError(f"metric '{metric}' is unknown; allowed are {', '.join(METRICS)}.")
        self.extract, self.metric = extract, metric
        self.names: list[str] = []
        self.features = np.zeros((0, extract.feature_dim), dtype=np.float32)

    def __len__(self) -> int:
        return len(self.names)

    def enrol(self, images: Any, names: str | Sequence[str], **labels: Any) -> None:
        """Add images.

        Args:
            images: What :class:`FeatureExtractor` takes, one or several.
            names: A name for all of them, or one for each.
            **labels: ``camids`` and ``viewids``, as :class:`FeatureExtractor` takes them.

        Raises:
            DataError: If an image cannot be read.
            InputError: If there are not as many names as images, or one is no text.
        """
        found = self._features(images, labels)
        given = [names] * len(found) if isinstance(names, str) else list(names)
        if len(given) != len(found) or not all(isinstance(name, str) for name in given):
            raise InputError(f"Names must be one text or {len(found)} of them for {len(found)} images.")
        self.features = np.concatenate([self.features, found])
        self.names += given

    def search(self, images: Any, count: int = 5, **labels: Any) -> list[list[Match]]:
        """The closest images of the gallery, for each of ``images``.

        Args:
            images: Queries, as in :meth:`enrol`.
            count: Most matches of each; fewer if the gallery has fewer.
            **labels: As in :meth:`enrol`.

        Returns:
            Per query its matches, the closest first; equally close ones in the order in which they came.

        Raises:
            DataError: If an image cannot be read.
            InputError: If ``count`` is below 1.
        """
        if count < 1:
            raise InputError(f"count is {count}, but must be at least 1.")
        found = []
        for query in self._features(images, labels):
            if self.metric == "cosine":
                distances = 1 - self.features @ query
            else:
                distances = np.linalg.norm(self.features - query, axis=1)
            order = np.argsort(distances, kind="stable")[:count]
            found.append([Match(self.names[place], float(distances[place])) for place in order])
        return found

    def save(self, path: str | Path) -> None:
        """Write the gallery into one file (``.npz``), which appears once it is complete.

        Raises:
            InputError: If the name does not end in ``.npz``.
            RunError: If it cannot be written.
        """
        if Path(path).suffix.lower() != ".npz":
            raise InputError(f"The file of a gallery ends in .npz, unlike '{path}'.")
        about = {"format": FORMAT, "version": VERSION, "metric": self.metric, "network": _network(self)}
        with replacing(path, "gallery") as draft, draft.open("wb") as file:
            names = np.array(self.names, dtype=np.str_)
            np.savez(file, about=np.array(json.dumps(about)), features=self.features, names=names)

    @classmethod
    def load(cls, path: str | Path, extract: FeatureExtractor) -> Gallery:
        """Read a gallery; the file is data, whoever it is from.

        Args:
            path: A file of :meth:`save`.
            extract: Gives the features of queries; a file of the network that gave those of the gallery.

        Raises:
            CheckpointError: If the file is missing, damaged or of another program.
            InputError: If it was made with another network.
        """
        about, features, names = _read(Path(path))
        if not isinstance(about, dict) or about.get("format") != FORMAT or about.get("version") != VERSION:
            raise CheckpointError(f"'{path}' is not a gallery of this release of amg_plugin.")
        if about.get("metric") not in METRICS:
            raise CheckpointError(f"The gallery '{path}' has an unknown metric; allowed are {', '.join(METRICS)}.")
        gallery = cls(extract, about["metric"])
        theirs, ours = about.get("network"), _network(gallery)
        if not isinstance(theirs, dict) or any(theirs.get(key) != ours[key] for key in _SAME):
            raise InputError(
                f"The gallery '{path}' was made with another network than '{extract.file.path}' (of the checkpoint "
                f"'{ours['checkpoint']}'): enrol the images again, or use a file of its network."
            )
        shapes = features.shape, names.shape
        if shapes != ((len(names), extract.feature_dim), (len(names),)) or not np.isfinite(features).all():
            raise CheckpointError(f"The gallery '{path}' is damaged: {len(names)} names, features {features.shape}.")
        gallery.features, gallery.names = features, names.tolist()
        return gallery

    def _features(self, images: Any, labels: dict[str, Any]) -> np.ndarray:
        found = np.asarray(self.extract(images, **labels), dtype=np.float32)
        if self.metric == "cosine":
            found = found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)
        return found


def _network(gallery: Gallery) -> dict[str, Any]:
    """What the features come from; the name of the checkpoint, which may change, is for people."""
    info = gallery.extract.info
    unit = gallery.metric == "cosine" or info.l2_normalize or gallery.extract.normalize
    return {"checkpoint": info.source.get("name"), "sha256": info.source.get("sha256"), "unit_length": unit}


def _read(path: Path) -> tuple[Any, np.ndarray, np.ndarray]:
    """What a file of a gallery holds: a description, features float32, names."""
    if kind_of(path) != "file":
        raise CheckpointError(f"The gallery '{path}' does not exist.")
    check_archive(path)
    try:
        with np.load(path, allow_pickle=False) as file:
            about, features, names = (file[name] for name in _ENTRIES)
        if (about.dtype.kind, features.dtype, names.dtype.kind, features.ndim) != ("U", np.float32, "U", 2):
            raise ValueError("its entries are of other types")
    except Exception as error:  # numpy and zipfile raise many types for damaged files
        raise CheckpointError(f"The gallery '{path}' is damaged or of another program: {error}.") from error
    return parse_json(str(about), f"The description in '{path}'", CheckpointError), features, names
