"""One look at the data before a run: everything that is wrong with it, together and by name."""

from __future__ import annotations

import filecmp
import itertools
import logging
import os
import re
import traceback
import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from amg_plugin.data.checks.folders import check_dataset_folder, known_datasets
from amg_plugin.data.checks.problems import LISTED, Problem
from amg_plugin.data.checks.stock import stock_problems
from amg_plugin.data.datasets.local import queries_without_match
from amg_plugin.data.images import SCALED, as_rgb, is_rotated, is_scaled
from amg_plugin.data.layout import TEST_PARTS, FilesError, name_of
from amg_plugin.errors import AMGError, ConfigError, DataError

logger = logging.getLogger(__name__)

MOST_THREADS = 16
TINY = 8
"""Images with a side below this many pixels are readable, but hardly show a person."""


@dataclass
class ReadableImages:
    """Outcome of reading images."""

    count: int = 0
    unreadable: dict[str, str] = field(default_factory=dict)  # path -> why it cannot be decoded
    tiny: list[str] = field(default_factory=list)  # paths of readable images with a side below TINY pixels
    scaled: list[str] = field(default_factory=list)  # with more than 8 bits a channel
    rotated: list[str] = field(default_factory=list)  # that viewers show rotated, by EXIF data


def read_images(paths: Iterable[str | Path], workers: int = 0) -> ReadableImages:
    """Decodes every image once, in threads (0 takes one per processor).

    Grayscale, CMYK and palette images and images with transparency count as readable: they are converted to RGB
    (transparency is dropped, not blended). See :mod:`amg_plugin.data.images` for deeper ones.
    """
    unique = list(dict.fromkeys(map(str, paths)))
    found = ReadableImages(count=len(unique))
    bar = tqdm(total=len(unique), desc="checking images", unit="image", disable=None)
    pool = ThreadPoolExecutor(min(MOST_THREADS, workers or os.cpu_count() or 1))
    # Pillow warns about transparency that it drops, once per image and thread.
    with warnings.catch_warnings(), bar:
        warnings.filterwarnings("ignore", category=UserWarning, module="PIL")
        try:
            for path, (reason, *lists) in zip(unique, pool.map(_read, unique), strict=True):
                bar.update()
                if reason:
                    found.unreadable[path] = reason
                for name in lists:
                    getattr(found, name).append(path)
        finally:
            pool.shutdown(cancel_futures=True)  # Ctrl-C should not wait for the queue
    return found


def _read(path: str) -> list[str]:
    """Why an image cannot be decoded (empty if it can), and the lists of :class:`ReadableImages` that it belongs to."""
    try:
        with Image.open(path) as image:
            # A JPEG is decoded at an eighth of its size: all of its data is read, but most of the arithmetic is saved.
            found = [""] + ["tiny"] * (min(image.size) < TINY) + ["scaled"] * is_scaled(image)
            image.draft(None, (1, 1))
            as_rgb(image)
            return found + ["rotated"] * is_rotated(image)
    except Exception as error:  # Pillow's decoders raise more than OSError on damaged files
        if Path(path).is_file() and not Path(path).stat().st_size:
            return ["empty file"]
        reason = str(error).replace(repr(path), "").strip() or type(error).__name__
        return [" ".join(reason.split())]


Item = tuple[Any, ...]


@dataclass
class Inspection:
    """What was found."""

    datasets: dict[str, Any] = field(default_factory=dict)  # those that could be opened
    problems: list[Problem] = field(default_factory=list)  # what stops a run
    warnings: list[Problem] = field(default_factory=list)
    # Paths to be left out everywhere, and target -> paths of queries to be left out; empty unless they are skipped.
    unusable: set[str] = field(default_factory=set)
    unmatched: dict[str, set[str]] = field(default_factory=dict)
    images: ReadableImages | None = None  # None if they were not read

    @property
    def leaves_out(self) -> bool:
        """Whether a run goes on without some of the files."""
        return bool(self.unusable or self.unmatched)

    def refuse(self) -> None:
        """Logs the warnings and the number of readable images, or stops if there is any problem.

        Raises:
            DataError: Names all problems in one sentence each.
        """
        for warning in self.warnings:
            # Everything that is left out is named.
            logger.warning("%s", warning.sentence(len(warning.items) if self.leaves_out else LISTED))
        sentences = [problem.sentence().rstrip(".") for problem in self.problems]
        if len(sentences) == 1:
            raise DataError(f"{sentences[0]}.")
        if sentences:
            numbered = " ".join(f"({number}) {text}." for number, text in enumerate(sentences, 1))
            raise DataError(f"{len(sentences)} problems in the data: {numbered}")
        if images := self.images:
            logger.info("%d images can be read", images.count - len(images.unreadable))


