"""What a figure shows, as tensors: attention of the class token per head and position, and scores laid out by the plan.

Everything is laid out by the numbering of the dense model, so that a pruned network and the dense one it comes from can
be put side by side. What a network does not have (removed heads, patches without a key) is NaN. Where
tokens are merged, patches share what the token gets that stands for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from amg_plugin.errors import PlanError
from amg_plugin.models.vit import backbone_of
from amg_plugin.pruning import PruningPlan, current_plan
from amg_plugin.pruning.recorder import AttentionRecorder


@dataclass(frozen=True)
class ImageAttention:
    """Attention to the patches of one image."""

    maps: Tensor
    """``[blocks, heads, patches]``, float32: each patch's share of the attention; the rest goes to prefix tokens."""
    plan: PruningPlan
    grid: tuple[int, int]
    query: str
    """What asks: ``"class token"``, or ``"mean of all tokens"`` where there is none."""

    def mean(self) -> Tensor:
        """Mean over the heads of each block, ``[blocks, patches]``; NaN for patches without a key."""
        return self.maps.nanmean(1)


class _QueryRecorder(AttentionRecorder):
    """Keeps the attention that the class token pays to the patches, of one batch."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.kept: list[Tensor] = [torch.empty(0)] * len(self.blocks)

    def observe(self, place: int, attention: Tensor) -> None:
        """Take in ``[B, H, Q, K]``, keep ``[B, H, kept patches]``."""
        queries = slice(0, 1) if self.backbone.has_class_token else slice(None)
        patches = attention.detach()[:, :, queries, self.backbone.num_prefix_tokens :]
        self.kept[place] = patches.mean(2).float().cpu()


@torch.no_grad()
def attention_of_images(model: nn.Module, images: Tensor) -> list[ImageAttention]:
    """Attention of the class token (of all tokens, where there is none) in every block.

    A jigsaw branch, which runs the last block a second time on groups of patches, is not looked at.

    Args:
        model: A network of the plugin (``embed``), in eval mode.
        images: ``[B, 3, height, width]``, prepared as for the network.

    Returns:
        One per image.
    """
    backbone, plan = backbone_of(model), current_plan(model)
    with _QueryRecorder(model) as recorder:
        model.embed(images)
    maps = torch.full((len(images), plan.depth, max(plan.num_heads), plan.num_patches), torch.nan)
    for block, kept in enumerate(recorder.kept):
        # Keys come in the order of the kept positions, in every token variant.
        heads, (positions, tokens, sizes) = torch.tensor(plan.heads[block])[:, None], spread(plan, block)
        maps[:, block, heads, positions] = kept[:, :, tokens] / sizes
    query = "class token" if backbone.has_class_token else "mean of all tokens"
    grid = tuple(backbone.patch_embed.grid_size)
    return [ImageAttention(image, plan, grid, query) for image in maps]


def spread(plan: PruningPlan, block: int) -> tuple[Tensor, Tensor, Tensor]:
    """How values of a block's tokens are shared out among the positions that they stand for.

    Returns:
        Positions, the number of the token that stands for each, and how many positions that token stands for.
    """
    rows = [(position, number, len(group)) for number, group in enumerate(plan.groups_of(block)) for position in group]
    positions, tokens, sizes = torch.tensor(rows).unbind(1)
    return positions, tokens, sizes


def check_comparable(before: PruningPlan, after: PruningPlan) -> None:
    """Check that ``after`` is what pruning can have made of ``before``."""
    if (before.num_heads, before.num_patches) != (after.num_heads, after.num_patches):
        raise PlanError(
            f"The two checkpoints come from different dense models: {before.depth} blocks with "
            f"{max(before.num_heads)} heads and {before.num_patches} patches, and {after.depth} blocks with "
            f"{max(after.num_heads)} heads and {after.num_patches} patches."
        )
    if not before.contains(after):
        raise PlanError("The checkpoint before pruning lacks heads, tokens or neurons that the one after it still has.")


def kept_heads(plan: PruningPlan) -> Tensor:
    """Which heads are kept, bool ``[blocks, heads]``; False also where a block has fewer heads than others."""
    return _kept(plan.heads, max(plan.num_heads))


def kept_tokens(plan: PruningPlan) -> Tensor:
    """Which patch positions are kept, bool ``[blocks, patches]``; where tokens are merged, those whose token stays."""
    return _kept(plan.tokens, plan.num_patches)


def kept_neurons(plan: PruningPlan, cells: int) -> Tensor:
    """Which share of the neurons is kept, in their order and several to a cell: ``[blocks, cells or fewer]``."""
    kept = _kept(plan.neurons, max(plan.num_neurons)).float()
    return torch.stack([part.mean(1) for part in kept.tensor_split(min(cells, kept.shape[1]), dim=1)], dim=1)


def group_numbers(plan: PruningPlan) -> Tensor:
    """The number of the token that stands for each position, ``[blocks, patches]``; -1 for positions without one."""
    numbers = torch.full((plan.depth, plan.num_patches), -1)
    for block in range(plan.depth):
        positions, tokens, _ = spread(plan, block)
        numbers[block, positions] = tokens
    return numbers


def group_edges(groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where groups of several patches end.

    Args:
        groups: Numbers of the tokens ``[rows, columns]``; -1 for positions without one.

    Returns:
        Whether there is an edge right of each patch ``[rows, columns - 1]``, and below it ``[rows - 1, columns]``.
    """
    numbers = groups + 1
    several = (np.bincount(numbers.ravel()) > 1)[numbers] & (groups >= 0)
    beside = (groups[:, 1:] != groups[:, :-1]) & (several[:, 1:] | several[:, :-1])
    return beside, (groups[1:] != groups[:-1]) & (several[1:] | several[:-1])


def _kept(indices: Sequence[Sequence[int]], width: int) -> Tensor:
    kept = torch.zeros(len(indices), width, dtype=torch.bool)
    for block, chosen in enumerate(indices):
        kept[block, list(chosen)] = True
    return kept


def lay_out(scores: Sequence[Tensor], blocks: Sequence[int], indices: Sequence[Sequence[int]], width: int) -> Tensor:
    """Scores of the scored ``blocks`` at the places ``[blocks, width]`` of the dense model; NaN where there is none.

    ``indices`` has the dense numbers of what the network has, per block.
    """
    laid_out = torch.full((len(indices), width), torch.nan, dtype=torch.float64)
    for block, values in zip(blocks, scores, strict=True):
        laid_out[block, list(indices[block])] = values.detach().double().cpu()
    return laid_out


def per_block_norm(importance: Tensor) -> Tensor:
    """Token importance divided by the L2 norm of its block, as blocks are compared; ``[blocks, patches]``."""
    norms = torch.linalg.vector_norm(importance.nan_to_num(0.0), dim=1, keepdim=True)
    return importance / norms.clamp_min(torch.finfo(importance.dtype).tiny)
