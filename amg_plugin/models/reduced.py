"""ViTs whose blocks merge or drop tokens, image by image."""

from __future__ import annotations

from torch import Tensor

from amg_plugin.errors import ConfigError
from amg_plugin.models.attention import PrunableBlock
from amg_plugin.models.reducers import TokenReducer, proportional_bias
from amg_plugin.models.reid import ReIDModel, at_least_float32
from amg_plugin.models.rotary import check_not_rotary
from amg_plugin.models.spec import ModelSpec
from amg_plugin.models.vit import pooled_features
from amg_plugin.registries import REDUCERS


class ReducedBlock(PrunableBlock):
    """A block that leaves ``leaving`` tokens behind the ``prefix``; the reduction stands between attention and MLP.

    Made out of an existing block by :meth:`convert`, never constructed.
    """

    reducer: TokenReducer
    leaving: int
    prefix: int

    @classmethod
    def convert(cls, module: PrunableBlock, reducer: TokenReducer, leaving: int, prefix: int) -> ReducedBlock:
        """Turn a block without pruned tokens into a reduced one in place; its tensors are untouched."""
        module.__class__ = cls
        module.reducer, module.leaving, module.prefix = reducer, leaving, prefix
        return module

    def forward(self, x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Run the block; tokens and sizes as in :meth:`TokenReducer.reduce`, None as long as nothing is merged."""
        return self.with_little_memory(self._reduce, x, sizes)

    def _reduce(self, x: Tensor, sizes: Tensor | None) -> tuple[Tensor, Tensor | None]:
        fewer = x.shape[1] - self.prefix - self.leaving
        with_map = self.reducer.needs_attention and fewer > 0
        bias = None if sizes is None else proportional_bias(sizes)
        out, keys, attention = self.attn.attend(self.norm1(x), bias, with_map)
        x = x + self.drop_path1(self.ls1(out))
        if fewer > 0:
            x, sizes = self.reducer.reduce(x, sizes, keys.mean(1), attention, self.leaving, self.prefix)
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x)))), sizes


class ReducedReIDModel(ReIDModel):
    """A :class:`ReIDModel` whose tokens are merged or dropped as ``spec.reducer`` says; its state dict is the same.

    Raises:
        ConfigError: If the ViT has no class token, or cannot leave as few tokens.
    """

    def __init__(self, spec: ModelSpec, pretrained: bool = False) -> None:
        super().__init__(spec, pretrained)
        vit, reducer = self.backbone, spec.reducer
        if not vit.has_class_token:
            raise ConfigError(f"amg.reducer '{reducer.method}' needs a ViT with a class token; {spec.arch} has none.")
        check_not_rotary(vit, f"amg.reducer '{reducer.method}'")
        reducer.check(len(vit.blocks), vit.patch_embed.num_patches)
        method = REDUCERS.load(reducer.method)()
        for block, leaving in zip(vit.blocks, reducer.tokens, strict=True):
            ReducedBlock.convert(block, method, leaving, vit.num_prefix_tokens)

    @property
    def tokens_per_block(self) -> list[int]:
        """Tokens that enter each block, without prefix tokens."""
        return self.spec.reducer.entering(self.backbone.patch_embed.num_patches)

    def branch_features(self, images: Tensor) -> Tensor:
        """Features before the neck, ``[B, D]``, of images ``[B, 3, height, width]``."""
        vit = self.backbone
        tokens = vit.norm_pre(vit.patch_drop(vit._pos_embed(vit.patch_embed(images))))
        sizes = None
        for block in vit.blocks:
            tokens, sizes = block(tokens, sizes)
        return at_least_float32(pooled_features(vit, vit.norm(tokens)))
