"""How many tokens a reducer leaves in each block, so that a share of the counted MACs is saved."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from yacs.config import CfgNode

from amg_plugin.errors import CheckpointError, ConfigError
from amg_plugin.models import complexity
from amg_plugin.models.build import build_network
from amg_plugin.models.complexity import BlockCost
from amg_plugin.models.reducers import TokenReducer
from amg_plugin.models.spec import ModelSpec, ReducerSpec
from amg_plugin.registries import REDUCERS

#: Largest distance between the saving that was asked for and the counted one, as a share of the dense MACs.
TOLERANCE = 0.005
_STEPS = 256


def with_reducer(spec: ModelSpec, method: str, saving: float) -> ModelSpec:
    """Describe the same network with a reducer that saves a share of its MACs.

    Every stage takes away what the reducer makes of one common strength (token merging the same number everywhere,
    token dropping the same share); what is missing to the target is made up one token at a time, from the first block.

    Args:
        spec: The network without a reducer.
        method: A registered token reducer.
        saving: Share of the counted MACs of ``spec`` to save, in (0, 1).

    Raises:
        ConfigError: If the target is more than half a point away from every choice.
    """
    # timm may read the rates of stochastic depth from a tensor, and meta has none.
    reference, reducer = replace(spec, reducer=None, drop_path=0.0), REDUCERS.load(method)()
    with torch.device("meta"):
        backbone = build_network(reference).backbone
        patches, depth = backbone.patch_embed.num_patches, len(backbone.blocks)
        model = build_network(replace(reference, reducer=ReducerSpec(method, (patches,) * depth)))
    dense = complexity.count(model, *spec.image_size)["macs"]
    blocks, prefix = model.backbone.blocks, model.backbone.num_prefix_tokens
    costs = [(BlockCost.of(block), (block.attn.num_heads, block.mlp.fc2.in_features)) for block in blocks]

    def saved(tokens: Sequence[int]) -> float:
        left = 0
        for (cost, sizes), before, after in zip(costs, [patches, *tokens[:-1]], tokens, strict=True):
            left += cost.macs(*sizes, prefix + before, prefix + before, prefix + after)
            left += reducer.extra_macs(before, after, cost.head_dim)
        return (whole - left) / dense

    whole = sum(cost.macs(*sizes, *(prefix + patches,) * 3) for cost, sizes in costs)
    tokens = _refine(_common(reducer, patches, depth, saved, saving), reducer, patches, saved, saving)
    for block, leaving in zip(blocks, tokens, strict=True):
        block.leaving = leaving
    reached = 1 - complexity.count(model, *spec.image_size)["macs"] / dense
    if abs(reached - saving) > TOLERANCE:
        raise ConfigError(
            f"amg.target_macs_saving {saving:g} cannot be met by amg.reducer '{method}' on this network; the nearest "
            f"is {reached:.3f}."
        )
    return replace(spec, reducer=ReducerSpec(method, tuple(tokens), saving))


def fit_reducer(spec: ModelSpec, amg: CfgNode) -> ModelSpec:
    """Give a network, of a configuration or a checkpoint, the reducer that the ``amg`` node asks for.

    Raises:
        CheckpointError: If the network has another reducer.
        ConfigError: If the target cannot be met.
    """
    wanted = amg.reducer if amg.reducer in REDUCERS else None
    if spec.reducer is None:
        return spec if wanted is None else with_reducer(spec, wanted, amg.target_macs_saving)
    if (spec.reducer.method, spec.reducer.saving) != (wanted, amg.target_macs_saving):
        raise CheckpointError(
            f"The checkpoint's network has amg.reducer '{spec.reducer.method}' with amg.target_macs_saving "
            f"{spec.reducer.saving:g}, the configuration says '{amg.reducer}' with {amg.target_macs_saving:g}; use the "
            "checkpoint's values."
        )
    return spec


def _common(reducer: TokenReducer, patches: int, depth: int, saved: Callable, saving: float) -> list[int]:
    """Tokens that leave each block at the largest common strength that does not save too much."""
    stages = reducer.stages(depth)

    def tokens(step: int) -> list[int]:
        counts, left = [], patches
        for block in range(depth):
            if block in stages:
                left = reducer.leaving(step / _STEPS, left, patches)
            counts.append(left)
        return counts

    # Strength 0 saves nothing, so that every step up to the number of those that fit does.
    return tokens(bisect_right(range(1, _STEPS + 1), saving, key=lambda step: saved(tokens(step))))


def _refine(start: list[int], reducer: TokenReducer, patches: int, saved: Callable, saving: float) -> list[int]:
    """Take one more token at a time, wherever the saving then does not exceed the target by more than half a token."""
    stages = reducer.stages(len(start))
    best, distance = start, abs(saved(start) - saving)
    for place in stages:
        while True:
            fewer = [count - (block >= place) for block, count in enumerate(best)]
            entering = [patches, *fewer[:-1]]
            if any(after < reducer.fewest(before) for before, after in zip(entering, fewer, strict=True)):
                break
            reached = saved(fewer)
            if abs(reached - saving) >= distance or (reached > saving and place != stages[-1]):
                break
            best, distance = fewer, abs(reached - saving)
            if reducer.evenly:
                break
    return best
