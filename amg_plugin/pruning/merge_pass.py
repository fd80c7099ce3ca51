"""Which tokens to merge: the network is run block by block, as merged so far, over the calibration images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from amg_plugin.errors import RunError
from amg_plugin.models.attention import TokenMeans
from amg_plugin.models.vit import backbone_of, make_prunable
from amg_plugin.pruning.merging import TokenDistances, Tokens, choose_pairs, merge_costs, transition
from amg_plugin.pruning.plan import PruningPlan
from amg_plugin.pruning.scorers import Calibration
from amg_plugin.pruning.surgery import current_plan, merge_tokens


@torch.no_grad()
def merged_plan(
    model: nn.Module, calibration: Calibration, scores: Mapping[int, Tensor], left: Mapping[int, int]
) -> PruningPlan:
    """Choose groups of tokens; the model stays as it is.

    The tokens that enter a block are held in memory for all calibration images.

    Args:
        model: The network, dense or merged already; then its groups become coarser.
        calibration: What may be run.
        scores: Per block in ``left``, the importance of the patch tokens that the network has there now.
        left: Per block that tokens are merged in front of, how many patch tokens it is to keep.

    Returns:
        The plan.

    Raises:
        RunError: If a score is negative or not finite, or a token is not finite.
    """
    backbone, plan = make_prunable(backbone_of(model)), current_plan(model)
    for block in left:
        if not torch.isfinite(scores[block]).all() or (scores[block] < 0).any():
            raise RunError(f"Token scores to merge by must be finite and at least 0; those of block {block} are not.")
    found = [Tokens.all(plan.num_patches)] * plan.depth
    before, last = found[0], max(left)
    with _restored(backbone, plan):
        streams = _entering(model, calibration)
        for block in range(last + 1):
            if block in left:
                current = Tokens(plan.tokens[block], plan.groups_of(block))
                weights = scores[block].detach().double().cpu()
                tokens = current.coarsened(before, weights)
                patches = torch.empty(plan.num_patches, dtype=torch.float64)
                for group, weight in zip(current.groups, weights, strict=True):
                    patches[list(group)] = weight / len(group)
                entering = _patches_of(backbone, streams, before, tokens)
                found[block] = _merge_round(tokens, patches, left[block], entering, calibration, block)
            tokens = found[block]
            merge_tokens(backbone, block, before.groups, tokens.groups, tokens.groups)
            if block < last:
                streams = [backbone.blocks[block](stream) for stream in streams]
            before = tokens
    return plan.merge([tokens.positions for tokens in found], [tokens.groups for tokens in found])


def _merge_round(
    tokens: Tokens, importance: Tensor, left: int, entering: Iterator[Tensor], calibration: Calibration, block: int
) -> Tokens:
    """The ``left`` tokens that a block keeps out of those that come to it; ``importance`` is that of each position."""
    distances = TokenDistances()
    for patches in entering:
        distances.add(patches)
    mean = distances.mean(calibration.reduce).cpu()
    if not torch.isfinite(mean).all():
        raise RunError(
            f"The tokens that enter block {block} are not finite; the calibration pass gave NaN or infinity."
        )
    weights = tokens.sums(importance)
    costs = merge_costs(mean, tokens.sizes, weights)
    return tokens.joined(choose_pairs(costs, weights, len(tokens.groups) - left))


def _patches_of(
    backbone: VisionTransformer, streams: Sequence[Tensor], before: Tokens, tokens: Tokens
) -> Iterator[Tensor]:
    """The patch tokens ``[B, N, D]`` of each batch, merged where they have to be in any case."""
    means = TokenMeans(transition(before.groups, tokens.groups), streams[0])
    for stream in streams:
        yield means(stream[:, backbone.num_prefix_tokens :])


class _EnoughError(Exception):
    """The first block was reached; nothing behind it is needed."""


def _entering(model: nn.Module, calibration: Calibration) -> list[Tensor]:
    """The tokens ``[B, N, D]`` that enter the first block, batch by batch; nothing behind it is computed."""
    streams = []

    def keep(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        streams.append(given[0].detach())
        raise _EnoughError

    handle = backbone_of(model).blocks[0].register_forward_pre_hook(keep)
    try:
        for batch in calibration.batches():
            try:
                calibration.forward(batch)
            except _EnoughError:
                continue
    finally:
        handle.remove()
    if not streams:
        raise RunError("There are no calibration batches to merge tokens by.")
    return streams


@contextmanager
def _restored(backbone: VisionTransformer, plan: PruningPlan) -> Iterator[None]:
    """Undo what is done to the blocks meanwhile."""
    try:
        yield
    finally:
        for block in range(plan.depth):
            merge_tokens(backbone, block, *(plan.groups_at(number) for number in (block - 1, block, block + 1)))
