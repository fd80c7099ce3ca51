"""From descriptions to networks, and whether two descriptions stand for the same one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from amg_plugin.errors import InputError
from amg_plugin.models.la_transformer import HIDDEN, LATransformer
from amg_plugin.models.reduced import ReducedReIDModel
from amg_plugin.models.reid import ReIDModel
from amg_plugin.models.rotary import RotaryVisionTransformer
from amg_plugin.models.spec import ModelSpec
from amg_plugin.models.transreid import TransReID
from amg_plugin.models.vit import build_backbone
from amg_plugin.models.weights import load_backbone_weights

# What configurations call the fields of descriptions.
_BACKBONE = {"arch": "amg.arch", "stride": "amg.stride", "overrides": "amg.override",
             "attention_scale": "amg.override.attention_scale", "layer_norm_eps": "layer norm epsilon"}  # fmt: skip
_PARTS = {"parts": "amg.parts.number", "part_hidden": "amg.parts.hidden"}
_JIGSAW = {"parts": "amg.jpm.parts", "shift": "amg.jpm.shift", "groups": "amg.jpm.groups"}
_SIDE = {"views": "amg.sie.views", "coefficient": "amg.sie.coefficient"}

Difference = tuple[str, Any, Any]


def build_network(
    spec: ModelSpec, pretrained: bool = False, weights: str | Path = "", weights_grid: Sequence[int] = ()
) -> ReIDModel:
    """Build the network of a description, on the CPU.

    Args:
        spec: What to build.
        pretrained: Take timm's weights for the backbone, unless ``weights`` names a file.
        weights: Local file with weights for the backbone.
        weights_grid: Rows and columns of its position embedding; empty: deduced.

    Raises:
        ConfigError: If the description is impossible.
        InputError: If timm has no such weights or they cannot be downloaded, or the file does not fit.
    """
    if pretrained and not weights and (spec.overrides or spec.attention_scale):
        raise InputError(
            "timm has no pretrained weights for a changed architecture (amg.override); "
            "set model.pretrained to False or give amg.weights."
        )
    if spec.reducer:
        network = ReducedReIDModel
    elif spec.head == "parts":
        network = LATransformer
    else:
        network = TransReID if spec.side_information or spec.jigsaw else ReIDModel
    model = network(spec, pretrained and not weights)
    if weights:
        load_backbone_weights(model.backbone, weights, weights_grid)
        model.backbone_loaded()
    return model


def differences(ours: ModelSpec, theirs: ModelSpec, *, count_cameras: bool = True) -> Iterator[Difference]:
    """Configuration keys by which two dense networks differ, with the value of each.

    Two spellings of one backbone are equal: ``vit_small_patch16_224``, and another ViT overridden to its sizes. What
    does not change the structure (loss, evaluation feature, dropout, treatment of unseen cameras) does not count, and
    neither does the number of identities; the number of training cameras counts if asked for.
    """
    spelled = _differing(ours, theirs, _BACKBONE)
    if spelled and _facts(ours) != _facts(theirs):
        yield from spelled
    yield from _differing(ours, theirs, {"head": "amg.head"})
    for name, key in (("side_information", "amg.sie.enabled"), ("jigsaw", "amg.jpm.enabled")):
        enabled = [getattr(one, name) is not None for one in (ours, theirs)]
        if enabled[0] != enabled[1]:
            yield key, *enabled
    if ours.head == theirs.head == "parts":
        ours, theirs = (replace(one, part_hidden=one.part_hidden or HIDDEN) for one in (ours, theirs))
        yield from _differing(ours, theirs, _PARTS)
    if (side := ours.side_information) and (other := theirs.side_information):
        yield from _differing(side, other, _SIDE)
        if count_cameras or bool(side.cameras) != bool(other.cameras):
            yield from _differing(side, other, {"cameras": "amg.sie.cameras"})
    if ours.jigsaw and theirs.jigsaw:
        yield from _differing(ours.jigsaw, theirs.jigsaw, _JIGSAW)


def _differing(ours: Any, theirs: Any, keys: Mapping[str, str]) -> list[Difference]:
    """Fields that differ, by the keys of the configuration."""
    pairs = [(key, getattr(ours, name), getattr(theirs, name)) for name, key in keys.items()]
    return [pair for pair in pairs if pair[1] != pair[2]]


def _facts(spec: ModelSpec) -> list[Any]:
    """Everything about a backbone that a forward pass depends on, apart from the weights."""
    with torch.device("meta"):
        model = build_backbone(**spec.backbone())
    return [
        type(model),
        {name: tuple(value.shape) for name, value in model.state_dict().items()},
        tuple(model.patch_embed.proj.stride),
        [(block.attn.num_heads, block.attn.head_dim, block.attn.scale) for block in model.blocks],
        model.rotation() if isinstance(model, RotaryVisionTransformer) else None,
        [module.eps for module in model.modules() if isinstance(module, nn.LayerNorm)],
    ]
