"""Attention on covered patches: from masks on disk and an evaluator to shares per block."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from amg_plugin.data.labels import Loaders
from amg_plugin.data.layout import TEST_PARTS
from amg_plugin.data.occlusion.masks import COVERED, Grid, covered_by_masks
from amg_plugin.evaluation.evaluator import Evaluator
from amg_plugin.models.vit import backbone_of, unwrap
from amg_plugin.pruning.recorder import CoveredAttentionRecorder

logger = logging.getLogger(__name__)

Covered = Mapping[str, np.ndarray]
"""Image -> which of its patches are covered."""


def has_fixed_tokens(model: nn.Module) -> bool:
    """Whether the keys of each block are the same positions for every image, so that masks can be laid over them."""
    return getattr(getattr(unwrap(model), "spec", None), "reducer", None) is None


def grid_of(model: nn.Module) -> Grid:
    """How a network cuts its images into patches."""
    embed = backbone_of(model).patch_embed
    return Grid(tuple(embed.img_size), tuple(embed.patch_size), tuple(getattr(embed, "stride", embed.patch_size)))


def covered_targets(loaders: Loaders, model: nn.Module) -> dict[str, Covered]:
    """Targets that have masks, with the covered patches of their images.

    Args:
        loaders: Query and gallery of the targets.
        model: Gives image size and patches.

    Raises:
        DataError: Masks are missing, unreadable or of another size than their images.
    """
    if not has_fixed_tokens(model):
        logger.info("attention on covered patches is not reported: the model chooses its tokens image by image")
        return {}
    grid = grid_of(model)
    found = {}
    for target, parts in loaders.items():
        images = [item[0] for part in TEST_PARTS for item in parts[part].dataset.data]
        covered = covered_by_masks(images, grid, f"masks of {target}")
        if covered:
            found[target] = covered
    return found


@torch.no_grad()
def covered_attention(evaluator: Evaluator, target: str, covered: Covered) -> list[dict[str, float]]:
    """Run all images of a target that have a mask.

    Args:
        evaluator: Has the network and the loaders.
        target: Name of the target.
        covered: Its images with masks.

    Returns:
        Per block ``attention`` and ``keys``, see :meth:`CoveredAttentionRecorder.mean`.
    """
    model = unwrap(evaluator.model).eval()
    with CoveredAttentionRecorder(model) as recorder:
        for part in TEST_PARTS:
            loader = _with_masks(evaluator.loaders[target][part], covered)
            for batch in tqdm(loader, desc=f"attention, {target} {part}", leave=False, disable=None):
                recorder.covered = torch.from_numpy(np.stack([covered[path] for path in batch["impath"]]))
                model(*evaluator.inputs(target, batch))
    return recorder.mean()


def _with_masks(loader: DataLoader, covered: Covered) -> DataLoader:
    chosen = [place for place, item in enumerate(loader.dataset.data) if item[0] in covered]
    return DataLoader(
        Subset(loader.dataset, chosen),
        batch_size=loader.batch_size,
        num_workers=loader.num_workers,
        pin_memory=loader.pin_memory,
    )


def covered_section(covered: Covered, shares: Mapping[str, list[dict[str, float]]]) -> dict[str, Any]:
    """What ``result.json`` says about one target.

    Args:
        covered: Images with masks.
        shares: Per model, what :func:`covered_attention` gave.

    Returns:
        ``images``; ``patches``, the share of all patches that is covered, mean over the images; ``threshold``, the
        share of its area from which a patch counts as covered; ``models``.
    """
    patches = float(np.mean([mask.mean() for mask in covered.values()]))
    return {"images": len(covered), "patches": patches, "threshold": COVERED, "models": dict(shares)}
