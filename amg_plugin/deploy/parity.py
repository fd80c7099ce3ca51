"""How far the features of an exported file are from PyTorch's."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from PIL import Image

from amg_plugin.deploy.exported_file import ExportedFile
from amg_plugin.deploy.images import prepare
from amg_plugin.errors import RunError

#: Largest difference allowed, relative to the largest feature, per precision.
LARGEST_DIFFERENCE = {"fp32": 1e-4, "fp16": 1e-2}
#: Smallest cosine allowed.
SMALLEST_COSINE = {"int8": 0.99}


@dataclass(frozen=True)
class Comparison:
    """Outcome: largest difference relative to the largest feature, smallest cosine, and whether they are ``within``.

    ``kind`` is ``real`` images, ``calibration`` images (there were no others), or ``generated`` ones.
    """

    relative_difference: float
    cosine: float
    images: int
    kind: str
    batches: list[int]
    limit: str
    within: bool

    to_dict = asdict

    def sentence(self) -> str:
        """One line for the terminal."""
        return (
            f"compared with PyTorch on {self.images} {self.kind} images, batches of "
            f"{', '.join(map(str, self.batches))}: largest difference {self.relative_difference:.1e} of the largest "
            f"feature, cosine {self.cosine:.6f} (limit: {self.limit})"
        )


def generated_images(count: int, height: int, width: int, seed: int = 0) -> list[Image.Image]:
    """Random images with large and small structure; always the same ones."""
    random = np.random.default_rng(seed)

    def layer(rows: int, columns: int) -> np.ndarray:
        small = Image.fromarray(random.integers(0, 256, (rows, columns, 3), dtype=np.uint8))
        return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float32)

    mixed = [0.7 * layer(8, 4) + 0.3 * layer(height, width) for _ in range(count)]
    return [Image.fromarray(image.astype(np.uint8)) for image in mixed]


def compare(exported: ExportedFile, reference: ExportedFile, images: Sequence[Any], kind: str) -> Comparison:
    """Run both on the same images.

    Files for any batch size get batches of 1, 2 and the rest; label inputs get every label in turn, unseen included.

    Raises:
        RunError: If the exported file does not run, or gives features that are not finite or of another shape.
    """
    info, count = exported.info, len(images)
    first = prepare(list(images), info.preprocessing, info.input)
    second = prepare(list(images), info.preprocessing)
    labels = info.labels_in_turn(0, count)
    cuts = [0, 1, 3, count] if info.batch is None and count > 3 else range(0, count + 1, info.batch or count)
    sizes, found = [], []
    for start, stop in itertools.pairwise(cuts):
        sizes.append(stop - start)
        part = {name: column[start:stop] for name, column in labels.items()}
        found.append(exported.features(first[start:stop], part))
    ours, theirs = np.concatenate(found), reference.features(second, labels)
    if info.l2_normalize:
        theirs = theirs / np.linalg.norm(theirs, axis=1, keepdims=True)
    if not np.isfinite(theirs).all():
        raise RunError(f"'{reference.path}' itself gives features that are not finite, in PyTorch.")
    if ours.shape != theirs.shape or not np.isfinite(ours).all():
        raise RunError(
            f"'{exported.path.name}' gives features of {list(ours.shape)}, PyTorch {list(theirs.shape)}, "
            f"{'all finite' if np.isfinite(ours).all() else 'some not finite'}."
        )
    difference = float(np.abs(ours - theirs).max() / np.abs(theirs).max())
    lengths = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    cosine = float(((ours * theirs).sum(1) / np.maximum(lengths, 1e-12)).min())
    most, least = LARGEST_DIFFERENCE.get(info.precision), SMALLEST_COSINE.get(info.precision)
    return Comparison(
        relative_difference=difference,
        cosine=cosine,
        images=count,
        kind=kind,
        batches=list(dict.fromkeys(sizes)),
        limit=f"difference {most:g}" if most is not None else f"cosine {least:g}",
        within=difference <= most if most is not None else cosine >= least,
    )
