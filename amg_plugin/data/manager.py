"""torchreid's image data manager with the plugin's checks and transforms."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader, Sampler

from amg_plugin import compat
from amg_plugin.config.schema import SAMPLERS
from amg_plugin.data.cache import ReadDataset, keep_images, reading
from amg_plugin.data.checks.folders import Batch, check_training_set, known_datasets
from amg_plugin.data.checks.inspection import Inspection, inspect_data
from amg_plugin.data.datasets.local import relabelled, usable_items
from amg_plugin.data.identities import identity_digest, list_digest
from amg_plugin.data.labels import Loaders
from amg_plugin.data.layout import TEST_PARTS
from amg_plugin.data.occlusion.settings import Coverage
from amg_plugin.data.replacing import Replacements
from amg_plugin.data.sampling import EvenBatches
from amg_plugin.data.seeding import SeededSampler
from amg_plugin.data.transforms import RandomOcclusion, check_transform_names, place_transforms
from amg_plugin.errors import ConfigError
from amg_plugin.registries import TRANSFORMS
from amg_plugin.utils import processes

if TYPE_CHECKING:
    from yacs.config import CfgNode

logger = logging.getLogger(__name__)

#: What torchreid's manager hands on to the data sets -> the key of a configuration that says it.
DATASET_OPTIONS = {
    "split_id": "data.split_id",
    "combineall": "data.combineall",
    "cuhk03_labeled": "cuhk03.labeled_images",
    "cuhk03_classic_split": "cuhk03.classic_split",
    "market1501_500k": "market1501.use_500k_distractors",
}


class AMGImageDataManager(compat.torchreid().data.ImageDataManager):
    """``torchreid.data.ImageDataManager`` that checks its input first and knows more transforms.

    Args:
        root: Data root.
        sources: Name(s) of the training data sets.
        targets: Name(s) of the test data sets; the sources if omitted.
        height: Image height in pixels.
        width: Image width in pixels.
        transforms: Names out of :data:`amg_plugin.registries.TRANSFORMS`.
        check_images: Decode every image before the run.
        cache_gb: Keep decoded, resized images in memory, up to so many 10^9 bytes, training first; 0 keeps none.
        skip_unreadable: Leave out images that cannot be read, and queries without a match, in place of refusing them.
            A training image that breaks later is replaced by another one of its identity.
        even_batches: Let ``RandomIdentitySampler`` draw every identity equally often.
        seed: Decides by which, and the order and the transforms of every epoch, however many processes read.
        transform_settings: Per transform of the plugin, further arguments of what places it.
        **kwargs: Everything else that torchreid's manager takes, with its defaults.

    Raises:
        ConfigError: Unknown transform, data set or sampler.
        DataError: Missing or empty folder, file names or labels that cannot be used, unreadable images, queries without
            a match (all of these together), or a training set that fills no batch.
    """

    def __init__(
        self,
        root: str = "",
        sources: str | Sequence[str] | None = None,
        targets: str | Sequence[str] | None = None,
        height: int = 256,
        width: int = 128,
        transforms: str | Sequence[str] | None = "random_flip",
        *,
        check_images: bool = True,
        skip_unreadable: bool = False,
        cache_gb: float = 0.0,
        even_batches: bool = False,
        seed: int = 0,
        transform_settings: Mapping[str, Mapping[str, Any]] | None = None,
        **kwargs: Any,
    ):
        names = check_transform_names(transforms)
        sources = _names_of("data.sources", sources)
        targets = _names_of("data.targets", targets) if targets else sources
        inspection = _check_input(root, sources, targets, check_images, skip_unreadable, kwargs)
        super().__init__(
            root=root,
            sources=sources,
            targets=targets,
            height=height,
            width=width,
            transforms=[name for name in names if TRANSFORMS.row(name).stock],
            **kwargs,
        )
        # The data sets share these two objects, so changing their lists is enough.
        place_transforms(names, self.transform_tr, self.transform_te, height, width, transform_settings)
        #: What torchreid has added to the camera labels of each source when it added the training sets up.
        found = inspection.datasets
        self.camera_offsets = _camera_offsets(self.train_loader.dataset.train, [found[name] for name in sources])
        if inspection.leaves_out:
            self._leave_out(inspection, kwargs)
        if even_batches:
            even = EvenBatches.of(self.train_loader, kwargs.get("num_instances", 4))
            self.train_loader = _rebuilt(self.train_loader, sampler=even)
        #: Who the training identities are; empty where a data set does not name them.
        self.identities = identity_digest(sources, found, self.train_loader.dataset.train)
        self._read_images(cache_gb, seed)
        for loader in (self.train_loader, self.train_loader_t):
            if skip_unreadable and loader is not None and isinstance(loader.dataset, ReadDataset):
                loader.dataset.replacements = Replacements(seed)

    def _read_images(self, gigabytes: float, seed: int) -> None:
        """Gives every loader the plugin's reading of images, from memory if there is any for them.

        Those of training get an order that follows from the seed. With memory, they keep their processes from epoch to
        epoch.
        """
        training = [name for name in ("train_loader", "train_loader_t") if getattr(self, name) is not None]
        tests = [(loaders, part) for loaders in self.test_loader.values() for part in loaders]
        every = [*(getattr(self, name) for name in training), *(loaders[part] for loaders, part in tests)]
        own = [loader.dataset for loader in every]
        datasets = iter(keep_images(own, gigabytes, self.train_loader.num_workers) if gigabytes else reading(own))
        for name in training:
            loader = getattr(self, name)
            sampler = SeededSampler(loader.sampler, seed, batch=loader.batch_size)
            changes = {"dataset": next(datasets), "sampler": sampler}
            changes["batch_size"] = loader.batch_size // processes.world()
            # Processes that are kept would take fewer of the run's random numbers, so they take them from elsewhere.
            changes["generator"] = torch.Generator().manual_seed(seed)
            changes["persistent_workers"] = bool(gigabytes and loader.num_workers)
            setattr(self, name, _rebuilt(loader, **changes))
        for loaders, part in tests:
            loaders[part] = _rebuilt(loaders[part], dataset=next(datasets))

    def _leave_out(self, inspection: Inspection, options: dict[str, Any]) -> None:
        """Takes files out of every loader."""
        build = compat.torchreid().data.sampler.build_train_sampler
        for name, key in (("train_loader", "train_sampler"), ("train_loader_t", "train_sampler_t")):
            if (loader := getattr(self, name)) is not None:
                sampler = options.get(key, "RandomSampler")
                make = partial(build, train_sampler=sampler, batch_size=loader.batch_size, **_sizes(options))
                setattr(self, name, leave_out_of_training(loader, inspection.unusable, make))
        # The number of cameras stays: theirs are not counted again.
        self._num_train_pids = self.train_loader.dataset.num_train_pids
        leave_out_of_tests(self.test_loader, inspection.unusable, inspection.unmatched)
        for name, loaders in self.test_loader.items():
            self.test_dataset[name].update({part: loader.dataset.data for part, loader in loaders.items()})


def build_datamanager(cfg: CfgNode) -> AMGImageDataManager:
    """Builds the data manager that a configuration asks for.

    Raises:
        ConfigError: ``data.type`` is not ``image``, or an unknown name.
        DataError: See :class:`AMGImageDataManager`.
        RunError: If another process of the run has other images.
    """
    _check_type(cfg)
    hidden = cfg.amg.occlusion
    occlusion = RandomOcclusion(hidden.probability, Coverage(hidden.min_coverage, hidden.max_coverage))
    manager = AMGImageDataManager(
        root=cfg.data.root,
        sources=list(cfg.data.sources),
        targets=list(cfg.data.targets),
        height=cfg.data.height,
        width=cfg.data.width,
        transforms=list(cfg.data.transforms),
        check_images=cfg.amg.check_images,
        skip_unreadable=cfg.amg.skip_unreadable,
        seed=cfg.train.seed,
        even_batches=cfg.amg.even_batches,
        cache_gb=cfg.amg.cache_gb if cfg.amg.cache_images == "auto" else 0.0,
        transform_settings={"random_occlusion": {"occlusion": occlusion}},
        k_tfm=cfg.data.k_tfm,
        norm_mean=list(cfg.data.norm_mean),
        norm_std=list(cfg.data.norm_std),
        use_gpu=cfg.use_gpu,
        load_train_targets=cfg.data.load_train_targets,
        batch_size_train=cfg.train.batch_size,
        batch_size_test=cfg.test.batch_size,
        workers=cfg.data.workers,
        num_instances=cfg.sampler.num_instances,
        num_cams=cfg.sampler.num_cams,
        num_datasets=cfg.sampler.num_datasets,
        train_sampler=cfg.sampler.train_sampler,
        train_sampler_t=cfg.sampler.train_sampler_t,
        **dataset_options(cfg),
    )
    if processes.world() > 1:
        processes.same_on_all(list_digest(manager.train_loader.dataset.train), "list of training images")
    if cfg.amg.batches_per_epoch:
        manager.train_loader = shortened(manager.train_loader, cfg.amg.batches_per_epoch)
    return manager


def build_test_loaders(cfg: CfgNode) -> Loaders:
    """The loaders that torchreid's data manager has for evaluation, without any training data.

    Raises:
        ConfigError: ``data.type`` is not ``image``, or a name is unknown.
        DataError: A folder is missing or empty, file names or labels cannot be used, images cannot be read, or queries
            have no match; all of these together.
    """
    _check_type(cfg)
    names, targets = check_transform_names(list(cfg.data.transforms)), list(cfg.data.targets)
    options = {**dataset_options(cfg), "combineall": False}
    inspection = inspect_data(
        cfg.data.root,
        [],
        targets,
        decode=cfg.amg.check_images,
        skip=cfg.amg.skip_unreadable,
        workers=cfg.data.workers,
        options=options,
    )
    inspection.refuse()
    size = cfg.data.height, cfg.data.width
    train, test = compat.torchreid().data.transforms.build_transforms(
        *size,
        transforms=[],  # of training
        norm_mean=list(cfg.data.norm_mean),
        norm_std=list(cfg.data.norm_std),
    )
    place_transforms(names, train, test, *size)
    known, pinned = known_datasets(), bool(cfg.use_gpu and torch.cuda.is_available())
    loaders: dict[str, dict[str, DataLoader]] = {target: {} for target in targets}
    for target, part in itertools.product(targets, TEST_PARTS):
        verbose = part == "query"
        dataset = known[target](root=cfg.data.root, transform=test, mode=part, verbose=verbose, **options)
        (dataset,) = reading([dataset])
        loader = DataLoader(dataset, cfg.test.batch_size, num_workers=cfg.data.workers, pin_memory=pinned)
        loaders[target][part] = loader
    leave_out_of_tests(loaders, inspection.unusable, inspection.unmatched)
    return loaders


def dataset_options(cfg: CfgNode) -> dict[str, Any]:
    """What a configuration says to the data set classes themselves."""
    return {name: attrgetter(key)(cfg) for name, key in DATASET_OPTIONS.items()}


def _check_type(cfg: CfgNode) -> None:
    if cfg.data.type != "image":
        raise ConfigError(f"data.type is {cfg.data.type!r}; amg_plugin works on 'image' only.")


def _names_of(key: str, value: str | Sequence[str] | None) -> list[str]:
    """The data set names given for ``key``, as a list."""
    names = [value] if isinstance(value, str) else list(value or [])
    if not names:
        raise ConfigError(f"{key} names no data set.")
    return names


def _camera_offsets(combined: list[tuple[Any, ...]], parts: list[Any]) -> list[int]:
    """Compare the first image of each training set with itself in the sum."""
    if len(parts) == 1:
        return [0]
    offsets, place = [], 0
    for part in parts:
        offsets.append(combined[place][2] - part.train[0][2])
        place += len(part.train)
    return offsets


def _check_input(
    root: str, sources: list[str], targets: list[str], decode: bool, skip: bool, options: dict[str, Any]
) -> Inspection:
    """Checks names and samplers, everything about the data, and that the training set fills a batch."""
    load_targets = bool(options.get("load_train_targets", False))
    samplers = {"sampler.train_sampler": options.get("train_sampler", "RandomSampler")}
    if load_targets:
        samplers["sampler.train_sampler_t"] = options.get("train_sampler_t", "RandomSampler")
        if shared := sorted(set(sources) & set(targets)):
            raise ConfigError(
                f"data.load_train_targets needs targets other than the sources; both have {', '.join(shared)}."
            )
    for key, value in samplers.items():
        if value not in SAMPLERS:
            raise ConfigError(f"{key} is {value!r}; allowed are {', '.join(SAMPLERS)}.")
    inspection = inspect_data(
        root,
        sources,
        targets,
        train_targets=load_targets,
        decode=decode,
        skip=skip,
        workers=options.get("workers", 4),
        options={key: options[key] for key in DATASET_OPTIONS if key in options},
    )
    inspection.refuse()
    unusable = inspection.unusable
    parts = {
        name: relabelled(usable_items(dataset.train, unusable)) if unusable else dataset.train
        for name, dataset in inspection.datasets.items()
    }
    for names, sampler in zip((sources, targets), samplers.values(), strict=False):  # targets have one if trained on
        # pids and camids count from 0 in each data set; torchreid shifts them when it adds data sets up.
        train = [(item[0], (name, item[1]), f"{item[2]} of {name}", name) for name in names for item in parts[name]]
        check_training_set(train, Batch(sampler, options.get("batch_size_train", 32), **_sizes(options)))
    return inspection


def _sizes(options: Mapping[str, Any]) -> dict[str, int]:
    """How many of what there are in a batch."""
    return {key: options[key] for key in ("num_instances", "num_cams", "num_datasets") if key in options}


def leave_out_of_training(
    loader: DataLoader, unusable: Collection[str], make_sampler: Callable[[list[tuple[Any, ...]]], Any]
) -> DataLoader:
    """The training loader without the ``unusable`` files; its data set is changed in place."""
    dataset = loader.dataset
    before = len({item[1] for item in dataset.train})
    dataset.train = dataset.data = relabelled(usable_items(dataset.train, unusable))
    dataset.num_train_pids = dataset.get_num_pids(dataset.train)
    if lost := before - dataset.num_train_pids:
        logger.warning("%d of %d training identities have no readable image and are left out", lost, before)
    return _rebuilt(loader, sampler=make_sampler(dataset.train))


def leave_out_of_tests(loaders: Loaders, unusable: Collection[str], unmatched: Mapping[str, Collection[str]]) -> None:
    """Take files out of query and gallery loaders, in place."""
    for target, parts in loaders.items():
        for part, loader in parts.items():
            alone = unmatched.get(target, ()) if part == "query" else ()
            items = usable_items(loader.dataset.data, {*unusable, *alone})
            loader.dataset.data = items
            setattr(loader.dataset, part, items)


class FirstItems(Sampler):
    """The first ``count`` items of another sampler, which shuffles again each epoch as before."""

    def __init__(self, sampler: Sampler, count: int) -> None:
        self.sampler, self.count = sampler, count

    def __iter__(self) -> Iterator[int]:
        return itertools.islice(iter(self.sampler), self.count)

    def __len__(self) -> int:
        return min(self.count, len(self.sampler))


def shortened(loader: DataLoader, batches: int) -> DataLoader:
    """The same training loader with epochs of at most ``batches`` batches, for trials on slow machines."""
    sampler = loader.sampler
    if isinstance(sampler, SeededSampler):
        return _rebuilt(loader, sampler=sampler.other(FirstItems(sampler.sampler, batches * sampler.batch)))
    return _rebuilt(loader, sampler=FirstItems(sampler, batches * loader.batch_size))


def _rebuilt(loader: DataLoader, **changes: Any) -> DataLoader:
    """A loader with some of its settings changed."""
    names = ("dataset", "sampler", "batch_size", "num_workers", "pin_memory", "drop_last", "generator")
    kept = {name: getattr(loader, name) for name in (*names, "persistent_workers")}
    return DataLoader(**{**kept, **changes})
