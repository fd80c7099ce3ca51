"""The drawn data set ``synthetic_reid``: writes it to disk in Market-1501's layout.

Nothing is downloaded and nobody is shown: people are drawn figures. The same specification, seed and library
versions give the same files.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from amg_plugin.data.layout import GALLERY_DIR, MARKET_FOLDERS, QUERY_DIR, TRAIN_DIR, market_name, new_dataset
from amg_plugin.data.synthetic.figures import Appearance, FigurePainter, difference, sample_appearance, sample_pose
from amg_plugin.data.synthetic.scenes import MARGIN, Camera, paint_background, paint_occluder, photograph, sample_camera
from amg_plugin.errors import DataError, InputError
from amg_plugin.utils.files import expanded, read_json

logger = logging.getLogger(__name__)

FOLDER = "synthetic_reid"
"""Name of the data set's folder below the data root."""
_INFO_FILE = "dataset.json"
_VERSION = 1  # raise it whenever the same specification gives other images
_SUPERSAMPLING = 2
# Streams of random numbers; they keep the parts of the data set independent of each other's sizes.
_CAMERAS, _PEOPLE, _TRAIN, _QUERY, _GALLERY = range(5)


@dataclass(frozen=True)
class SyntheticSpec:
    """Size and difficulty of the drawn data set. Shares are fractions, sizes of images are in pixels."""

    train_ids: int = 250
    test_ids: int = 110  # others than those of the training set
    cameras: int = 6
    cameras_per_id: int = 4  # that see an identity
    train_images_per_camera: int = 2  # of an identity
    gallery_images_per_camera: int = 2  # query has one
    occluded_queries: float = 0.2  # share with something in front of the person
    occluded_others: float = 0.05  # the same for training and gallery images
    clutter: float = 4.0  # mean number of things in the background
    min_difference: float = 2.0  # smallest difference of two identities, see figures.difference
    width: int = 64
    height: int = 128

    def __post_init__(self) -> None:
        """Refuses impossible values."""
        for name, low, high in (
            ("train_ids", 1, 700),
            ("test_ids", 1, 800),
            ("cameras", 2, 6),
            ("cameras_per_id", 2, self.cameras),
            ("train_images_per_camera", 1, 99),
            ("gallery_images_per_camera", 1, 98),
            ("occluded_queries", 0.0, 1.0),
            ("occluded_others", 0.0, 1.0),
            ("clutter", 0.0, 50.0),
            ("min_difference", 0.0, 6.0),
            ("width", 16, 512),
            ("height", 32, 1024),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise DataError(f"synthetic_reid: {name} is {value}, allowed is {low} to {high}.")


def write_synthetic_reid(root: str | Path, spec: SyntheticSpec | None = None, seed: int = 0) -> Path:
    """Draws the data set into ``root/synthetic_reid``; keeps one that is already there and equal.

    The folder is either complete or absent.

    Raises:
        DataError: Another data set is already there, or the seed is negative.
        InputError: The data root cannot be written.
        RunError: The images cannot be written.
    """
    spec = spec or SyntheticSpec()
    if seed < 0:
        raise DataError(f"synthetic_reid: the seed is {seed}, allowed is 0 or larger.")
    folder = expanded(root) / FOLDER
    info = {"name": FOLDER, "version": _VERSION, "seed": int(seed), "spec": asdict(spec)}
    if folder.exists():
        _check_equal(folder, info)
        logger.info("%s is already there", folder)
        return folder
    with new_dataset(folder) as work:
        for name in MARKET_FOLDERS.values():
            (work / name).mkdir()
        for path, *shot in tqdm(list(_plan(spec, seed)), desc=f"drawing {FOLDER}", unit="image", disable=None):
            _draw(spec, *shot).save(work / path, quality=92)
        (work / _INFO_FILE).write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")
    return folder


def draw_example(height: int, width: int, seed: int = 0) -> Image.Image:
    """A person as the data set has them, of a size of one's own, for pictures that show nobody."""
    rng = np.random.default_rng((max(seed, 0), _PEOPLE))
    person, camera = sample_appearance(rng), sample_camera(rng)
    return _draw(replace(SyntheticSpec(), width=width, height=height), person, camera, 0.0, (max(seed, 0), _QUERY))


def _check_equal(folder: Path, info: dict) -> None:
    """Raises DataError unless the data set in ``folder`` is the one that ``info`` describes."""
    try:
        found = read_json(folder / _INFO_FILE)
    except InputError as error:
        raise DataError(
            f"{folder} exists but is not a finished drawn data set; remove it or choose another root."
        ) from error
    if found != info:
        raise DataError(
            f"{folder} holds a drawn data set of another specification, seed or version; "
            "remove it or choose another root."
        )


def _draw(
    spec: SyntheticSpec, person: Appearance, camera: Camera, occluded: float, stream: tuple[int, ...]
) -> Image.Image:
    """Draws one image from the random numbers of ``stream``."""
    rng = np.random.default_rng(stream)
    size = (round(spec.width * (1 + 2 * MARGIN)) * _SUPERSAMPLING, spec.height * _SUPERSAMPLING)
    image = paint_background(size, camera, spec.clutter, rng)
    height = size[1] * camera.scale * rng.uniform(0.94, 1.06)
    center = size[0] * 0.5 + spec.width * _SUPERSAMPLING * (camera.offset[0] + rng.normal(0.0, 0.02))
    top = (size[1] - height) * 0.5 + size[1] * (camera.offset[1] + rng.normal(0.0, 0.015))
    FigurePainter(image, center, top, height).paint(person, sample_pose(rng))
    if rng.random() < occluded:
        paint_occluder(image, rng)
    return photograph(image, (spec.width, spec.height), camera, rng)


def _plan(spec: SyntheticSpec, seed: int) -> Iterator[tuple[str, Appearance, Camera, float, tuple[int, ...]]]:
    """All images in the order in which they are drawn: the path, and what :func:`_draw` takes."""
    cameras = [sample_camera(np.random.default_rng((seed, _CAMERAS, i))) for i in range(spec.cameras)]
    people = _sample_people(spec, np.random.default_rng((seed, _PEOPLE)))
    for index, person in enumerate(people):
        pid = index + 1  # Market-1501 keeps 0 for the background
        rng = np.random.default_rng((seed, _PEOPLE, pid))
        seen_by = sorted(rng.choice(spec.cameras, spec.cameras_per_id, replace=False).tolist())
        if index < spec.train_ids:
            parts = [(TRAIN_DIR, _TRAIN, spec.train_images_per_camera, spec.occluded_others)]
        else:
            parts = [
                (QUERY_DIR, _QUERY, 1, spec.occluded_queries),
                (GALLERY_DIR, _GALLERY, spec.gallery_images_per_camera, spec.occluded_others),
            ]
        for folder, stream, count, occluded in parts:
            for camid in seen_by:
                for k in range(count):
                    frame = 100 * index + k + (50 if stream == _QUERY else 0)
                    name = market_name(pid, camid + 1, frame, k + 1)
                    yield f"{folder}/{name}", person, cameras[camid], occluded, (seed, stream, pid, camid, k)


def _sample_people(spec: SyntheticSpec, rng: np.random.Generator) -> list[Appearance]:
    """People who all differ by at least ``spec.min_difference``."""
    people: list[Appearance] = []
    for _ in range(100 * (spec.train_ids + spec.test_ids)):
        person = sample_appearance(rng)
        if all(difference(person, other) >= spec.min_difference for other in people):
            people.append(person)
            if len(people) == spec.train_ids + spec.test_ids:
                return people
    raise DataError(
        f"synthetic_reid: {spec.train_ids + spec.test_ids} identities that differ by "
        f"{spec.min_difference} were not found; lower min_difference or the number of identities."
    )
