"""timm's ``Eva`` made prunable: EVA-02, DINOv3 and other ViTs whose queries and keys are rotated by their positions.

Such a network becomes a ``VisionTransformer`` in place, under its own state-dict keys: what works on plain ViTs works
on it. Each attention holds the rotary table (RoFormer, arXiv 2104.09864) of the image size that the network was built
for, with a row per token, and takes the rows of the tokens that it works on.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import AttentionRope, apply_rot_embed_cat, resample_abs_pos_embed
from timm.models.eva import Eva, EvaAttention, EvaBlock
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from amg_plugin.errors import ConfigError, UnsupportedModelError
from amg_plugin.models.attention import PrunableAttention, PrunableBlock

#: Types of the settings of timm's rotary embeddings.
_SIMPLE = (bool, int, float, str, tuple, list)


class RotaryAttention(PrunableAttention):
    """timm's ``EvaAttention`` or ``AttentionRope``, made prunable; made by :meth:`convert`, never constructed."""

    rope: Tensor | None  # sines and cosines, [N, 2 d]; prefix tokens are not rotated
    rope_rows: Tensor | None  # rows of the tokens that the attention works on; None: all of them

    @classmethod
    def convert(cls, module: nn.Module, table: Tensor | None = None) -> RotaryAttention:
        """Turn ``module`` into a prunable one in place; its tensors are untouched."""
        if not isinstance(module, cls):
            super().convert(module)
            module.attn_dim = module.num_heads * module.head_dim
            module.rope = table
            module.register_buffer("rope_rows", None, persistent=False)
        return module

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Attend: tokens ``[B, N, D]`` in and out.

        Raises:
            NotImplementedError: If there is a mask.
        """
        if attn_mask is not None or is_causal:
            raise NotImplementedError("attention masks are not supported in a network with rotary positions")
        return self.attend(x, self.key_bias)[0]

    def packed(self) -> tuple[Tensor, Tensor | None]:
        """Weight ``[3 H d, D]`` and bias ``[3 H d]`` of queries, keys and values, in this order."""
        if self.qkv is not None:
            if getattr(self, "q_bias", None) is None:
                return self.qkv.weight, self.qkv.bias
            return self.qkv.weight, torch.cat((self.q_bias, self.k_bias, self.v_bias))
        layers = (self.q_proj, self.k_proj, self.v_proj)
        weight = torch.cat([layer.weight for layer in layers])
        if all(layer.bias is None for layer in layers):
            return weight, None
        none = weight.new_zeros(self.attn_dim)
        return weight, torch.cat([none if layer.bias is None else layer.bias for layer in layers])

    def _all_projected(self, x: Tensor) -> Tensor:
        return F.linear(x, *self.packed())

    def _rotated(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        if self.rope is None:
            return query, key
        rows = self.rope if self.rope_rows is None else self.rope.index_select(0, self.rope_rows)
        of_keys = rows if self.kept_tokens is None else rows.index_select(0, self.kept_tokens)
        half = self.rotate_half
        return apply_rot_embed_cat(query, rows, half=half), apply_rot_embed_cat(key, of_keys, half=half)


class RotaryBlock(PrunableBlock):
    """timm's ``EvaBlock``, made prunable; made by :meth:`convert`, never constructed."""

    @classmethod
    def convert(cls, module: nn.Module, table: Tensor | None = None) -> RotaryBlock:
        """Turn ``module`` and its attention into prunable ones in place."""
        RotaryAttention.convert(module.attn, table)
        return super().convert(module)

    def _work(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        out, scale = self.attn(self.norm1(x), attn_mask, is_causal), self.gamma_1
        x = x + self.drop_path1(out if scale is None else scale * out)
        out, scale = self.mlp(self.norm2(x)), self.gamma_2
        return x + self.drop_path2(out if scale is None else scale * out)

    def layer_scale(self, branch: int) -> Tensor | None:
        """Factors ``[D]`` of what branch 1 (attention) or 2 (MLP) gives; None if there are none."""
        return getattr(self, f"gamma_{branch}")

    def keep_tokens(self, kept: list[int] | None, num_tokens: int, variant: str, updated: bool = False) -> None:
        """As :meth:`PrunableBlock.keep_tokens`; the rotary table follows."""
        super().keep_tokens(kept, num_tokens, variant, updated)
        self.attn.rope_rows = self.kept_tokens


class RotaryVisionTransformer(VisionTransformer):
    """timm's ``Eva`` with the interface of a ``VisionTransformer``; made by :meth:`convert`, never constructed."""

    @classmethod
    def convert(cls, model: Eva) -> RotaryVisionTransformer:
        """Turn ``model`` and its blocks into prunable ones in place; outputs and state-dict keys stay the same."""
        if isinstance(model, cls):
            return model
        table = _table(model)
        for block in model.blocks:
            RotaryBlock.convert(block, table)
        model.__class__, model.blocks = cls, nn.Sequential(*model.blocks)
        model.has_class_token = model.cls_token is not None
        model.patch_drop = nn.Identity()
        model.pool_include_prefix = model.attn_pool is not None
        return model

    def rotation(self) -> tuple[type, dict[str, Any]]:
        """Kind and settings of the rotary positions, apart from the grid: to compare two networks."""
        settings = {name: value for name, value in vars(self.rope).items() if isinstance(value, _SIMPLE)}
        return type(self.rope), {name: value for name, value in settings.items() if name != "feat_shape"}


def _table(model: Eva) -> Tensor | None:
    """Sines and cosines of every token ``[N, 2 d]``, prefix tokens in front; None without rotary positions."""
    if model.rope is None:
        return None
    patches = model.rope.get_embed(shape=model.patch_embed.grid_size).detach()
    head_dim = patches.shape[-1] // 2
    unmoved = torch.cat((patches.new_zeros(head_dim), patches.new_ones(head_dim)))
    return torch.cat((unmoved.expand(model.num_prefix_tokens, -1), patches))


def check_rotary(model: Eva) -> None:
    """Refuse what pruning cannot do in an ``Eva``, by name.

    Raises:
        UnsupportedModelError: If a block has another form, heads share keys, or the rotation is learned or random.
    """
    for index, block in enumerate(model.blocks):
        if type(block) is not EvaBlock or type(block.attn) not in (EvaAttention, AttentionRope):
            kinds = f"{type(block).__name__} with {type(block.attn).__name__}"
            allowed = "EvaBlock with EvaAttention or AttentionRope"
            raise UnsupportedModelError(f"block {index} of an Eva is a {kinds}; allowed: {allowed}.")
        if getattr(block.attn, "num_kv_groups", 1) != 1:
            raise UnsupportedModelError(
                f"the heads of block {index} share keys and values (num_kv_heads); allowed: a key and value per head."
            )
    if model.rope_mixed:
        raise UnsupportedModelError(
            "rotary positions are learned per head and block (rope_type 'mixed'); allowed: fixed ones."
        )
    if model.rope is not None and getattr(model.rope, "aug_active", False):
        raise UnsupportedModelError("rotary positions are moved at random in training (rope_*_coords); allowed: fixed.")
    if model.patch_drop is not None:
        raise UnsupportedModelError("patches are dropped at random (patch_drop_rate); pruning needs all positions.")


def check_not_rotary(model: VisionTransformer, what: str) -> None:
    """Raise a ConfigError if ``what`` meets a network whose tokens have rotary positions."""
    if isinstance(model, RotaryVisionTransformer) and model.rope is not None:
        raise ConfigError(
            f"{what} cannot be joined with rotary positions (EVA-02, DINOv3): tokens that are mixed or dealt out anew "
            "have none."
        )


def replace_patches(model: Eva, embedding: nn.Module) -> None:
    """Give an ``Eva`` another patch embedding of the same weights: positions are fitted to its grid."""
    old = model.patch_embed
    embedding.load_state_dict(old.state_dict())
    model.patch_embed = embedding
    if model.pos_embed is not None:
        prefix = 0 if model.no_embed_class else model.num_prefix_tokens
        model.pos_embed = nn.Parameter(
            resample_abs_pos_embed(model.pos_embed.detach(), embedding.grid_size, old.grid_size, prefix)
        )
    if hasattr(model.rope, "update_feat_shape"):
        model.rope.update_feat_shape(embedding.grid_size)
