"""Checks of data set folders and of the training set's size before a run starts.

torchreid downloads where a folder is missing (and leaves an empty one behind) and trains nothing where a batch is
larger than the training set. Here each of these is an error up front.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from amg_plugin.data.datasets.names import known_datasets
from amg_plugin.errors import ConfigError, DataError

logger = logging.getLogger(__name__)


def check_dataset_folder(name: str, root: str | Path) -> Path | None:
    """Makes sure that a data set's folder is there, so that torchreid does not try to download it.

    Args:
        name: Name of an image data set registered with torchreid.
        root: Data root (``data.root``).

    Returns:
        The folder, or None for a data set class that does not say which folder it reads.

    Raises:
        ConfigError: No such data set is registered.
        DataError: The root or the folder is missing, or holds no file.
    """
    known = known_datasets()
    if name not in known:
        raise ConfigError(
            f"Unknown data set {name!r} (data.sources, data.targets); known are {', '.join(sorted(known))}."
        )
    root = Path(root).expanduser().resolve()
    if not root.is_dir():
        raise DataError(f"The data root {root} (data.root, --root) does not exist or is not a folder.")
    if hasattr(known[name], "locate"):  # a class of the plugin that knows several layouts
        return known[name].locate(root)
    below = getattr(known[name], "dataset_dir", None)
    if not isinstance(below, str) or not below:
        return None
    folder = root / below
    hint = " (`amg-reid demo` draws it; amg_plugin.data.synthetic.reid in Python)" if name == "synthetic_reid" else ""
    if not folder.is_dir():
        raise DataError(f"The data set {name} is expected in {folder}, which does not exist{hint}.")
    if not any(files for _, _, files in os.walk(folder)):
        raise DataError(f"The data set {name} is expected in {folder}, which holds no files{hint}.")
    return folder


def check_identity_sampler(train: Sequence[tuple[Any, ...]], num_instances: int) -> int:
    """Warns about identities with fewer images than the identity sampler draws; it repeats their images.

    Args:
        train: Training items (path, pid, camid, ...).
        num_instances: Images per identity in a batch (``sampler.num_instances``).

    Returns:
        Number of such identities.
    """
    counts = Counter(item[1] for item in train)
    short = sum(count < num_instances for count in counts.values())
    if short:
        logger.warning(
            "%d of %d training identities have fewer than %d images (sampler.num_instances); "
            "the identity sampler repeats theirs",
            short,
            len(counts),
            num_instances,
        )
    return short


def check_domain_sampler(domains: Iterable[Any], what: str, key: str, batch_size: int, number: int) -> None:
    """Makes sure that torchreid's domain or data set sampler, which draws without repetition, can fill a batch.

    Args:
        domains: Per training image, its camera or data set.
        what: ``"camera"`` or ``"data set"``, for messages.
        key: Key that ``number`` comes from, for messages.
        batch_size: ``train.batch_size``.
        number: Domains in a batch; 0 takes all there are.

    Raises:
        ConfigError: The batch cannot be shared out equally.
        DataError: There are fewer domains than asked for, or one has too few images.
    """
    counts = Counter(domains)
    number = number if number > 0 else len(counts)
    if number > len(counts):
        raise DataError(f"The training set has {len(counts)} {what}s, fewer than {key} = {number}; lower {key}.")
    if not number or batch_size < number or batch_size % number:
        raise ConfigError(
            f"train.batch_size is {batch_size}, but must be a multiple of the number of {what}s in a batch ({key}), "
            f"which is {number}."
        )
    needed = batch_size // number
    domain, fewest = min(counts.items(), key=lambda item: item[1])
    if fewest < needed:
        raise DataError(
            f"The {what} {domain} has {fewest} training images, but a batch of {batch_size} from {number} {what}s "
            f"takes {needed} of each; lower train.batch_size."
        )


def check_training_set(
    train: Sequence[tuple[Any, ...]],
    train_sampler: str,
    batch_size: int,
    num_instances: int,
    num_cams: int | None = None,
    num_datasets: int | None = None,
) -> None:
    """Makes sure that the training set fills at least one batch: torchreid drops the last, incomplete one.

    Args:
        train: Training items (path, pid, camid, dsetid); dsetid is needed with ``num_datasets`` only.
        train_sampler: Name of torchreid's sampler (``sampler.train_sampler``).
        batch_size: ``train.batch_size``.
        num_instances: ``sampler.num_instances``; counts for the identity sampler only.
        num_cams: ``sampler.num_cams``; counts for the domain sampler only. None leaves the cameras unchecked.
        num_datasets: ``sampler.num_datasets``; counts for the data set sampler only. None leaves them unchecked.

    Raises:
        ConfigError: The batch is smaller than ``num_instances``, or cannot be shared out over cameras or data sets.
        DataError: Too few images, identities, cameras or data sets for one batch.
    """
    if train_sampler == "RandomIdentitySampler":
        if batch_size < num_instances:
            raise ConfigError(
                f"train.batch_size is {batch_size}, but RandomIdentitySampler needs at least "
                f"sampler.num_instances = {num_instances}."
            )
        needed = batch_size // num_instances
        found = len({item[1] for item in train})
        if found < needed:
            raise DataError(
                f"The training set has {found} identities, but a batch of {batch_size} with {num_instances} images "
                f"each takes {needed}; lower train.batch_size or raise sampler.num_instances."
            )
        check_identity_sampler(train, num_instances)
    elif len(train) < batch_size:
        raise DataError(
            f"The training set has {len(train)} images, fewer than train.batch_size = {batch_size}: no batch would "
            "be complete and nothing would be trained; lower train.batch_size."
        )
    if train_sampler == "RandomDomainSampler" and num_cams is not None:
        check_domain_sampler((item[2] for item in train), "camera", "sampler.num_cams", batch_size, num_cams)
    if train_sampler == "RandomDatasetSampler" and num_datasets is not None:
        check_domain_sampler((item[3] for item in train), "data set", "sampler.num_datasets", batch_size, num_datasets)
