"""Static merging: tokens are merged in groups of patches that are the same for every image. Pure functions.

It goes beyond the published method. A token that leaves is averaged into another one, which from then on stands for the
patches of both; the pairs are those that lose least by Ward's criterion (Ward, 1963), weighted by the importance of the
patches. Tokens that stand for several patches count as often as keys, as in ToMe (arXiv 2210.09461, "proportional
attention").
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from amg_plugin.errors import ConfigError
from amg_plugin.pruning.plan import Limits, PruningPlan

Group = tuple[int, ...]
#: Per token, the tokens that it is the mean of, as (place, weight).
Transition = tuple[tuple[tuple[int, float], ...], ...]


@dataclass(frozen=True)
class Tokens:
    """The patch tokens of a block.

    Attributes:
        positions: The position that each token has in the sequence, ascending.
        groups: The positions that each token stands for, ascending, its own among them.
    """

    positions: Group
    groups: tuple[Group, ...]

    @classmethod
    def all(cls, count: int) -> Tokens:
        """One token per position."""
        return cls(tuple(range(count)), tuple((position,) for position in range(count)))

    @property
    def sizes(self) -> Tensor:
        """How many positions each token stands for, float64."""
        return torch.tensor([len(group) for group in self.groups], dtype=torch.float64)

    def sums(self, values: Tensor) -> Tensor:
        """Sum of the ``values`` of all positions over each group, float64."""
        return torch.stack([values[list(group)].double().sum() for group in self.groups])

    def joined(self, pairs: Iterable[tuple[int, int]]) -> Tokens:
        """With the first token of each pair gone into the second; tokens are given by their places."""
        groups = {position: list(group) for position, group in zip(self.positions, self.groups, strict=True)}
        for leaving, staying in pairs:
            groups[self.positions[staying]] += groups.pop(self.positions[leaving])
        positions = tuple(sorted(groups))
        return Tokens(positions, tuple(tuple(sorted(groups[position])) for position in positions))

    def coarsened(self, other: Tokens, weights: Tensor) -> Tokens:
        """The finest groups that hold whole groups of both.

        Args:
            other: Tokens of the same patches. Of the positions here that come together, one that is there as well
                stays.
            weights: What each token here weighs; if there are several, the heaviest stays, on a tie the lowest.
        """
        home = {position: number for number, group in enumerate(other.groups) for position in group}
        clusters: list[tuple[set[int], list[int]]] = []  # groups of the other, places here
        for place, group in enumerate(self.groups):
            touched, places = {home[position] for position in group}, [place]
            apart = []
            for numbers, members in clusters:
                if numbers & touched:
                    touched, places = touched | numbers, members + places
                else:
                    apart.append((numbers, members))
            clusters = [*apart, (touched, places)]
        found = {}
        for _, places in clusters:
            stays = max(
                places, key=lambda place: (self.positions[place] in other.positions, float(weights[place]), -place)
            )
            found[self.positions[stays]] = tuple(
                sorted(position for place in places for position in self.groups[place])
            )
        return Tokens(tuple(sorted(found)), tuple(found[position] for position in sorted(found)))


def transition(before: Sequence[Group], after: Sequence[Group]) -> Transition:
    """How tokens become those of other groups: means, each weighted by the positions that it brings.

    Where groups are taken apart, every position gets the token that stood for it.
    """
    home = {position: place for place, group in enumerate(before) for position in group}
    found = []
    for group in after:
        places = [home[position] for position in group]
        found.append(tuple((place, places.count(place) / len(places)) for place in dict.fromkeys(sorted(places))))
    return tuple(found)


def even_numbers(pairs: int, blocks: int) -> list[int]:
    """How many tokens disappear in front of each of some consecutive blocks.

    The same number everywhere up to one, the larger first; where the total needs it, one further block loses one more.

    Args:
        pairs: (block, position) pairs that are to go in all: a token that goes is missing in all blocks behind, too.
        blocks: Number of blocks.
    """
    number, rest = divmod(pairs, max(blocks * (blocks + 1) // 2, 1))
    numbers = [number] * blocks
    for block in range(blocks):
        if rest >= blocks - block:
            numbers[block] += 1
            rest -= blocks - block
        elif rest:
            numbers[blocks - rest] += 1
            break
    return numbers


def tokens_left(numbers: Sequence[int], patches: int, floor: int, now: Sequence[int]) -> list[int]:
    """Patch tokens that consecutive blocks keep if ``numbers`` of them disappear in front of each.

    No more than one half can go at once, none below the ``floor``, and no block gets any back that it has lost.

    Args:
        numbers: Per block.
        patches: Patch tokens of the dense model.
        floor: Patch tokens to keep in every block.
        now: Patch tokens that each block has.
    """
    left, found = patches, []
    for number, present in zip(numbers, now, strict=True):
        left = min(max(left - number, left - left // 2, min(floor, left)), present)
        found.append(left)
    return found


@dataclass(frozen=True)
class MergeRange:
    """How many patch tokens merging can leave, as numbers; which ones merge is decided by statistics.

    Attributes:
        plan: Where the network stands.
        limits: What may go. Tokens are merged in front of the prunable blocks but the first.
    """

    plan: PruningPlan
    limits: Limits

    @property
    def blocks(self) -> Sequence[int]:
        """The blocks that tokens are merged in front of."""
        return self.limits.blocks[1:]

    @property
    def most(self) -> int:
        """Pairs to ask for, beyond which no more go."""
        return self.plan.num_patches // 2 * (len(self.blocks) * (len(self.blocks) + 1) // 2)

    def left(self, pairs: int) -> dict[int, int]:
        """Patch tokens of each block in :attr:`blocks` if ``pairs`` of the dense model's are to go."""
        now = [self.plan.tokens_per_block[block] for block in self.blocks]
        numbers = even_numbers(pairs, len(self.blocks))
        return dict(zip(self.blocks, tokens_left(numbers, self.plan.num_patches, self.limits.tokens, now), strict=True))

    def is_orderly(self, pairs: int) -> bool:
        """Whether no block loses more tokens than one in front of it."""
        numbers = even_numbers(pairs, len(self.blocks))
        return numbers == sorted(numbers, reverse=True)

    def removed(self, pairs: int) -> int:
        """Pairs that are gone, counted from the dense model, if ``pairs`` are asked for."""
        return sum(self.plan.num_patches - count for count in self.left(pairs).values())

    def nearest(self, pairs: int) -> dict[int, int]:
        """What is left if no more than ``pairs`` go, and no fewer than can be helped."""
        asked = bisect_left(range(self.most), pairs, key=self.removed)
        return self.left(asked - (asked > 0 and self.removed(asked) > pairs))

    def outline(self, left: Mapping[int, int]) -> PruningPlan:
        """A plan that keeps as many tokens, without a choice: the last ones of the sequence are one group."""
        groups = [Tokens.all(self.plan.num_patches).groups] * self.plan.depth
        for block, count in left.items():
            groups[block] = (*groups[0][: count - 1], tuple(range(count - 1, self.plan.num_patches)))
        return self.plan.merge([range(len(block)) for block in groups], groups)

    def check(self) -> None:
        """Check before any work starts that there is something to merge.

        Raises:
            ConfigError: If there is not.
        """
        numbers = list(self.limits.blocks)
        if len(numbers) < 2 or numbers != list(range(numbers[0], numbers[-1] + 1)):
            raise ConfigError(
                f"amg.token_variant 'merge' needs two or more prunable blocks, one behind the other; here they are "
                f"{numbers}."
            )
        if self.removed(self.most) == self.removed(0):
            raise ConfigError(
                f"amg.token_variant 'merge' finds no patch tokens left to merge: with amg.min_tokens_per_block "
                f"{self.limits.tokens}, the blocks keep {self.plan.tokens_per_block}."
            )


