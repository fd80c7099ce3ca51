"""torchreid's image data manager with the plugin's checks and transforms."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amg_plugin import compat
from amg_plugin.data.checks import check_dataset_folder, check_images, check_training_set
from amg_plugin.data.datasets import NO_TRAINING_DATA
from amg_plugin.data.occlusion import Coverage
from amg_plugin.data.transforms import (
    TORCHREID_TRANSFORMS,
    RandomOcclusion,
    check_transform_names,
    place_plugin_transforms,
)
from amg_plugin.errors import AMGError, ConfigError, DataError

if TYPE_CHECKING:
    from yacs.config import CfgNode

logger = logging.getLogger(__name__)

_SAMPLERS = (
    "RandomIdentitySampler", "RandomDomainSampler", "RandomDatasetSampler", "SequentialSampler", "RandomSampler",
)  # fmt: skip
# What torchreid's manager hands on to the data sets.
_DATASET_OPTIONS = ("combineall", "split_id", "cuhk03_labeled", "cuhk03_classic_split", "market1501_500k")


class AMGImageDataManager(compat.torchreid().data.ImageDataManager):
    """``torchreid.data.ImageDataManager`` that checks its input first and knows more transforms.

    Args:
        root: Data root.
        sources: Name(s) of the training data sets.
        targets: Name(s) of the test data sets; the sources if omitted.
        height: Image height in pixels.
        width: Image width in pixels.
        transforms: Names out of :data:`amg_plugin.data.transforms.TRANSFORMS`.
        check_images: Decode every image before the run.
        transform_settings: Per transform of the plugin, further arguments of what places it.
        **kwargs: Everything else that torchreid's manager takes, with its defaults.

    Raises:
        ConfigError: Unknown transform, data set or sampler.
        DataError: Missing or empty folder, unreadable image, training set that fills no batch.
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
        transform_settings: Mapping[str, Mapping[str, Any]] | None = None,
        **kwargs: Any,
    ):
        names = check_transform_names(transforms)
        sources = _names_of("data.sources", sources)
        targets = _names_of("data.targets", targets) if targets else sources
        found = _check_input(root, sources, targets, check_images, kwargs)
        super().__init__(
            root=root,
            sources=sources,
            targets=targets,
            height=height,
            width=width,
            transforms=[name for name in names if name in TORCHREID_TRANSFORMS],
            **kwargs,
        )
        # The data sets share these two objects, so changing their lists is enough.
        place_plugin_transforms(names, self.transform_tr, self.transform_te, height, width, transform_settings)
        #: What torchreid has added to the camera labels of each source when it added the training sets up.
        self.camera_offsets = _camera_offsets(self.train_loader.dataset.train, [found[name] for name in sources])


def build_datamanager(cfg: CfgNode) -> AMGImageDataManager:
    """Builds the data manager that a configuration asks for.

    Args:
        cfg: Configuration as made by ``amg_plugin.get_default_config``.

    Returns:
        The data manager.

    Raises:
        ConfigError: ``data.type`` is not ``image``, or an unknown name.
        DataError: See :class:`AMGImageDataManager`.
    """
    if cfg.data.type != "image":
        raise ConfigError(f"data.type is {cfg.data.type!r}; amg_plugin works on 'image' only.")
    return AMGImageDataManager(
        root=cfg.data.root,
        sources=list(cfg.data.sources),
        targets=list(cfg.data.targets),
        height=cfg.data.height,
        width=cfg.data.width,
        transforms=list(cfg.data.transforms),
        check_images=cfg.amg.check_images,
        transform_settings={"random_occlusion": {"occlusion": _occlusion(cfg.amg.occlusion)}},
        k_tfm=cfg.data.k_tfm,
        norm_mean=list(cfg.data.norm_mean),
        norm_std=list(cfg.data.norm_std),
        use_gpu=cfg.use_gpu,
        split_id=cfg.data.split_id,
        combineall=cfg.data.combineall,
        load_train_targets=cfg.data.load_train_targets,
        batch_size_train=cfg.train.batch_size,
        batch_size_test=cfg.test.batch_size,
        workers=cfg.data.workers,
        num_instances=cfg.sampler.num_instances,
        num_cams=cfg.sampler.num_cams,
        num_datasets=cfg.sampler.num_datasets,
        train_sampler=cfg.sampler.train_sampler,
        train_sampler_t=cfg.sampler.train_sampler_t,
        cuhk03_labeled=cfg.cuhk03.labeled_images,
        cuhk03_classic_split=cfg.cuhk03.classic_split,
        market1501_500k=cfg.market1501.use_500k_distractors,
    )


