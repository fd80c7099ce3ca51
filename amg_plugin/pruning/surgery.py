"""Physical pruning of a timm ViT: slices of qkv and proj, constant index buffers for tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from amg_plugin.errors import PlanError
from amg_plugin.models.attention import PrunableAttention, SubsetNorm
from amg_plugin.models.vit import backbone_of, make_prunable
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
    for block, kept, present in zip(backbone.blocks, plan.heads, current.heads, strict=True):
        if kept != present:
            _check_norm(block.attn)
    make_prunable(backbone)
    for index, block in enumerate(backbone.blocks):
        if plan.heads[index] != current.heads[index]:
            place = {head: position for position, head in enumerate(current.heads[index])}
            _keep_heads(block.attn, [place[head] for head in plan.heads[index]])
        if plan.tokens[index] != current.tokens[index] or plan.variant != current.variant:
            _keep_tokens(backbone, index, plan)
    backbone.plan = plan
    return model


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
    backbone.blocks[index].keep_tokens(positions, prefix + plan.num_patches, plan.variant)


def _keep_heads(attention: PrunableAttention, kept: Sequence[int]) -> None:
    """Slice everything that a head owns, in place; ``kept`` are positions among the heads it has, ascending."""
    device = attention.qkv.weight.device
    first = torch.tensor(list(kept), dtype=torch.int64, device=device) * attention.head_dim
    rows = (first[:, None] + torch.arange(attention.head_dim, device=device)).flatten()
    width = attention.attn_dim
    _slice_linear(attention.qkv, torch.cat([rows + part * width for part in range(3)]), dim=0)
    _slice_linear(attention.proj, rows, dim=1)
    if attention.gate is not None:
        _slice_linear(attention.gate, rows, dim=0)
    if not isinstance(attention.norm, nn.Identity):
        if isinstance(attention.norm, nn.LayerNorm):
            attention.norm = SubsetNorm(attention.norm)
        for name in ("weight", "bias"):
            _slice_parameter(attention.norm, name, rows, dim=0)
    attention.num_heads = len(kept)
    attention.attn_dim = len(kept) * attention.head_dim


def _check_norm(attention: nn.Module) -> None:
    """Refuse a norm that cannot lose heads, before anything is sliced."""
    if not isinstance(attention.norm, nn.Identity | nn.LayerNorm | SubsetNorm):
        raise PlanError(
            f"Heads cannot be removed from an attention that normalises over all heads with "
            f"{type(attention.norm).__name__}; LayerNorm is allowed."
        )


def _slice_linear(linear: nn.Linear, index: Tensor, dim: int) -> None:
    _slice_parameter(linear, "weight", index, dim)
    if dim == 0:
        _slice_parameter(linear, "bias", index, 0)
        linear.out_features = len(index)
    else:
        linear.in_features = len(index)


def _slice_parameter(module: nn.Module, name: str, index: Tensor, dim: int) -> None:
    parameter = getattr(module, name)
    if parameter is None:
        return
    sliced = parameter.detach().index_select(dim, index).contiguous()
    setattr(module, name, nn.Parameter(sliced, requires_grad=parameter.requires_grad))
