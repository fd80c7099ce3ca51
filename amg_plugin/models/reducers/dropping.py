"""Token dropping by class attention, from "Not All Patches are What You Need" (EViT, arXiv 2202.07800)."""

from __future__ import annotations

import torch
from torch import Tensor


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
