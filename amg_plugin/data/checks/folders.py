"""Data sets by name, and checks of their folders and of the training set's size before a run starts.

torchreid downloads where a folder is missing (and leaves an empty one behind) and trains nothing where a batch is
larger than the training set. Here each of these is an error up front.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amg_plugin import compat
from amg_plugin.data.layout import FolderLayout
from amg_plugin.errors import ConfigError, DataError
from amg_plugin.registries import DATASETS
from amg_plugin.registries.registry import refuse_taken
from amg_plugin.utils.files import expanded

logger = logging.getLogger(__name__)


def known_datasets(*names: str) -> dict[str, Any]:
    """torchreid's table, name -> class, with the entries of :data:`amg_plugin.registries.DATASETS` in it.

    Args:
        *names: Names asked for; those of the forms folder:NAME and csv:NAME are entered too.

    Raises:
        MissingDependencyError: torchreid is missing.
        ConfigError: There is no folder of such a name.
        InputError: A name is taken by someone else; nothing is entered then.
    """
    known = compat.image_dataset_factory()
    from amg_plugin.data.datasets.folder import dataset_factory, is_folder_name

    ours = {name: DATASETS.load(name) for name in DATASETS}
    ours.update({name: dataset_factory(name) for name in names if is_folder_name(name)})
    refuse_taken("data set", known, ours)
    known.update(ours)
    return known


def check_dataset_folder(name: str, root: str | Path) -> Path | None:
    """Makes sure that a data set's folder is there, so that torchreid does not try to download it.

    Returns:
        The folder, or None for a data set class that does not say which folder it reads.

    Raises:
        ConfigError: No such data set is registered.
        DataError: The root or the folder is missing, or holds no file.
    """
    known = known_datasets(name)
    if name not in known:
        raise ConfigError(
            f"Unknown data set {name!r} (data.sources, data.targets); known are {', '.join(sorted(known))}, and "
            "folder:NAME and csv:NAME for data of your own (docs/datasets.md)."
        )
    root = expanded(root).resolve()
    if not root.is_dir():
        raise DataError(f"The data root {root} (data.root, --root) does not exist or is not a folder.")
    if isinstance(layout := getattr(known[name], "layout", None), FolderLayout):
        return layout.locate(root)
    below = getattr(known[name], "dataset_dir", None)
    if not isinstance(below, str) or not below:
        return None
    folder = root / below
    if not folder.is_dir():
        raise DataError(f"The data set {name} is expected in {folder}, which does not exist.")
    if not any(files for _, _, files in os.walk(folder)):
        raise DataError(f"The data set {name} is expected in {folder}, which holds no files.")
    return folder


@dataclass(frozen=True)
class Batch:
    """How torchreid fills a training batch."""

    sampler: str = "RandomSampler"
    size: int = 32  # images (train.batch_size)
    num_instances: int = 4  # images per identity, for the identity sampler
    num_cams: int = 1  # 0 for all, for the domain sampler
    num_datasets: int = 1  # 0 for all, for the data set sampler


def check_training_set(train: Sequence[tuple[Any, ...]], batch: Batch) -> None:
    """Makes sure that the training set fills at least one batch: torchreid drops the last, incomplete one.

    Raises:
        ConfigError: The batch is smaller than ``num_instances``, or cannot be shared out over cameras or data sets.
        DataError: Too few images, identities, cameras or data sets for one batch.
    """
    if batch.sampler == "RandomIdentitySampler":
        _check_identities(Counter(item[1] for item in train), batch)
    elif len(train) < batch.size:
        raise DataError(
            f"The training set has {len(train)} images, fewer than train.batch_size = {batch.size}: no batch would "
            "be complete and nothing would be trained; lower train.batch_size."
        )
    if batch.sampler == "RandomDomainSampler":
        _check_domains(train, 2, "camera", "sampler.num_cams", batch.size, batch.num_cams)
    if batch.sampler == "RandomDatasetSampler":
        _check_domains(train, 3, "data set", "sampler.num_datasets", batch.size, batch.num_datasets)


def _check_identities(counts: Counter[Any], batch: Batch) -> None:
    """Checks ``counts`` of images per identity; the identity sampler repeats images where an identity has few."""
    if batch.size < batch.num_instances:
        raise ConfigError(
            f"train.batch_size is {batch.size}, but RandomIdentitySampler needs at least sampler.num_instances = "
            f"{batch.num_instances}."
        )
    needed = batch.size // batch.num_instances
    if len(counts) < needed:
        raise DataError(
            f"The training set has {len(counts)} identities, but a batch of {batch.size} with {batch.num_instances} "
            f"images each takes {needed}; lower train.batch_size or raise sampler.num_instances."
        )
    if short := sum(count < batch.num_instances for count in counts.values()):
        logger.warning(
            "%d of %d training identities have fewer than %d images (sampler.num_instances); "
            "the identity sampler repeats theirs",
            short,
            len(counts),
            batch.num_instances,
        )


def _check_domains(train: Sequence[tuple[Any, ...]], place: int, what: str, key: str, size: int, number: int) -> None:
    """Checks the images per camera or data set, which torchreid's samplers draw without repetition."""
    counts = Counter(item[place] for item in train)
    number = number if number > 0 else len(counts)
    if number > len(counts):
        raise DataError(f"The training set has {len(counts)} {what}s, fewer than {key} = {number}; lower {key}.")
    if not number or size < number or size % number:
        raise ConfigError(
            f"train.batch_size is {size}, but must be a multiple of the number of {what}s in a batch ({key}), "
            f"which is {number}."
        )
    needed = size // number
    domain, fewest = min(counts.items(), key=lambda item: item[1])
    if fewest < needed:
        raise DataError(
            f"The {what} {domain} has {fewest} training images, but a batch of {size} from {number} {what}s "
            f"takes {needed} of each; lower train.batch_size."
        )
