"""Small re-ID networks of every kind, pruned at random, with weights so large that every part of them matters."""

from __future__ import annotations

import random

import torch
from naive_merging import random_merges
from torch import Tensor

from amg_plugin.models.build import build_network
from amg_plugin.models.reid import ReIDModel
from amg_plugin.models.spec import ModelSpec
from amg_plugin.pruning import apply_plan, current_plan
from amg_plugin.pruning.cut import prunable_blocks

TINY = {"depth": 4, "embed_dim": 32, "num_heads": 4}

#: name -> (timm name, patch, further fields of the description)
KINDS = {
    "vit": ("vit_tiny_patch16_224", 16, {}),
    "features_before_the_neck": ("vit_tiny_patch16_224", 16, {"neck_feat": "before"}),
    "overlapping_patches": ("vit_tiny_patch16_224", 16, {"stride": (12, 11)}),
    "distilled": ("deit_tiny_distilled_patch16_224", 16, {}),
    "layer_scale": ("vit_small_patch14_dinov2", 14, {}),
    "registers": ("vit_small_patch14_reg4_dinov2", 14, {}),
    "mean_of_patches": ("vit_base_patch16_gap_224", 16, {}),
    "attention_pooling": ("vit_base_patch16_siglip_224", 16, {}),
    "norm_before_blocks": ("vit_base_patch16_clip_224", 16, {}),
    "norm_over_heads": ("beit3_base_patch16_224", 16, {}),
    "norm_of_queries_and_keys": ("vit_tiny_patch16_224", 16, {"overrides": {**TINY, "qk_norm": True}}),
    "transreid_scale": ("transreid_small", 16, {}),
    "transreid_cameras": ("vit_tiny_patch16_224", 16, {"side_information": {"cameras": 3}}),
    "transreid_jigsaw": ("vit_tiny_patch16_224", 16, {"side_information": {"cameras": 3}, "jigsaw": {}, "stride": 12}),
    "transreid_jigsaw_before": ("vit_tiny_patch16_224", 16, {"jigsaw": {"parts": 2}, "neck_feat": "before"}),
    "packed_swiglu": ("vit_giant_patch14_dinov2", 14, {}),
    "swiglu": ("aimv2_large_patch14_224", 14, {}),
    "la_transformer": ("vit_tiny_patch16_224", 16, {"head": "parts", "parts": 4}),
}

#: The structures that timm's plain ViTs have beside those above, by one name each, and some that no name has.
STRUCTURES = {
    **{
        arch: (arch, 16, {"overrides": {**TINY, "patch_size": 16}})
        for arch in (
            "deit3_small_patch16_224",
            "eva_large_patch14_196",
            "flexivit_small",
            "test_vit",
            "test_vit2",
            "test_vit3",
            "test_vit4",
            "vit_base_patch14_reg1_tipsv2",
            "vit_base_patch16_224_miil",
            "vit_base_patch16_clip_quickgelu_224",
            "vit_base_patch16_radio_v3",
            "vit_base_patch16_reg4_gap_256",
            "vit_base_patch32_siglip_256",
            "vit_base_patch32_siglip_gap_256",
            "vit_betwixt_patch16_reg1_gap_256",
            "vit_betwixt_patch16_reg4_gap_256",
            "vit_giant_patch14_reg1_tipsv2",
            "vit_giant_patch14_reg4_dinov2",
            "vit_huge_patch16_radio_v3",
            "vit_huge_patch16_radio_v4",
            "vit_intern300m_patch14_448",
            "vit_medium_patch16_gap_240",
            "vit_so150m2_patch16_reg1_gap_256",
            "vit_so150m_patch16_reg4_gap_256",
            "vit_so150m_patch16_reg4_map_256",
        )
    },
    "several_sizes_overlapping": ("test_vit4", 16, {"stride": (12, 11)}),
    "rms_norm_over_heads": (
        "vit_tiny_patch16_224",
        16,
        {"overrides": {**TINY, "norm_layer": "rmsnorm", "scale_attn_norm": True, "scale_mlp_norm": True}},
    ),
    "distilled_with_another_norm": (
        "deit_tiny_distilled_patch16_224",
        16,
        {"overrides": {**TINY, "fc_norm": True, "pos_embed": "none", "act_layer": "prelu"}},
    ),
}

