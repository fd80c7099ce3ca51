"""Physical pruning of a timm ViT: slices of linear layers, constant index buffers for tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from timm.layers import GluMlp, SwiGLU
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from amg_plugin.errors import PlanError
from amg_plugin.models.attention import PrunableAttention, SubsetNorm
from amg_plugin.models.rotary import check_not_rotary
from amg_plugin.models.vit import backbone_of, make_prunable
from amg_plugin.pruning.merging import Group, Transition, transition
from amg_plugin.pruning.plan import PruningPlan
from amg_plugin.registries import TARGETS


def current_plan(model: nn.Module) -> PruningPlan:
    """The plan of ``model`` (a ViT, or a network with a ``backbone``); dense if it was never pruned."""
    backbone = backbone_of(model)
    if plan := getattr(backbone, "plan", None):
        return plan
    heads = [block.attn.num_heads for block in backbone.blocks]
    neurons = [block.mlp.fc2.in_features for block in backbone.blocks]
    return PruningPlan.dense(heads, backbone.patch_embed.num_patches, num_neurons=neurons)


def prunable_blocks(model: nn.Module) -> list[int]:
    """Numbers of the blocks that may be pruned: all, unless the model names fewer in ``prunable_blocks``."""
    named = getattr(model, "prunable_blocks", None)
    return list(range(len(backbone_of(model).blocks)) if named is None else named)


def apply_plan(model: nn.Module, plan: PruningPlan) -> nn.Module:
    """Prune ``model`` in place to ``plan``.

    Parameters that shrink are replaced by new ones: optimisers must be built again.

    Args:
        model: A plain timm ViT, or a network that holds one as ``backbone``; dense, or pruned to a plan that contains
            this one.
        plan: What to keep, relative to the dense model.

    Returns:
        ``model``.

    Raises:
        PlanError: If the plan belongs to another dense model, brings back what was removed or prunes a block that the
            network names unprunable.
        UnsupportedModelError: If the ViT is not plain.
    """
    backbone = backbone_of(model)
    current = current_plan(backbone)
    plan = plan.fitted(current)
    _check_fit(current, plan)
    _check_prunable(model, plan)
    make_prunable(backbone)
    if plan.variant == "merge":
        check_not_rotary(backbone, "amg.token_variant 'merge'")
    neurons, present = plan.kept("neurons"), current.kept("neurons")
    for index, block in enumerate(backbone.blocks):
        if neurons[index] != present[index]:
            place = {unit: position for position, unit in enumerate(present[index])}
            _keep_neurons(block.mlp, [place[unit] for unit in neurons[index]])
        if plan.heads[index] != current.heads[index]:
            place = {head: position for position, head in enumerate(current.heads[index])}
            _keep_heads(block.attn, [place[head] for head in plan.heads[index]])
        if plan.variant == "merge":
            merge_tokens(backbone, index, *(plan.groups_at(number) for number in (index - 1, index, index + 1)))
        elif _tokens_change(current, plan, index):
            _keep_tokens(backbone, index, plan)
    backbone.plan = plan
    return model


def _tokens_change(current: PruningPlan, plan: PruningPlan, block: int) -> bool:
    updated = [block in one.updates for one in (current, plan)]
    return plan.tokens[block] != current.tokens[block] or plan.variant != current.variant or updated[0] != updated[1]


def _check_fit(current: PruningPlan, plan: PruningPlan) -> None:
    ours, theirs = ((one.num_heads, one.num_patches, one.num_neurons) for one in (current, plan))
    if ours != theirs:
        raise PlanError(
            f"The plan is for heads {list(theirs[0])}, {theirs[1]} patches and neurons {list(theirs[2])}, the model "
            f"has heads {list(ours[0])}, {ours[1]} patches and neurons {list(ours[2])}."
        )
    if not current.contains(plan):
        raise PlanError(
            "The plan keeps heads, tokens or neurons that the model has lost already; pruning can only remove."
        )
    if current.prunes_tokens and plan.variant != current.variant:
        raise PlanError(
            f"The model's tokens were removed in variant '{current.variant}'; the plan says '{plan.variant}'."
        )
    if lost := set(current.updates) - set(plan.updates):
        raise PlanError(f"The plan gives up the constant updates of block {min(lost)}, which the model has.")


def _check_prunable(model: nn.Module, plan: PruningPlan) -> None:
    for block in set(range(plan.depth)) - set(prunable_blocks(model)):
        if any(plan.left(target)[block] < plan.dense_size(target, block) for target in TARGETS):
            raise PlanError(
                f"The plan prunes block {block}, which is never pruned in this network (the jigsaw patch module has a "
                "copy of it)."
            )


def _keep_tokens(backbone: VisionTransformer, index: int, plan: PruningPlan) -> None:
    prefix, kept, positions = backbone.num_prefix_tokens, plan.tokens[index], None
    if len(kept) < plan.num_patches:
        positions = [*range(prefix), *(prefix + position for position in kept)]
    backbone.blocks[index].keep_tokens(positions, prefix + plan.num_patches, plan.variant, index in plan.updates)


def merge_tokens(
    backbone: VisionTransformer, index: int, before: Sequence[Group], groups: Sequence[Group], after: Sequence[Group]
) -> None:
    """Let a block work on merged tokens, in place.

    Args:
        backbone: A prunable ViT.
        index: Number of the block.
        before: Positions that each patch token stands for that the block gets.
        groups: The same for those that it works on.
        after: The same for those that the next block works on, or all positions if there is none. If they are finer,
            every position gets its token back behind this block.
    """
    prefix = backbone.num_prefix_tokens
    sizes = [1] * prefix + [len(group) for group in groups]
    merges = tuple(before) != tuple(groups) and len(groups) <= len(before)
    restores = len(after) > len(groups)
    backbone.blocks[index].merge_tokens(
        sizes,
        behind_prefix(prefix, transition(before, groups)) if merges else None,
        behind_prefix(prefix, transition(groups, after)) if restores else None,
    )


def behind_prefix(prefix: int, members: Transition) -> Transition:
    """``members`` for a sequence with prefix tokens in front, which stay as they are."""
    moved = tuple(tuple((prefix + place, weight) for place, weight in group) for group in members)
    return (*(((place, 1.0),) for place in range(prefix)), *moved)


def _keep_heads(attention: PrunableAttention, kept: Sequence[int]) -> None:
    """Slice everything that a head owns, in place; ``kept`` are positions among the heads it has, ascending."""
    device = attention.proj.weight.device
    first = torch.tensor(list(kept), dtype=torch.int64, device=device) * attention.head_dim
    rows = (first[:, None] + torch.arange(attention.head_dim, device=device)).flatten()
    width = attention.attn_dim
    if attention.qkv is not None:
        _slice_linear(attention.qkv, torch.cat([rows + part * width for part in range(3)]), dim=0)
    _slice_linear(attention.proj, rows, dim=1)
    for name in ("q_proj", "k_proj", "v_proj", "gate"):
        if (linear := getattr(attention, name, None)) is not None:
            _slice_linear(linear, rows, dim=0)
    for name in ("q_bias", "k_bias", "v_bias"):
        _slice_tensor(attention, name, rows, dim=0)
    attention.norm = _sliced_norm(attention.norm, rows)
    attention.num_heads = len(kept)
    attention.attn_dim = len(kept) * attention.head_dim


def _keep_neurons(mlp: nn.Module, kept: Sequence[int]) -> None:
    """Slice everything that a hidden unit owns, in place; ``kept`` are positions among those left, ascending."""
    hidden = mlp.fc2.in_features
    units = torch.tensor(list(kept), dtype=torch.int64, device=mlp.fc2.weight.device)
    if isinstance(mlp, GluMlp):  # both halves in one layer
        _slice_linear(mlp.fc1, torch.cat((units, units + hidden)), dim=0)
    else:
        for linear in (mlp.fc1_g, mlp.fc1_x) if isinstance(mlp, SwiGLU) else (mlp.fc1,):
            _slice_linear(linear, units, dim=0)
    _slice_linear(mlp.fc2, units, dim=1)
    mlp.norm = _sliced_norm(mlp.norm, units)


def _sliced_norm(norm: nn.Module, rows: Tensor) -> nn.Module:
    if isinstance(norm, nn.Identity):
        return norm
    norm = norm if isinstance(norm, SubsetNorm) else SubsetNorm(norm)
    for name in ("weight", "bias"):
        _slice_tensor(norm, name, rows, dim=0)
    return norm


def _slice_linear(linear: nn.Linear, index: Tensor, dim: int) -> None:
    _slice_tensor(linear, "weight", index, dim)
    if dim == 0:
        _slice_tensor(linear, "bias", index, 0)
        linear.out_features = len(index)
    else:
        linear.in_features = len(index)


def _slice_tensor(module: nn.Module, name: str, index: Tensor, dim: int) -> None:
    """Slice a parameter or a buffer, if it is there."""
    tensor = getattr(module, name, None)
    if tensor is None:
        return
    sliced = tensor.detach().index_select(dim, index).contiguous()
    is_parameter = isinstance(tensor, nn.Parameter)
    setattr(module, name, nn.Parameter(sliced, requires_grad=tensor.requires_grad) if is_parameter else sliced)