class TokenDistances:
    """Squared distances of tokens, mean over images, from streamed sums of products.

    Products of a batch are computed in its precision, float32 at least, and summed in float64.
    """

    def __init__(self) -> None:
        self.products: Tensor | float = 0.0
        self.images = 0

    def add(self, tokens: Tensor) -> None:
        """Take in a batch of tokens ``[B, N, D]``."""
        tokens = tokens.detach()
        tokens = tokens if tokens.dtype == torch.float64 else tokens.float()
        # Distances do not change, and lose less to rounding.
        rows = (tokens - tokens.mean(1, keepdim=True)).transpose(0, 1).flatten(1)
        self.products = self.products + (rows @ rows.T).double()
        self.images += tokens.shape[0]

    def mean(self, reduce: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """``[N, N]``, float64; ``reduce`` adds a tensor up over processes.

        Raises:
            RuntimeError: If nothing was taken in.
        """
        if not self.images:
            raise RuntimeError("no image was recorded")
        products, images = self.products, self.images
        if reduce is not None:
            products, images = reduce(products), int(reduce(torch.tensor(images, device=products.device)))
        squares = products.diagonal()
        return (squares[:, None] + squares[None, :] - 2 * products).clamp_min(0) / images


def merge_costs(distances: Tensor, sizes: Tensor, weights: Tensor) -> Tensor:
    """What each pair of tokens loses if it is merged: ``d2 (w_i s_j^2 + w_j s_i^2) / (s_i + s_j)^2``.

    The weighted sum of the squared distances from the mean of the two. With ``weights`` equal to ``sizes`` this is
    Ward's criterion.

    Args:
        distances: Squared distances ``[N, N]``.
        sizes: Patches that each token stands for, ``[N]``.
        weights: Importance of each token, that of its patches added up, ``[N]``.

    Returns:
        ``[N, N]``, float64.
    """
    sizes, weights = sizes.double(), weights.double()
    moved = weights[:, None] * sizes[None, :].square()
    return distances.double() * (moved + moved.T) / (sizes[:, None] + sizes[None, :]).square()


def choose_pairs(costs: Tensor, weights: Tensor, count: int) -> list[tuple[int, int]]:
    """One round of pairing, the cheapest pairs first.

    Pairs come in the order of (cost, lower place, higher place). The token of the smaller weight leaves, on a tie the
    one at the higher place. A pair counts only if neither has left, and the one to leave has taken none in.

    Args:
        costs: Of each pair, ``[N, N]``.
        weights: Of each token, ``[N]``.
        count: Pairs to choose; half of the tokens can always leave.

    Returns:
        Pairs (leaving, staying) of places, fewer than ``count`` if there are no more.
    """
    low, high = torch.triu_indices(len(costs), len(costs), 1)
    order = costs.cpu()[low, high].argsort(stable=True)  # pairs are in the order of their places already
    weighs, pairs = weights.tolist(), []
    left, taken = set(), set()
    for i, j in zip(low[order].tolist(), high[order].tolist(), strict=True):
        if len(pairs) == count:
            break
        leaving, staying = (i, j) if weighs[i] < weighs[j] else (j, i)
        if left.isdisjoint((i, j)) and leaving not in taken:
            pairs.append((leaving, staying))
            left.add(leaving)
            taken.add(staying)
    return pairs