def _occlusion(options: CfgNode) -> RandomOcclusion:
    """The step that ``amg.occlusion`` describes."""
    return RandomOcclusion(options.probability, Coverage(options.min_coverage, options.max_coverage))


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
    root: str, sources: list[str], targets: list[str], decode: bool, options: dict[str, Any]
) -> dict[str, Any]:
    """Checks names, folders, the training set's size and (``decode``) every image.

    Args:
        root: Data root.
        sources: Training data sets.
        targets: Test data sets.
        decode: Read every image.
        options: Further arguments of torchreid's manager.

    Returns:
        The data sets by name.

    Raises:
        ConfigError: An unknown name, or sources and targets that must not overlap do.
        DataError: Input that cannot be used.
    """
    load_targets = bool(options.get("load_train_targets", False))
    samplers = {"sampler.train_sampler": options.get("train_sampler", "RandomSampler")}
    if load_targets:
        samplers["sampler.train_sampler_t"] = options.get("train_sampler_t", "RandomSampler")
        if shared := sorted(set(sources) & set(targets)):
            raise ConfigError(
                f"data.load_train_targets needs targets other than the sources; both have {', '.join(shared)}."
            )
    for key, value in samplers.items():
        if value not in _SAMPLERS:
            raise ConfigError(f"{key} is {value!r}; allowed are {', '.join(_SAMPLERS)}.")
    folders = {name: check_dataset_folder(name, root) for name in dict.fromkeys([*sources, *targets])}
    trained_on = {*sources, *targets} if load_targets else set(sources)
    found = {
        name: _open_dataset(name, root, folder, "train" if name in trained_on else "query", options)
        for name, folder in folders.items()
    }

    batch_size = options.get("batch_size_train", 32)
    num_instances = options.get("num_instances", 4)
    sizes = (batch_size, num_instances, options.get("num_cams", 1), options.get("num_datasets", 1))
    _check_part(sources, found, samplers["sampler.train_sampler"], *sizes)
    if load_targets:
        _check_part(targets, found, samplers["sampler.train_sampler_t"], *sizes)

    if decode:
        items = [item for name in sources if name != NO_TRAINING_DATA for item in found[name].train]
        items += [item for name in targets for item in (*found[name].query, *found[name].gallery)]
        if load_targets:
            items += [item for name in targets for item in found[name].train]
        count = check_images((item[0] for item in items), options.get("workers", 4))
        logger.info("%d images read without error", count)
    return found


def _check_part(names: list[str], found: dict[str, Any], sampler: str, *sizes: int) -> None:
    """Checks that the training sets of ``names`` together fill a batch."""
    # pids and camids count from 0 in each data set; torchreid shifts them when it adds data sets up.
    train = [(item[0], (name, item[1]), f"{item[2]} of {name}", name) for name in names for item in found[name].train]
    check_training_set(train, sampler, *sizes)


def _open_dataset(name: str, root: str, folder: Path | None, mode: str, options: dict[str, Any]) -> Any:
    """Lists a data set's images by its own class; its errors become a DataError that names the folder."""
    chosen = {key: options[key] for key in _DATASET_OPTIONS if key in options}
    try:
        dataset = compat.image_dataset_factory()[name](root=root, mode=mode, verbose=False, **chosen)
    except AMGError:
        raise
    except IndexError as error:  # torchreid looks at the first image of each part
        raise DataError(f"The data set {name} in {folder or root} lacks training, query or gallery images.") from error
    except Exception as error:  # a stock class raises whatever its parser meets
        raise DataError(f"The data set {name} in {folder or root} cannot be read: {error}.") from error
    return dataset
