"""How many tokens a reducer leaves in each block, so that a share of the counted MACs is saved."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from yacs.config import CfgNode

from amg_plugin.errors import CheckpointError, ConfigError
from amg_plugin.models import complexity
from amg_plugin.models.build import build_network
from amg_plugin.models.cost import BlockCost
from amg_plugin.models.reducers.spec import METHODS, ReducerSpec, fewest
from amg_plugin.models.spec import ModelSpec

#: Largest distance between the saving that was asked for and the counted one, as a share of the dense MACs.
TOLERANCE = 0.005
_STEPS = 256


def evit_stages(depth: int) -> tuple[int, ...]:
    """Blocks that drop tokens: after a quarter, a half and three quarters, as the paper (4th, 7th, 10th of 12)."""
    return tuple(sorted({depth * quarter // 4 for quarter in (1, 2, 3)}))


def with_reducer(spec: ModelSpec, method: str, saving: float) -> ModelSpec:
    """Describe the same network with a reducer that saves a share of its MACs.

    Token merging takes the same number of tokens in every block, token dropping keeps the same share at every stage, as
    their papers do; what is missing to the target is then made up one token at a time, from the first block on.

    Args:
        spec: The network without a reducer.
        method: ``"tome"`` or ``"evit"``.
        saving: Share of the counted MACs of ``spec`` to save, in (0, 1).

    Raises:
        ConfigError: If the target is more than half a point away from every choice.
    """
    # timm may read the rates of stochastic depth from a tensor, and meta has none.
    plain = replace(spec, reducer=None, drop_path=0.0)
    with torch.device("meta"):
        backbone = build_network(plain).backbone
        patches, depth = backbone.patch_embed.num_patches, len(backbone.blocks)
        model = build_network(replace(plain, reducer=ReducerSpec(method, (patches,) * depth)))
    dense = complexity.count(model, *spec.image_size)["macs"]
    blocks, prefix = model.backbone.blocks, model.backbone.num_prefix_tokens
    costs = [(BlockCost.of(block), block.attn.num_heads) for block in blocks]

    def saved(tokens: Sequence[int]) -> float:
        left = 0
        for (cost, heads), before, after in zip(costs, [patches, *tokens[:-1]], tokens, strict=True):
            left += cost.macs(heads, prefix + before, prefix + before, prefix + after)
            if method == "tome" and after < before:
                left += (before - before // 2) * (before // 2) * cost.head_dim  # similarities of the two halves
        return (whole - left) / dense

    whole = sum(cost.macs(heads, *(prefix + patches,) * 3) for cost, heads in costs)
    choose = _merge_schedule if method == "tome" else _drop_schedule
    start = choose(patches, depth, saved, saving)
    tokens = _refine(start, method, patches, saved, saving)
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
    """Give a network the reducer that the configuration asks for.

    Args:
        spec: The network, of a configuration or of a checkpoint.
        amg: The node; ``amg.reducer`` and ``amg.target_macs_saving`` count.

    Raises:
        CheckpointError: If the network has another reducer.
        ConfigError: If the target cannot be met.
    """
    wanted = amg.reducer if amg.reducer in METHODS else None
    if spec.reducer is None:
        return spec if wanted is None else with_reducer(spec, wanted, amg.target_macs_saving)
    if (spec.reducer.method, spec.reducer.saving) != (wanted, amg.target_macs_saving):
        raise CheckpointError(
            f"The checkpoint's network has amg.reducer '{spec.reducer.method}' with amg.target_macs_saving "
            f"{spec.reducer.saving:g}, the configuration says '{amg.reducer}' with {amg.target_macs_saving:g}; use the "
            "checkpoint's values."
        )
    return spec


def _merge_schedule(patches: int, depth: int, saved: Callable, saving: float) -> list[int]:
    """The largest constant number of merges per block that does not save too much."""

    def tokens(merges: int) -> list[int]:
        counts, left = [], patches
        for _ in range(depth):
            left -= min(merges, left // 2)
            counts.append(left)
        return counts

    low, high = 0, max(patches // 2, 1)
    while low < high:
        middle = (low + high + 1) // 2
        if saved(tokens(middle)) <= saving:
            low = middle
        else:
            high = middle - 1
    return tokens(low)


def _drop_schedule(patches: int, depth: int, saved: Callable, saving: float) -> list[int]:
    """The smallest common keep rate of the stages that does not save too much."""
    stages = evit_stages(depth)

    def tokens(rate: float) -> list[int]:
        counts, left = [], patches
        for block in range(depth):
            if block in stages:
                keep = max(math.ceil(rate * left), 1)
                left = min(left, keep + 1)
            counts.append(left)
        return counts

    rates = [step / _STEPS for step in range(_STEPS + 1)]
    low, high = 0, _STEPS  # keeping everything saves nothing
    while low < high:
        middle = (low + high) // 2
        if saved(tokens(rates[middle])) <= saving:
            high = middle
        else:
            low = middle + 1
    return tokens(rates[high])


def _refine(start: list[int], method: str, patches: int, saved: Callable, saving: float) -> list[int]:
    """Take one more token at a time, wherever the saving then does not exceed the target by more than half a token."""
    depth = len(start)
    places = range(depth) if method == "tome" else evit_stages(depth)
    best, distance = start, abs(saved(start) - saving)
    for place in places:
        while True:
            fewer = [count - (block >= place) for block, count in enumerate(best)]
            entering = [patches, *fewer[:-1]]
            if any(after < fewest(method, before) for before, after in zip(entering, fewer, strict=True)):
                break
            reached = saved(fewer)
            if abs(reached - saving) >= distance or (reached > saving and place != places[-1]):
                break
            best, distance = fewer, abs(reached - saving)
            if method == "tome":
                break
    return best
