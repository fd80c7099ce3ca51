"""Token dropping by class attention, from "Not All Patches are What You Need" (EViT, arXiv 2202.07800)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from amg_plugin.models.reducers.method import TokenReducer


def class_attention(attention: Tensor, prefix: int) -> Tensor:
    """Attention that the class token pays to each token behind the prefix, mean over heads, ``[B, N - prefix]``.

    Args:
        attention: Softmax maps ``[B, H, Q, K]``; the class token is query 0.
        prefix: Leading tokens that are protected.
    """
    return attention[:, :, 0, prefix:].mean(1)


def drop(tokens: Tensor, importance: Tensor, keep: int, prefix: int) -> Tensor:
    """Keep the most important tokens and fuse the others into one (section 3 of the paper).

    The fused token is the sum of the others, each times its importance.

    Args:
        tokens: ``[B, N, D]``.
        importance: ``[B, N - prefix]``.
        keep: Tokens behind the prefix that are kept.
        prefix: Leading tokens that are always kept.

    Returns:
        ``[B, prefix + keep + 1, D]``: prefix, kept tokens in their order, fused token.
    """
    order = importance.sort(dim=1, descending=True).indices  # ONNX has no stable sort
    kept, others = order[:, :keep].sort(dim=1).values, order[:, keep:]
    behind, width = tokens[:, prefix:], tokens.shape[-1]
    weights = importance.gather(1, others).unsqueeze(-1).to(tokens.dtype)
    fused = (behind.gather(1, others.unsqueeze(-1).expand(-1, -1, width)) * weights).sum(1, keepdim=True)
    return torch.cat((tokens[:, :prefix], behind.gather(1, kept.unsqueeze(-1).expand(-1, -1, width)), fused), dim=1)


class TokenDropping(TokenReducer):
    """Token dropping (EViT): the same share stays at every stage; the others are fused into one token."""

    needs_attention = True

    def reduce(
        self, tokens: Tensor, sizes: Tensor | None, keys: Tensor, attention: Tensor | None, leaving: int, prefix: int
    ) -> tuple[Tensor, Tensor | None]:
        """Keep what the class token attends to; arguments as :meth:`TokenReducer.reduce`."""
        return drop(tokens, class_attention(attention, prefix), leaving - 1, prefix), sizes

    def stages(self, depth: int) -> tuple[int, ...]:
        """After a quarter, a half and three quarters of the blocks, as the paper (4th, 7th, 10th of 12)."""
        return tuple(sorted({depth * quarter // 4 for quarter in (1, 2, 3)}))

    def fewest(self, tokens: int) -> int:
        """One token and the fused one."""
        return min(tokens, 2)

    def leaving(self, strength: float, tokens: int, patches: int) -> int:
        """The share that stays, rounded up, and the fused token."""
        return min(tokens, max(math.ceil((1 - strength) * tokens), 1) + 1)