def inspect_data(
    root: str | Path,
    sources: Sequence[str],
    targets: Sequence[str],
    *,
    train_targets: bool = False,
    decode: bool = True,
    skip: bool = False,
    workers: int = 0,
    options: dict[str, Any] | None = None,
) -> Inspection:
    """Checks folders, file names, labels, matches and images of the data sets.

    Args:
        root: Data root.
        sources: Training data sets.
        targets: Test data sets.
        train_targets: The training parts of the targets are used as well.
        decode: Read every image.
        skip: Unreadable images and queries without a match are left out (see ``unusable`` and ``unmatched``) in place
            of being problems.
        workers: Threads that read; 0 takes one per processor.
        options: What the data sets are opened with besides root and mode.

    Returns:
        What was found. Nothing is raised for bad data.

    Raises:
        ConfigError: A data set is unknown, or named twice.
    """
    for key, names in (("data.sources", sources), ("data.targets", targets)):
        if twice := sorted({name for name in names if list(names).count(name) > 1}):
            raise ConfigError(f"{key} names {', '.join(twice)} more than once; name each data set once.")
    found = Inspection()
    trained = dict.fromkeys([*sources, *(targets if train_targets else ())])
    for name in dict.fromkeys([*sources, *targets]):
        # A data set without a training part refuses the mode "train".
        _open_dataset(found, name, root, "train" if name in trained else "query", options or {})

    parts = [(name, "train", found.datasets[name].train) for name in trained if name in found.datasets]
    found.problems += [problem for name, _, items in parts if (problem := find_label_gaps(name, items))]
    found.problems += _find_shared_images({name: items for name, _, items in parts if name in sources})
    for name in dict.fromkeys(targets):
        if name in found.datasets:
            parts += [(name, part, getattr(found.datasets[name], part)) for part in TEST_PARTS]

    bad: dict[str, str] = {}
    if decode:
        bad = _inspect_images(found, parts, workers, skip)
    for name in dict.fromkeys(targets):
        if name in found.datasets:
            _inspect_matches(found, name, found.datasets[name], bad, skip)
    return found


def find_label_gaps(name: str, train: Sequence[Item]) -> Problem | None:
    """The problem with training labels other than 0 to n - 1, which a classifier needs; None if all is well."""
    labels = {item[1] for item in train}
    if labels == set(range(len(labels))):
        return None
    missing = sorted(set(range(len(labels))) - labels)
    beyond = sorted(label for label in labels if not 0 <= label < len(labels))
    text = f"The training labels of {name} must count from 0 to {len(labels) - 1}, its number of identities minus one"
    items = (*(f"{label} is missing" for label in missing), *(f"{label} is out of range" for label in beyond))
    return Problem(name, text, items)


def _find_shared_images(trained: Mapping[str, Sequence[Item]]) -> list[Problem]:
    """The problem with images that several training sets hold: their identities would count as other people."""
    if len(trained) < 2:
        return []
    shared = []
    by_set = {name: _by_name_and_size(items) for name, items in trained.items()}
    for (first, ours), (second, theirs) in itertools.combinations(by_set.items(), 2):
        alike = ((path, other) for key, paths in theirs.items() for path in paths for other in ours.get(key, ()))
        both = [(other, path) for path, other in alike if filecmp.cmp(path, other, shallow=False)]
        if both:
            shared.append(f"{len(both)} by {first}, {second}, such as {both[0][0]} and {both[0][1]}")
    text = "Several training sets hold the same images, which would make two identities of each"
    return [Problem("", text, tuple(shared), "Train on one of them")] if shared else []


def _by_name_and_size(items: Sequence[Item]) -> dict[tuple[str, int], list[str]]:
    """Paths of images; those of a name and size may be copies. What cannot be opened is named where images are read."""
    found: defaultdict[tuple[str, int], list[str]] = defaultdict(list)
    for path, *_ in items:
        if os.access(path, os.R_OK):
            found[name_of(path), Path(path).stat().st_size].append(path)
    return found


