"""Jigsaw patch module of TransReID: the last block once more, over shuffled groups of patches."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from amg_plugin.errors import ConfigError


@dataclass(frozen=True)
class JigsawSpec:
    """How patches are shuffled and grouped.

    Attributes:
        parts: Groups of patches, one local feature each.
        shift: The patches are rolled by ``shift - 1`` places.
        groups: They are dealt out over this many groups.
    """

    parts: int = 4
    shift: int = 5
    groups: int = 2

    def __post_init__(self) -> None:
        for name in ("parts", "shift", "groups"):
            if getattr(self, name) < 1:
                raise ConfigError(f"amg.jpm.{name} {getattr(self, name)} is impossible; at least 1 is needed.")


def jigsaw_parts(num_patches: int, spec: JigsawSpec) -> list[list[int]]:
    """Patch positions of each part (TransReID, ICCV 2021, section on JPM).

    Patches are rolled; if their number is not a multiple of the groups, the second-to-last one is repeated; they
    are dealt out over the groups and cut into equal parts, and what is left over is dropped.

    Args:
        num_patches: Patch tokens of an image.
        spec: How to shuffle.

    Returns:
        ``spec.parts`` lists of ``num_patches // spec.parts`` positions.

    Raises:
        ConfigError: If there are too few patches.
    """
    length = num_patches // spec.parts
    if not length or num_patches < 2:
        raise ConfigError(f"amg.jpm.parts {spec.parts} is too much for {num_patches} patches.")
    if spec.groups > num_patches:
        raise ConfigError(f"amg.jpm.groups {spec.groups} is too much for {num_patches} patches.")
    order = [(position + spec.shift - 1) % num_patches for position in range(num_patches)]
    order += [order[-2]] * (-num_patches % spec.groups)
    size = len(order) // spec.groups
    dealt = [order[group * size + place] for place in range(size) for group in range(spec.groups)]
    return [dealt[part * length : (part + 1) * length] for part in range(spec.parts)]


class JigsawBranch(nn.Module):
    """The local branch: a copy of the last block and norm that all parts share.

    Args:
        backbone: The ViT whose last block and norm are copied.
        spec: How to shuffle.

    Raises:
        ConfigError: If the ViT has no class token, or too few patches.
    """

    def __init__(self, backbone: VisionTransformer, spec: JigsawSpec) -> None:
        super().__init__()
        if not backbone.has_class_token:
            raise ConfigError("The jigsaw patch module needs a ViT with a class token.")
        self.prefix = backbone.num_prefix_tokens
        self.parts = spec.parts
        positions = torch.tensor(jigsaw_parts(backbone.patch_embed.num_patches, spec)).flatten() + self.prefix
        self.register_buffer("positions", positions, persistent=False)
        self.copy_last_block(backbone)

    def copy_last_block(self, backbone: VisionTransformer) -> None:
        """Start over from the backbone's last block and norm."""
        self.block = copy.deepcopy(backbone.blocks[-1])
        self.norm = copy.deepcopy(backbone.norm)

    def forward(self, tokens: Tensor) -> Tensor:
        """Local features ``[B, parts, D]``.

        Args:
            tokens: What the last block receives, ``[B, prefix + patches, D]``.
        """
        batch, _, width = tokens.shape
        patches = tokens.index_select(1, self.positions).reshape(batch * self.parts, -1, width)
        prefix = tokens[:, : self.prefix].repeat_interleave(self.parts, dim=0)
        out = self.norm(self.block(torch.cat((prefix, patches), dim=1)))
        return out[:, 0].reshape(batch, self.parts, width)
