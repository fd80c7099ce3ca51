"""Architectures of the literature that timm has no name for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Architecture:
    """A departure from one of timm's models.

    Attributes:
        base: timm's name.
        overrides: Arguments that differ from timm's.
        attention_scale: Factor of query times key; None for timm's own.
        pretrained: Whether timm's weights of the base fit.
    """

    base: str
    overrides: Mapping[str, Any] = field(default_factory=dict)
    attention_scale: float | None = None
    pretrained: bool = True


#: TransReID's own names. Its "small" is 768 wide with 8 blocks, 8 heads of 96 and no qkv bias, and divides the
#: attention by the root of the whole width.
ARCHITECTURES: dict[str, Architecture] = {
    "transreid_small": Architecture(
        base="vit_base_patch16_224",
        overrides={"depth": 8, "num_heads": 8, "mlp_ratio": 3.0, "qkv_bias": False},
        attention_scale=768**-0.5,
        pretrained=False,
    ),
    "deit_small": Architecture(base="deit_small_patch16_224"),
}
