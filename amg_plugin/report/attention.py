"""Mean attention over some images of a run's first target: kept by the run, so that a report needs no data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.utils.data import DataLoader, Subset
from yacs.config import CfgNode

from amg_plugin.checkpoint import Checkpoint
from amg_plugin.data.manager import build_test_loaders
from amg_plugin.deploy.images import spread
from amg_plugin.plots.attention import attention_of_images
from amg_plugin.runs.setup import fitted, use_gpu

#: Queries that the mean is taken over.
IMAGES = 64
_BATCH = 16


def mean_maps(cfg: CfgNode, checkpoints: Mapping[str, Checkpoint]) -> dict[str, Any]:
    """Attention of the class token, mean over heads and images.

    Args:
        cfg: The run's configuration.
        checkpoints: Networks by the section of the result that they belong to, without token reducers.

    Returns:
        Plain data: ``target``, ``images``, ``query`` (what asks), ``grid`` and ``maps``: per section and block a value
        for each patch, None for patches without a key.

    Raises:
        InputError: If the data or a checkpoint cannot be used.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.amg.check_images = cfg.amg.skip_unreadable  # the run has looked at them
    cfg.data.targets = list(cfg.data.targets)[:1]
    cfg.freeze()
    ((target, parts),) = build_test_loaders(cfg).items()
    queries = parts["query"].dataset
    images = Subset(queries, spread(list(range(len(queries))), IMAGES))
    device = torch.device("cuda" if use_gpu(cfg) else "cpu")
    found: dict[str, Any] = {"target": target, "images": len(images), "maps": {}}
    for name, checkpoint in checkpoints.items():
        model = fitted(checkpoint, cfg).build().to(device)
        maps = []
        for batch in DataLoader(images, _BATCH):
            seen = attention_of_images(model, batch["img"].to(device))
            maps += [one.mean() for one in seen]
            found |= {"query": seen[0].query, "grid": list(seen[0].grid)}
        mean = torch.stack(maps).mean(0)
        found["maps"][name] = [[None if value != value else round(value, 6) for value in row] for row in mean.tolist()]
    return found
