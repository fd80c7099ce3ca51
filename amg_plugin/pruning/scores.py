"""Scores: how uncertain a head is, how much a key/value token matters. Pure functions on tensors.

Source: arXiv 2304.01452, sections on head pruning (entropy of the mean attention map in the key dimension) and on token
pruning (similarity times first-order gradient). What goes beyond that paper names its own source.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

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


def token_sums_per_image(attention: Tensor, gradient: Tensor) -> Tensor:
    """As :func:`signed_token_sums`, but the absolute value is taken per image, so that images do not cancel out.

    Beyond the paper. Arguments as there; returns ``[K]``, at least 0, float64.
    """
    return (attention * gradient).sum(dim=(1, 2)).double().abs().sum(0)


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


def loss_changes(removed: Tensor, gradient: Tensor, width: int) -> Tensor:
    """First-order change of the loss when parts of a layer's input go, absolute value per image, summed over images.

    Source: Molchanov et al., arXiv 1906.10771; for heads Michel et al., arXiv 1905.10650.

    Args:
        removed: What the input loses when a part goes, ``[B, N, C]``; the input itself, if nothing takes its place.
        gradient: Gradient of the loss for the input, same shape.
        width: Neighbouring columns of a part: the width of a head for the input of ``proj``, 1 for that of ``fc2``.

    Returns:
        ``[C / width]``, float64.
    """
    per_image = (removed * gradient).sum(1, dtype=torch.float64)
    return per_image.unflatten(1, (-1, width)).sum(2).abs().sum(0)


def what_repair_leaves(covariance: Tensor, width: int, ridge: float = 1e-3) -> Tensor:
    """What is left of the input of a layer, part by part, once a part went and least squares made up for it.

    For each part ``h`` and the others ``K``: ``z_h - A (z_K - m_K) - m_h`` with ``A = C_hK (C_KK + l I)^-1`` and ``l``
    the mean diagonal of ``C_KK`` times ``ridge``, as in :func:`amg_plugin.pruning.repair.fit_least_squares`.

    Args:
        covariance: ``C`` of the layer's inputs, ``[C, C]``.
        width: Neighbouring columns of a part.
        ridge: Weight of the change of the weights.

    Returns:
        ``R`` ``[C, C]``, float64: what is left of an input ``z`` with mean ``m`` is ``R (z - m)``.
    """
    covariance = covariance.double()
    left = torch.eye(len(covariance), dtype=torch.float64, device=covariance.device)
    for start in range(0, len(covariance), width):
        part = slice(start, start + width)
        others = torch.ones(len(covariance), dtype=torch.bool, device=covariance.device)
        others[part] = False
        if others.any():
            penalised = covariance[others][:, others]
            weight = ridge * penalised.diagonal().mean()
            penalised.diagonal().add_(weight.clamp_min(torch.finfo(torch.float32).tiny))  # all of them may be 0
            left[part, others] = -torch.linalg.solve(penalised, covariance[others, part]).T
    return left


def entropy_against_gradient(entropy: Sequence[Tensor], changes: Sequence[Tensor]) -> list[Tensor]:
    """Weigh the entropy of heads against what removing them does to the loss.

    Both are scaled to 0 ... 1, from the smallest to the largest value over all blocks together; the score is half of
    their difference. A head goes early if its attention is spread evenly *and* the loss hardly depends on it. The idea
    of joining the two is that of HIES (arXiv 2510.13832); scale and weights are of this package.

    Args:
        entropy: Per block, entropies ``[H]``.
        changes: Per block, what :func:`loss_changes` gives, ``[H]``.

    Returns:
        Per block ``[H]``, from -0.5 (keep) to 0.5 (remove), float64.
    """
    both = zip(_to_unit_range(entropy), _to_unit_range(changes), strict=True)
    return [(spread - change) / 2 for spread, change in both]


def _to_unit_range(values: Sequence[Tensor]) -> list[Tensor]:
    together = torch.cat([block.double() for block in values])
    least, most = together.aminmax()
    # What does not tell heads apart has no say.
    scaled = (together - least) / (most - least) if most != least else torch.zeros_like(together)
    return list(scaled.split([len(block) for block in values]))
