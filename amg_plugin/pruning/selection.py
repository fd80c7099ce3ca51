"""Which heads and tokens to keep, given their scores. Pure functions; totals are exact.

Source: arXiv 2304.01452; the weights ``1 + g i`` and ``1 - d l`` are those of the two published programs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from amg_plugin.errors import InputError

_ROUNDING = 1e-9


def removal_count(rate: float, total: int) -> int:
    """Number of heads or tokens that a rate of the dense total stands for."""
    return int(rate * total + _ROUNDING)


def select_heads(entropy: Sequence[Tensor], count: int, layer_growth: float, min_heads: int = 1) -> list[list[int]]:
    """Remove the heads with the largest weighted entropy over all blocks together.

    The entropy of a block is multiplied by ``1 + layer_growth * i``, where ``i`` counts, from 0, the blocks that still
    have more than one head. Ties go to the lower block, then to the lower index. A block at its floor is passed over
    and the next candidate is taken, so that the total is exact.

    Args:
        entropy: Per block, scores ``[H]`` of the heads that are left.
        count: Number of heads to remove.
        layer_growth: Growth of the weight per block.
        min_heads: Heads that every block keeps, at least 1.

    Returns:
        Per block, the kept indices into the given tensors, ascending.

    Raises:
        InputError: If a score is not finite, the floor is below 1 or the count is not feasible.
    """
    weighted, position = [], 0
    for values in entropy:
        factor = 1.0
        if len(values) > 1:
            factor += layer_growth * position
            position += 1
        weighted.append(torch.as_tensor(values).detach().double().cpu() * factor)
    return _remove(weighted, count, min_heads, largest=True, what="heads")


def select_tokens(scores: Sequence[Tensor], count: int, layer_decay: float, min_tokens: int = 1) -> list[list[int]]:
    """Remove the key/value tokens with the smallest weighted importance over all blocks together.

    The scores of a block are divided by their L2 norm and multiplied by ``1 - layer_decay * l``, ``l`` the index of the
    block from 0. Ties go to the lower block, then to the lower index.

    Args:
        scores: Per block, importance ``[N]`` of the patch tokens that are left.
        count: Number of (block, position) pairs to remove.
        layer_decay: Decay of the weight per block.
        min_tokens: Patch tokens that every block keeps, at least 1.

    Returns:
        Per block, the kept indices into the given tensors, ascending.

    Raises:
        InputError: If a score is not finite, the floor is below 1 or the count is not feasible.
    """
    weighted = []
    for index, values in enumerate(scores):
        values = torch.as_tensor(values).detach().double().cpu()
        norm = torch.linalg.vector_norm(values)
        weighted.append(values / norm.clamp_min(torch.finfo(torch.float64).tiny) * (1 - layer_decay * index))
    return _remove(weighted, count, min_tokens, largest=False, what="tokens")


#: By what is removed.
SELECTORS = {"heads": select_heads, "tokens": select_tokens}


def _remove(scores: list[Tensor], count: int, floor: int, *, largest: bool, what: str) -> list[list[int]]:
    if floor < 1:
        raise InputError(f"A block must keep at least 1 of its {what}, a floor of {floor} is not allowed.")
    if any(not torch.isfinite(values).all() for values in scores):
        raise InputError(f"A score of the {what} is not finite; the calibration pass gave NaN or infinity.")
    left = [len(values) for values in scores]
    feasible = sum(max(size - floor, 0) for size in left)
    if not 0 <= count <= feasible:
        raise InputError(
            f"Cannot remove {count} of {sum(left)} {what}: with at least {floor} kept in each of {len(left)} blocks, "
            f"0 to {feasible} can go."
        )
    candidates = [
        (-value if largest else value, block, index)
        for block, values in enumerate(scores)
        for index, value in enumerate(values.tolist())
    ]
    removed: list[set[int]] = [set() for _ in scores]
    for _, block, index in sorted(candidates):
        if count == 0:
            break
        if left[block] > floor:
            removed[block].add(index)
            left[block] -= 1
            count -= 1
    return [[i for i in range(len(values)) if i not in gone] for values, gone in zip(scores, removed, strict=True)]
