"""Which heads, tokens and neurons to keep, given their scores. Pure functions; totals are exact.

Source: arXiv 2304.01452; the weights ``1 + g i`` and ``1 - d l`` are those of the two published programs. Neurons are
beyond the paper.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from amg_plugin.errors import InputError
from amg_plugin.pruning.plan import Limits

_ROUNDING = 1e-9


def removal_count(rate: float, total: int) -> int:
    """Number of heads, tokens or neurons that a rate of the dense total stands for."""
    return int(rate * total + _ROUNDING)


class Removals:
    """What goes, in order, whatever the number.

    The smallest values of all blocks together go first. Ties go to the lower block, then to the lower index. A block at
    its floor is passed over and the next candidate is taken.

    What is left in a block that loses some is a multiple of ``multiple``: its items go in groups, the smallest first,
    down to the next multiple, and a group counts as much as its largest value.

    Args:
        values: Per block, a value of each item that is left, ``[n]``.
        floor: Items that every block keeps, at least 1.
        what: What the items are, for messages.
        multiple: What kept numbers are rounded up to.

    Raises:
        InputError: If a value is not finite or the floor is below 1.
    """

    def __init__(self, values: Sequence[Tensor], floor: int, what: str, multiple: int = 1) -> None:
        self.left, self.floor, self.what, self.multiple = [len(one) for one in values], floor, what, multiple
        if floor < 1:
            raise InputError(f"A block must keep at least 1 of its {what}, a floor of {floor} is not allowed.")
        if any(not torch.isfinite(one).all() for one in values):
            raise InputError(f"A score of the {what} is not finite; the calibration pass gave NaN or infinity.")
        groups = []
        for block, one in enumerate(values):
            pairs = sorted((value, index) for index, value in enumerate(one.tolist()))
            start, left = 0, len(pairs)
            while (smaller := (left - 1) // multiple * multiple) >= floor:
                group = pairs[start : start + left - smaller]
                groups.append((group[-1][0], block, start, [index for _, index in group]))
                start, left = start + left - smaller, smaller
        self._groups = [(block, group) for _, block, _, group in sorted(groups)]

    def kept(self, count: int) -> list[list[int]]:
        """What is left without the first ``count``: per block, indices into the values, ascending.

        Groups go as long as no more than ``count`` items are gone, so the total falls short by less than a group.

        Raises:
            InputError: If the count is not feasible.
        """
        feasible = sum(len(group) for _, group in self._groups)
        if not 0 <= count <= feasible:
            raise InputError(
                f"Cannot remove {count} of {sum(self.left)} {self.what}: with at least {self.floor} kept in each of "
                f"{len(self.left)} blocks, 0 to {feasible} can go."
            )
        gone: list[set[int]] = [set() for _ in self.left]
        for block, group in self._groups:
            count -= len(group)
            if count < 0:
                break
            gone[block].update(group)
        return [[i for i in range(size) if i not in out] for size, out in zip(self.left, gone, strict=True)]


def _as_doubles(scores: Sequence[Tensor]) -> list[Tensor]:
    return [torch.as_tensor(values).detach().double().cpu() for values in scores]


def _heads(entropy: Sequence[Tensor], layer_growth: float, floor: int) -> Removals:
    weighted, position = [], 0
    for values in _as_doubles(entropy):
        factor = 1.0
        if len(values) > 1:
            factor += layer_growth * position
            position += 1
        weighted.append(-values * factor)
    return Removals(weighted, floor, "heads")


def _tokens(scores: Sequence[Tensor], layer_decay: float, floor: int) -> Removals:
    weighted = []
    for index, values in enumerate(_as_doubles(scores)):
        norm = torch.linalg.vector_norm(values)
        weighted.append(values / norm.clamp_min(torch.finfo(torch.float64).tiny) * (1 - layer_decay * index))
    return Removals(weighted, floor, "tokens")


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
    return _heads(entropy, layer_growth, min_heads).kept(count)


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
    return _tokens(scores, layer_decay, min_tokens).kept(count)


def select_neurons(scores: Sequence[Tensor], count: int, min_neurons: int = 1, multiple: int = 1) -> list[list[int]]:
    """Remove the hidden units of the MLPs with the smallest importance over all blocks together.

    Ties go to the lower block, then to the lower index. With a ``multiple`` units go in groups, see :class:`Removals`,
    and the total falls short of ``count`` by less than a group.

    Args:
        scores: Per block, importance ``[F]`` of the hidden units that are left.
        count: Number of units to remove.
        min_neurons: Units that every block keeps, at least 1.
        multiple: The kept number of a block that loses units is a multiple of this.

    Returns:
        Per block, the kept indices into the given tensors, ascending.

    Raises:
        InputError: If a score is not finite, the floor is below 1 or the count is not feasible.
    """
    return Removals(_as_doubles(scores), min_neurons, "neurons", multiple).kept(count)


def removals(target: str, scores: Sequence[Tensor], weight: float, limits: Limits) -> Removals:
    """The order in which scores take away what the limits allow.

    Args:
        target: ``"heads"``, ``"tokens"`` or ``"neurons"``.
        scores: Per prunable block, as :func:`select_heads`, :func:`select_tokens` or :func:`select_neurons` take them.
        weight: Growth of heads or decay of tokens per block; neurons have no weight.
        limits: What may go.

    Raises:
        InputError: If a score is not finite.
    """
    floor = limits.floor(target)
    if target == "neurons":
        return Removals(_as_doubles(scores), floor, target, limits.multiple)
    return (_heads if target == "heads" else _tokens)(scores, weight, floor)
