"""Whether two descriptions stand for the same network."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from amg_plugin.models.la_transformer import HIDDEN
from amg_plugin.models.spec import ModelSpec
from amg_plugin.models.vit import build_backbone

_BACKBONE = {
    "arch": "amg.arch",
    "stride": "amg.stride",
    "overrides": "amg.override",
    "attention_scale": "amg.override.attention_scale",
    "layer_norm_eps": "layer norm epsilon",
}

Difference = tuple[str, Any, Any]


def differences(ours: ModelSpec, theirs: ModelSpec, *, count_cameras: bool = True) -> Iterator[Difference]:
    """Configuration keys by which two dense networks differ, with the value of each.

    Two spellings of one backbone are equal: ``vit_small_patch16_224``, and another ViT overridden to its sizes. What
    does not change the structure (loss, evaluation feature, dropout, treatment of unseen cameras) does not count, and
    neither does the number of identities.

    Args:
        ours: One network.
        theirs: The other.
        count_cameras: Whether another number of training cameras is a difference.
    """
    spelled = [
        (key, getattr(ours, field), getattr(theirs, field))
        for field, key in _BACKBONE.items()
        if getattr(ours, field) != getattr(theirs, field)
    ]
    if spelled and _facts(ours) != _facts(theirs):
        yield from spelled
    yield from _differing(
        ("amg.head", ours.head, theirs.head),
        ("amg.sie.enabled", ours.side_information is not None, theirs.side_information is not None),
        ("amg.jpm.enabled", ours.jigsaw is not None, theirs.jigsaw is not None),
    )
    if ours.head == theirs.head == "parts":
        yield from _differing(
            ("amg.parts.number", ours.parts, theirs.parts),
            ("amg.parts.hidden", ours.part_hidden or HIDDEN, theirs.part_hidden or HIDDEN),
        )
    if (side := ours.side_information) and (other := theirs.side_information):
        yield from _differing(
            ("amg.sie.views", side.views, other.views),
            ("amg.sie.coefficient", side.coefficient, other.coefficient),
        )
        if count_cameras or bool(side.cameras) != bool(other.cameras):
            yield from _differing(("amg.sie.cameras", side.cameras, other.cameras))
    if (jigsaw := ours.jigsaw) and (branch := theirs.jigsaw):
        names = ("parts", "shift", "groups")
        yield from _differing(*((f"amg.jpm.{name}", getattr(jigsaw, name), getattr(branch, name)) for name in names))


def _differing(*pairs: Difference) -> Iterator[Difference]:
    return (pair for pair in pairs if pair[1] != pair[2])


def _facts(spec: ModelSpec) -> list[Any]:
    """Everything about a backbone that a forward pass depends on, apart from the weights."""
    with torch.device("meta"):
        model = build_backbone(**spec.backbone())
    return [
        type(model),
        {name: tuple(value.shape) for name, value in model.state_dict().items()},
        tuple(model.patch_embed.proj.stride),
        [(block.attn.num_heads, block.attn.head_dim, block.attn.scale) for block in model.blocks],
        [module.eps for module in model.modules() if isinstance(module, nn.LayerNorm)],
    ]
