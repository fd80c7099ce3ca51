"""Multiply-accumulate operations of a block in closed form, for searches: complexity.py counts."""

from __future__ import annotations

from dataclasses import dataclass

from timm.models.vision_transformer import Block
from torch import nn


@dataclass(frozen=True)
class BlockCost:
    """What one block of a plain ViT costs, as a function of its heads and tokens.

    The same operations are counted as by :func:`amg_plugin.models.complexity.count`.

    Attributes:
        width: Embedding width.
        head_dim: Width of a head.
        inward: Linear maps from the embedding to the width of all heads per query: query, and gate if there is one.
        mlp: Operations of the MLP per token.
        head_params: Parameters that a head owns.
    """

    width: int
    head_dim: int
    inward: int
    mlp: int
    head_params: int

    @classmethod
    def of(cls, block: Block) -> BlockCost:
        """Read the sizes of a block, pruned or not."""
        attention = block.attn
        owned = [attention.qkv, attention.gate, attention.norm]
        tensors = [value for module in owned if module is not None for value in module.parameters(recurse=False)]
        tensors.append(attention.proj.weight)
        return cls(
            width=attention.qkv.in_features,
            head_dim=attention.head_dim,
            inward=1 + (attention.gate is not None),
            mlp=sum(module.weight.numel() for module in block.mlp.modules() if isinstance(module, nn.Linear)),
            head_params=sum(value.numel() for value in tensors) // attention.num_heads,
        )

    def macs(self, heads: int, queries: int, keys: int, rows: int) -> int:
        """Operations of one image.

        Args:
            heads: Heads of the attention.
            queries: Tokens that ask.
            keys: Tokens that are asked.
            rows: Tokens that pass the MLP.
        """
        across = heads * self.head_dim
        linear = queries * (self.inward + 1) + keys * 2  # query (and gate), output; key and value
        return linear * self.width * across + 2 * queries * keys * across + rows * self.mlp
