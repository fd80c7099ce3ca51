"""Query and gallery of the targets alone: what an evaluation reads."""

from __future__ import annotations

import torch
from torch.utils.data import DataLoader
from yacs.config import CfgNode

from amg_plugin import compat
from amg_plugin.data.checks.inspection import inspect_data
from amg_plugin.data.datasets.names import known_datasets
from amg_plugin.data.layout import TEST_PARTS
from amg_plugin.data.loaders import Loaders, leave_out_of_tests
from amg_plugin.data.manager import dataset_options
from amg_plugin.data.transforms import check_transform_names, place_transforms
from amg_plugin.errors import ConfigError


def build_test_loaders(cfg: CfgNode) -> Loaders:
    """The loaders that torchreid's data manager has for evaluation, without any training data.

    Args:
        cfg: Configuration as made by ``amg_plugin.get_default_config``.

    Raises:
        ConfigError: ``data.type`` is not ``image``, or a name is unknown.
        DataError: A folder is missing or empty, file names or labels cannot be used, images cannot be read, or queries
            have no match; all of these together.
    """
    if cfg.data.type != "image":
        raise ConfigError(f"data.type is {cfg.data.type!r}; amg_plugin works on 'image' only.")
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
    loaders: dict[str, dict[str, DataLoader]] = {}
    for target in targets:
        loaders[target] = {}
        for part in TEST_PARTS:
            dataset = known_datasets()[target](
                root=cfg.data.root, transform=test, mode=part, verbose=part == "query", **options
            )
            pinned = bool(cfg.use_gpu and torch.cuda.is_available())
            loader = DataLoader(dataset, cfg.test.batch_size, num_workers=cfg.data.workers, pin_memory=pinned)
            loaders[target][part] = loader
    leave_out_of_tests(loaders, inspection.unusable, inspection.unmatched)
    return loaders
