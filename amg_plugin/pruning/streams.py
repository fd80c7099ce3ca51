"""A cut with its repair: two copies of a network side by side, block by block, on the same calibration images.

Beyond the paper (docs/beyond.md). Targets come from the network as it was just before the cut, so that fine-tuning
between cuts is not undone; no labels are needed.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from amg_plugin.errors import InputError, RunError
from amg_plugin.models.attention import PrunableBlock, TokenMeans
from amg_plugin.models.vit import backbone_of, make_prunable, temporarily, unwrap
from amg_plugin.pruning.merging import transition
from amg_plugin.pruning.plan import PruningPlan
from amg_plugin.pruning.repair import Moments, Reduce, check_tokens, fit_least_squares, fit_mean
from amg_plugin.pruning.surgery import apply_plan, behind_prefix, current_plan, prunable_blocks
from amg_plugin.registries import REPAIR_PASSES, REPAIRS

logger = logging.getLogger(__name__)

Stream = list[Tensor]
"""Tokens ``[B, N, D]`` at one place of a network, a tensor per calibration batch."""


@dataclass(frozen=True)
class Repair:
    """How a cut is repaired.

    Attributes:
        kind: ``"none"``, ``"mean"`` (biases and constant updates of tokens) or ``"least_squares"`` (also the weights of
            layers that lost columns, and of ``proj`` where keys are gone).
        images: Calibration images, in whole batches: the last batch may go beyond.
        way: ``"blocks"``: each block gets what the repaired blocks in front of it give. ``"one"``: each block gets
            what it got before the cut.
        ridge: Weight of the change of the weights, see :func:`amg_plugin.pruning.repair.fit_least_squares`.

    Raises:
        InputError: If ``kind`` or ``way`` is another word.
    """

    kind: str = "least_squares"
    images: int = 1024
    way: str = "blocks"
    ridge: float = 1e-2

    def __post_init__(self) -> None:
        for what, word, words in (("kind", self.kind, REPAIRS), ("way", self.way, REPAIR_PASSES)):
            if word not in words:
                raise InputError(f"The {what} of a repair is '{word}', but must be one of {', '.join(words)}.")

    @classmethod
    def from_config(cls, amg: CfgNode) -> Repair:
        """Read the ``amg`` configuration node."""
        return cls(amg.repair, amg.repair_images, amg.repair_pass, amg.repair_ridge)

    def check(self, model: nn.Module, targets: Iterable[str], images: int) -> None:
        """Check that a network can be repaired after cuts of ``targets``, before any work starts.

        Args:
            model: The network, as it is before the cuts.
            targets: What is removed: ``"heads"``, ``"tokens"``, ``"neurons"``.
            images: Calibration images that there will be.

        Raises:
            InputError: If a layer has more columns than there are calibration tokens, or no bias for a mean.
        """
        if self.kind == "none":
            return
        backbone, plan = backbone_of(model), current_plan(model)
        prefix = backbone.num_prefix_tokens
        biases = {"proj", "fc2"} if self.kind == "mean" else set()
        names = {"heads": {"proj"}, "neurons": {"fc2"}, "tokens": {"proj"} if plan.variant == "kv" else biases}
        for index in prunable_blocks(model):
            tokens = images * (prefix + (plan.num_patches if plan.variant == "kv" else len(plan.tokens[index])))
            for name in sorted(set().union(*(names[target] for target in targets))):
                layer = _layer(backbone.blocks[index], name)
                if self.kind == "mean":
                    _check_bias(layer, f"{name} of block {index}")
                else:
                    check_tokens(tokens, layer.in_features, f"{name} of block {index}")


def tokens_read(model: nn.Module) -> range:
    """Positions that are read behind the last block; all of them if the network does not say (``tokens_read``)."""
    backbone = backbone_of(model)
    length = backbone.num_prefix_tokens + backbone.patch_embed.num_patches
    return getattr(unwrap(model), "tokens_read", range(length))


@torch.no_grad()
def prune_and_repair(
    model: nn.Module,
    plan: PruningPlan,
    repair: Repair,
    batches: Iterable[Any],
    forward: Callable[[Any], Tensor] | None = None,
    reduce: Reduce | None = None,
) -> dict[str, float]:
    """Prune ``model`` in place to ``plan`` as :func:`apply_plan` does, and repair what the cut broke.

    Args:
        model: A plain timm ViT, or a network that holds one as ``backbone``. Everything is computed in eval mode; the
            model is then in the mode that it was in.
        plan: What to keep. Blocks whose tokens get constant updates are added to it.
        repair: How to repair.
        batches: Calibration batches, without augmentation.
        forward: Runs ``model`` on a batch and gives features ``[B, D]``; None: the batch is the model's argument.
        reduce: Adds a tensor up over processes that have a share of every batch each; None for one process.

    Returns:
        Relative squared distances of the features from those before the cut: ``as_cut`` and ``repaired``.

    Raises:
        InputError: If there are fewer calibration tokens than columns; the model then stays as it is.
        RunError: If statistics are not finite or a covariance is singular; the model then stays as it is.
    """
    forward, network, backbone = forward or model, unwrap(model), make_prunable(backbone_of(model))
    with temporarily("training", False, network.modules()):
        kept, tokens, before = _start(backbone, repair.images, batches, forward, reduce)
        plan = plan.with_updates(_updated(network, plan) if repair.kind != "none" else ())
        repaired = apply_plan(copy.deepcopy(backbone), plan)
        repair_blocks(backbone, repaired, tokens, repair, tokens_read(network), reduce)
        del tokens
        apply_plan(network, plan)
        as_cut = [forward(batch) for batch in kept]
        backbone.load_state_dict(repaired.state_dict())
        after = [forward(batch) for batch in kept]
    pairs = {"as_cut": as_cut, "repaired": after}
    distances = {name: feature_distance(features, before, reduce) for name, features in pairs.items()}
    logger.info(
        "repair (%s): relative squared distance of the features from those before the cut: %.4g as cut, %.4g repaired",
        repair.kind,
        *distances.values(),
    )
    return distances


def _start(
    backbone: nn.Module,
    images: int,
    batches: Iterable[Any],
    forward: Callable[[Any], Tensor],
    reduce: Reduce | None,
) -> tuple[list[Any], Stream, list[Tensor]]:
    """Calibration batches, the tokens that enter the first block, and the features."""
    kept, features, count = [], [], 0
    with _inputs(backbone.blocks[0]) as seen:
        tokens: Stream = []
        for batch in batches:
            kept.append(batch)
            features.append(forward(batch))
            tokens.append(seen[backbone.blocks[0]])
            count += _over_processes(len(tokens[-1]), reduce)
            if count >= images:
                break
    if not all(torch.isfinite(values).all() for values in features):
        raise RunError("The features of the network before the cut are not finite, so it cannot be repaired.")
    return kept, tokens, features


def _over_processes(count: int, reduce: Reduce | None) -> int:
    return count if reduce is None else int(reduce(torch.tensor(count)))


def feature_distance(features: Sequence[Tensor], reference: Sequence[Tensor], reduce: Reduce | None = None) -> float:
    """Squared distance of features ``[B, D]``, batch by batch, from others, relative to the squares of the latter.

    ``reduce`` adds a tensor up over processes.
    """
    pairs = list(zip(features, reference, strict=True))
    off = sum((one.double() - other.double()).square().sum().item() for one, other in pairs)
    whole = sum(other.double().square().sum().item() for _, other in pairs)
    if reduce is not None:
        off, whole = reduce(torch.tensor([off, whole], dtype=torch.float64)).tolist()
    return off / whole


def _updated(model: nn.Module, plan: PruningPlan) -> list[int]:
    """Blocks that lose tokens by ``plan`` and whose carried tokens somebody reads."""
    if plan.variant != "block":
        return []
    current, backbone = current_plan(model), backbone_of(model)
    patches_read = len(tokens_read(model)) > backbone.num_prefix_tokens
    return [
        index
        for index in range(plan.depth)
        if plan.tokens[index] != current.tokens[index] and (index < plan.depth - 1 or patches_read)
    ]


@contextmanager
def _inputs(*modules: nn.Module) -> Iterator[dict[nn.Module, Tensor]]:
    """What goes into modules, by module, whenever they run."""
    seen: dict[nn.Module, Tensor] = {}
    hooks = [
        module.register_forward_pre_hook(lambda module, args: seen.__setitem__(module, args[0])) for module in modules
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _layer(block: PrunableBlock, name: str) -> nn.Linear:
    return block.attn.proj if name == "proj" else block.mlp.fc2


@torch.no_grad()
def repair_blocks(
    before: nn.Module,
    after: nn.Module,
    tokens: Stream,
    repair: Repair,
    read: Sequence[int] | None = None,
    reduce: Reduce | None = None,
) -> None:
    """Repair the blocks of ``after``, in place, on the tokens that enter the first block.

    Args:
        before: The ViT before the cut, in eval mode, prunable.
        after: A copy of it that was cut.
        tokens: What enters the first block, ``[B, N, D]`` per batch.
        repair: How to repair.
        read: Positions that are read behind the last block; None for all.
        reduce: Adds a tensor up over processes.
    """
    plans = current_plan(before), current_plan(after)
    dense = pruned = tokens
    for index, (old, new) in enumerate(zip(before.blocks, after.blocks, strict=True)):
        aligned = _Alignment(*plans, index, before.num_prefix_tokens, tokens[0])
        changes = _changes(old, new)
        biases = _with_bias(new) - changes if aligned.tokens_change else set()
        targets: dict[str, Stream] = {name: [] for name in sorted(changes | biases, reverse=True)}
        outcome = []
        with _inputs(old.norm2, old.drop_path2) as seen:
            for x in dense:
                outcome.append(old(x))
                for name, values in targets.items():
                    middle, added = seen[old.norm2], seen[old.drop_path2]
                    values.append(aligned.inside(middle if name == "proj" else middle + added))
        source = pruned if repair.way == "blocks" else [aligned.entering(x) for x in dense]
        last = index == plans[0].depth - 1
        rows = list(read) if last and read is not None and len(read) <= before.num_prefix_tokens else None
        for name, values in targets.items() if repair.kind != "none" else ():
            kind = replace(repair, kind="mean") if name in biases else repair
            _repair_layer(new, name, source, values, rows, f"{name} of block {index}", kind, reduce)
        if new.token_update is not None and repair.kind != "none":
            _update_carried(old, new, source, outcome, index, reduce)
        if repair.way == "blocks":
            untouched = not changes and not aligned.tokens_change
            pruned = outcome if pruned is dense and untouched else [new(x) for x in pruned]
        dense = outcome


def _changes(old: PrunableBlock, new: PrunableBlock) -> set[str]:
    """Layers whose inputs a cut of heads, of neurons or of keys changed."""
    found = {name for name in ("proj", "fc2") if _layer(new, name).in_features < _layer(old, name).in_features}
    return found if _same(new.attn.kept_tokens, old.attn.kept_tokens) else found | {"proj"}


def _with_bias(block: PrunableBlock) -> set[str]:
    return {name for name in ("proj", "fc2") if _layer(block, name).bias is not None}


class _Alignment:
    """Makes tokens of one block before a cut those that there are after it."""

    def __init__(self, before: PruningPlan, after: PruningPlan, block: int, prefix: int, like: Tensor) -> None:
        merge = after.variant == "merge"
        self.tokens_change = after.variant != "kv" and before.tokens[block] != after.tokens[block]
        self._kept = None
        if self.tokens_change and not merge:
            place = {position: prefix + row for row, position in enumerate(before.tokens[block])}
            rows = [*range(prefix), *(place[position] for position in after.tokens[block])]
            self._kept = torch.tensor(rows, device=like.device)
        plans = (before, after)
        entering = [_entering_groups(plan, block) for plan in plans] if merge else [(), ()]
        working = [plan.groups_at(block) for plan in plans] if merge else [(), ()]
        self._means = [
            None if old == new else TokenMeans(behind_prefix(prefix, transition(old, new)), like)
            for old, new in (entering, working)
        ]
        self.tokens_change = self.tokens_change or self._means[1] is not None

    def entering(self, x: Tensor) -> Tensor:
        """Tokens in front of the block."""
        return x if self._means[0] is None else self._means[0](x)

    def inside(self, x: Tensor) -> Tensor:
        """Tokens that the block works on."""
        x = x if self._kept is None else x.index_select(1, self._kept)
        return x if self._means[1] is None else self._means[1](x)


def _entering_groups(plan: PruningPlan, block: int) -> Sequence[Sequence[int]]:
    """What the tokens stand for that a block gets, which may have been given back their positions on the way."""
    before, working = plan.groups_at(block - 1), plan.groups_at(block)
    return before if len(working) <= len(before) else working


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    return one is other or (one is not None and other is not None and torch.equal(one, other))


def _repair_layer(
    block: PrunableBlock,
    name: str,
    source: Stream,
    targets: Stream,
    rows: list[int] | None,
    label: str,
    repair: Repair,
    reduce: Reduce | None,
) -> None:
    """Fit a layer so that its branch comes close to ``targets``, of which only some rows may count."""
    layer, moments = _layer(block, name), Moments(label, reduce)
    images = _over_processes(sum(map(len, source)), reduce)
    if rows and repair.kind == "least_squares" and images * len(rows) < layer.in_features:
        logger.info("%s has more columns than there are tokens that are read behind it: all its tokens count", label)
        rows = None
    norm, branch = (block.norm1, 1) if name == "proj" else (block.norm2, 2)
    gamma = 1.0 if (scale := block.layer_scale(branch)) is None else scale
    with _inputs(norm, layer) as seen:
        for x, target in zip(source, targets, strict=True):
            block(x)
            inputs, missing = seen[layer], (target - seen[norm]) / gamma
            if rows is not None:
                inputs, missing = inputs[:, rows], missing[:, rows]
            moments.add(inputs, missing)
    _fit(layer, moments.pool(), repair)


def _check_bias(layer: nn.Linear, name: str) -> None:
    if layer.bias is None:
        raise InputError(f"amg.repair mean goes into biases, but {name} has none; least_squares is possible.")


def _fit(layer: nn.Linear, moments: Moments, repair: Repair) -> None:
    if repair.kind == "mean":
        _check_bias(layer, moments.name)
        layer.bias.copy_(fit_mean(layer.weight, moments))
        return
    weight, bias = fit_least_squares(layer.weight, layer.bias, moments, repair.ridge)
    layer.weight.copy_(weight)
    if bias is not None:
        layer.bias.copy_(bias)


def _update_carried(
    old: PrunableBlock, new: PrunableBlock, source: Stream, outcome: Stream, index: int, reduce: Reduce | None
) -> None:
    """Give the tokens that the block has just lost the mean of what they lack behind it."""
    before = [] if old.carried_tokens is None else old.carried_tokens.tolist()
    carried = new.carried_tokens.tolist()
    fresh = [position for position in carried if position not in before]
    if not fresh:
        return
    total = sum((y[:, fresh] - x[:, fresh]).double().sum(0) for x, y in zip(source, outcome, strict=True))
    total = total if reduce is None else reduce(total)
    if not torch.isfinite(total).all():
        raise RunError(f"The tokens around block {index} are not finite, so they get no constants.")
    rows = [carried.index(position) for position in fresh]
    images = _over_processes(sum(map(len, source)), reduce)
    new.token_update[rows] = (total / images).to(new.token_update.dtype)