#: Rotary positions: of halves and of neighbours, with and without separate projections, scale and learned positions.
ROTARY = {
    "dinov3": ("vit_small_patch16_dinov3_qkvb", 16, {"stride": (12, 11), "overrides": TINY}),
    "eva02": ("eva02_base_patch14_224", 14, {"overrides": {**TINY, "scale_attn_inner": True}}),
    "rope": ("vit_medium_patch16_rope_reg1_gap_256", 16, {}),
}

#: name -> (share of heads kept, share of tokens kept, variant, share of neurons kept)
PRUNINGS = {
    "dense": (1.0, 1.0, "block", 1.0),
    "heads": (0.5, 1.0, "block", 1.0),
    "neurons": (1.0, 1.0, "block", 0.3),
    "kv": (1.0, 0.6, "kv", 1.0),
    "block": (1.0, 0.6, "block", 1.0),
    "heads_kv": (0.5, 0.4, "kv", 1.0),
    "heads_block": (0.5, 0.4, "block", 1.0),
    "heads_block_neurons": (0.5, 0.4, "block", 0.6),
    "block_in_pairs": (1.0, 0.6, "block", 1.0),
    "kv_in_pairs": (1.0, 0.6, "kv", 1.0),
    "merge": (1.0, 0.5, "merge", 1.0),
    "heads_merge_neurons": (0.5, 0.3, "merge", 0.6),
    "block_with_updates": (1.0, 0.5, "block", 1.0),
}


def build(kind: str = "vit", pruning: str = "dense", seed: int = 0) -> ReIDModel:
    """A network of ``KINDS``, ``STRUCTURES`` or ``ROTARY`` in eval mode, pruned as ``PRUNINGS`` says."""
    arch, patch, options = {**KINDS, **STRUCTURES, **ROTARY}[kind]
    spec = ModelSpec(arch, (5 * patch, 3 * patch), 5, **{"overrides": TINY, **options})
    model = build_network(spec).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            noise = torch.randn(value.shape, generator=generator) if value.is_floating_point() else None
            if "running_var" in name:
                value.copy_(noise.exp())
            elif value.ndim in (2, 4) and value.is_floating_point():
                value.copy_(noise / value[0].numel() ** 0.5)
            elif "norm" in name and name.endswith("weight"):
                value.copy_(1 + 0.3 * noise)
            elif noise is not None and not name.endswith("bottleneck.bias"):
                value.copy_(0.5 * noise)
    keep_heads, keep_tokens, variant, keep_neurons = PRUNINGS[pruning]
    plan, chosen = current_plan(model).with_variant(variant), random.Random(seed)
    free = set(prunable_blocks(model))

    def subset(total: int, share: float, block: int) -> list[int]:
        count = max(1, round(share * total)) if block in free else total
        return sorted(chosen.sample(range(total), count))

    heads = [subset(total, keep_heads, block) for block, total in enumerate(plan.num_heads)]
    neurons = [subset(total, keep_neurons, block) for block, total in enumerate(plan.num_neurons)]
    if variant == "merge":
        merged = random_merges(plan, sorted(free)[1:], keep_tokens, seed)
        return apply_plan(model, merged.narrow(heads=heads, neurons=neurons))
    tokens = [subset(plan.num_patches, keep_tokens, block) for block in range(plan.depth)]
    if pruning.endswith("in_pairs"):  # two neighbours keep the same, and others come back behind them
        tokens[1] = tokens[0] if 1 in free else tokens[1]
        tokens[3] = tokens[2] if 3 in free else tokens[3]
    plan = plan.narrow(heads=heads, tokens=tokens, neurons=neurons)
    if not pruning.endswith("with_updates"):
        return apply_plan(model, plan)
    apply_plan(model, plan.with_updates(range(plan.depth)))
    for block in model.backbone.blocks:
        if block.token_update is not None:
            block.token_update.copy_(0.5 * torch.randn(block.token_update.shape, generator=generator))
    return model


def inputs(model: ReIDModel, batch: int = 3) -> tuple[Tensor, ...]:
    """Random images, with camera labels (an unseen one among them) where they make a difference."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(batch, 3, *model.spec.image_size, generator=generator)
    cameras = torch.tensor([0, 2, -1, 1])[torch.arange(batch) % 4]
    return (images, cameras) if getattr(model, "uses_cameras", False) else (images,)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest feature."""
    return ((actual - expected).abs().max() / expected.abs().max()).item()