def _inspect_images(
    found: Inspection, parts: Sequence[tuple[str, str, Sequence[Item]]], workers: int, skip: bool
) -> dict[str, str]:
    """Reads the images of ``parts`` and adds what is wrong; gives the unreadable ones with the reason."""
    images = found.images = read_images((item[0] for _, _, items in parts for item in items), workers)
    if images.unreadable:
        items = tuple(f"{path} ({reason})" for path, reason in images.unreadable.items())
        text = f"{len(items)} of {images.count} images cannot be read"
        if skip:
            found.warnings.append(Problem("", f"{text} and are left out", items))
            found.unusable.update(images.unreadable)
            found.problems += [
                Problem(name, f"None of the {len(items)} {part} images of {name} can be read, and nothing is left")
                for name, part, items in parts
                if items and all(item[0] in images.unreadable for item in items)
            ]
        else:
            remedy = "Replace them, or leave them out with --skip-unreadable"
            found.problems.append(Problem("", text, items, remedy))
    tiny = f"have a side of less than {TINY} pixels"
    scaled = "have more than 8 bits a channel and are scaled to 8"
    rotated = "are rotated or mirrored by their EXIF data, and are used as they are stored"
    for text, paths, note in ((tiny, images.tiny, ""), (scaled, images.scaled, SCALED), (rotated, images.rotated, "")):
        if paths:
            items = tuple(f"{path} ({note})" if note else path for path in paths)
            found.warnings.append(Problem("", f"{len(paths)} of {images.count} images {text}", items))
    return images.unreadable


def _inspect_matches(found: Inspection, name: str, dataset: Any, bad: dict[str, str], skip: bool) -> None:
    """Adds the queries that have no match among the readable gallery images."""
    query = [item for item in dataset.query if item[0] not in bad]
    alone = queries_without_match(query, [item for item in dataset.gallery if item[0] not in bad])
    if not alone:
        return
    items = tuple(f"{item[0]} (identity {item[1]}, camera {item[2]})" for item in alone)
    counted = f"{len(alone)} of {len(query)} queries of {name}"
    text = f"{counted} have no gallery image of their identity under another camera"
    if len(alone) == len(query):
        found.problems.append(Problem(name, f"{text}, and nothing can be evaluated", items))
    elif skip:
        found.warnings.append(Problem(name, f"{text} and are left out", items))
        found.unmatched[name] = {item[0] for item in alone}
    else:
        remedy = "Complete the gallery, or leave these queries out with --skip-unreadable"
        found.problems.append(Problem(name, text, items, remedy))


def _open_dataset(found: Inspection, name: str, root: str | Path, mode: str, options: dict[str, Any]) -> None:
    """Lists a data set's images by its own class; what that class raises becomes a problem that names the files."""
    folder = None
    try:
        folder = check_dataset_folder(name, root)
        if problems := stock_problems(name, root, options):
            found.problems += problems
            return
        dataset = known_datasets()[name](root=str(root), mode=mode, verbose=False, **options)
    except ConfigError:
        raise
    except Exception as error:  # a stock class raises whatever its parser meets
        problem = _why_not_opened(name, folder or root, error)
        if problem.text not in (known.text for known in found.problems):  # a missing root concerns all data sets
            found.problems.append(problem)
    else:
        found.datasets[name] = dataset


def _why_not_opened(name: str, folder: str | Path, error: Exception) -> Problem:
    if isinstance(error, FilesError):
        return Problem(name, error.text, error.files, error.remedy)
    if isinstance(error, AMGError):
        return Problem(name, str(error).rstrip("."))
    last = traceback.extract_tb(error.__traceback__)[-1]
    if isinstance(error, IndexError) and (part := re.search(r"(train|query|gallery)\[0\]", last.line or "")):
        return Problem(
            name, f"The data set {name} in {folder} has no {part[1]} images, and torchreid needs one at least"
        )
    # Classes state their rules as assertions, mostly without a text.
    rule = f" (line {last.lineno} of {Path(last.filename).name}: {last.line})" if last.line else ""
    reason = " ".join([type(error).__name__, *str(error).rstrip(".").split()])
    return Problem(name, f"The data set {name} in {folder} cannot be read: {reason}{rule}")
