"""Scores: how uncertain a head is, how much a key/value token matters. Pure functions on tensors.

Source: arXiv 2304.01452, sections on head pruning (entropy of the mean attention map in the key dimension) and on token
pruning (similarity times first-order gradient).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def head_entropy(mean_attention: Tensor, normalize: bool = False) -> Tensor:
    """Entropy of each head's mean attention, averaged over the queries.

    Args:
        mean_attention: Softmax attention averaged over the calibration images, ``[H, Q, K]``.
        normalize: Divide by ``log2(K)``, so that blocks with different numbers of keys compare.

    Returns:
        ``[H]`` in bits (or as a share of the ceiling with ``normalize``), float64; ``0 log 0`` counts as 0.
    """
    probabilities = mean_attention.double()
    entropy = torch.special.entr(probabilities).sum(-1).mean(-1) / math.log(2)
    keys = mean_attention.shape[-1]
    if normalize and keys > 1:
        entropy = entropy / math.log2(keys)
    return entropy


def signed_token_sums(attention: Tensor, gradient: Tensor) -> Tensor:
    """Sum of attention times its gradient over samples, heads and queries.

    Sums of several parts of one global batch are added up before :func:`token_importance_from_sums`.

    Args:
        attention: Softmax attention ``[B, H, Q, K]``.
        gradient: Gradient of the loss for it, same shape.

    Returns:
        Signed first-order change of the loss per key, ``[K]``.
    """
    return (attention * gradient).sum(dim=(0, 1, 2))


def token_importance_from_sums(sums: Tensor, count: int, num_prefix_tokens: int) -> Tensor:
    """Finish the importance of one global batch.

    Args:
        sums: Signed sums ``[K]`` of the whole batch.
        count: Number of terms behind each, samples x heads x queries.
        num_prefix_tokens: Leading tokens that are never pruned; dropped from the result.

    Returns:
        ``[K - num_prefix_tokens]``.
    """
    return (sums.abs() / count)[num_prefix_tokens:]


def token_importance(attention: Tensor, gradient: Tensor, num_prefix_tokens: int) -> Tensor:
    """First-order Taylor estimate of the loss change when a key/value token is removed, for one batch.

    Args:
        attention: Softmax attention ``[B, H, Q, K]``.
        gradient: Gradient of the loss for it, same shape.
        num_prefix_tokens: Leading tokens that are never pruned (class, distillation, register tokens).

    Returns:
        ``|sum over b, h, q| / (B H Q)`` per patch token, ``[N]`` with ``N = K - num_prefix_tokens``.
    """
    batch, heads, queries, _ = attention.shape
    return token_importance_from_sums(
        signed_token_sums(attention, gradient), batch * heads * queries, num_prefix_tokens
    )
