"""Costs as the published programs count them, which is not what they run."""

from __future__ import annotations

from torch import nn

from amg_plugin.models.vit import backbone_of
from amg_plugin.pruning import current_plan


def published_accounting(model: nn.Module) -> dict[str, int]:
    """Cost of the blocks by the formulas of the two published programs.

    Per block, with ``t`` tokens kept and ``T`` tokens in all (prefix tokens in both), attention width ``w``, embedding
    width ``D`` and hidden width ``F``: attention takes ``4 t w D + 2 t t w + heads t t`` MACs, the MLP ``2 t D F`` in
    variant ``block`` (TransReID program) and ``2 T D F`` in variant ``kv`` (LA program, which counts queries and
    projection as pruned although they are not). Patch embedding, heads and the second branch of the jigsaw module are
    left out; the last block counts once.

    Args:
        model: A plain ViT, or a network with one as ``backbone``; pruned or not.

    Returns:
        ``{"macs": int, "attention_macs": int, "msa_params": int}``; the parameters are those of the attention modules
        with one entry per block and token for the published token masks.

    Raises:
        UnsupportedModelError: If the ViT is not plain.
    """
    vit, plan = backbone_of(model), current_plan(model)
    whole = vit.num_prefix_tokens + plan.num_patches
    attention = mlp = params = 0
    for block, kept in zip(vit.blocks, plan.tokens_per_block, strict=True):
        tokens = vit.num_prefix_tokens + kept
        heads, dim = block.attn.num_heads, vit.embed_dim
        width = heads * block.attn.head_dim
        attention += 4 * tokens * width * dim + 2 * tokens * tokens * width + heads * tokens * tokens
        mlp += 2 * (whole if plan.variant == "kv" else tokens) * dim * block.mlp.fc2.in_features
        params += sum(value.numel() for value in block.attn.parameters()) + whole
    return {"macs": attention + mlp, "attention_macs": attention, "msa_params": params}
