"""Which tokens each block has to work on, found backwards from what the head reads.

Positions are constants, so that all of this is done once, on lists of numbers: the network that runs has a handful of
slices and constant gathers left, and none to restore an order that nobody reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from amg_plugin.pruning.merging import Transition, transition

Positions = tuple[int, ...]


@dataclass(frozen=True)
class Step:
    """What one block does, as places in a sequence.

    The sequence is what left the block before, then what was carried around it.

    Attributes:
        gather: Places of the tokens that the block works on, behind ``means``.
        carry: Places of the tokens that pass around it and are needed later.
        keys: Places among the gathered tokens that give keys and values.
        first_query: The gathered tokens from here on are queries, pass the MLP and leave the block.
        incoming: How many tokens left the block before; places from there on were carried.
        rows: Which ones those in ``carry`` are among all positions that do not take part, ascending.
        means: Tokens that the block works on and that are means of others, as (place, weight).
        sizes: How many positions each token stands for that the block works on; empty where that is one.
        positions: What the gathered tokens are in the whole sequence; empty where tokens are merged.
    """

    gather: Positions
    carry: Positions
    keys: Positions
    first_query: int
    incoming: int
    rows: Positions = ()
    means: Transition = ()
    sizes: Positions = ()
    positions: Positions = ()

    @property
    def length(self) -> int:
        """How many tokens the block works on."""
        return len(self.means) + len(self.gather)

    @property
    def needs_carried(self) -> bool:
        """Whether any token comes back that was carried around the block before."""
        return max((*self.gather, *self.carry)) >= self.incoming


@dataclass(frozen=True)
class Flow:
    """The way of the tokens through all blocks.

    Attributes:
        steps: One per block.
        order: The positions left at the end, in the order they then have: those that left the last block, then those
            carried around it.
        outgoing: How many of them left the last block.
        groups: Where tokens are merged, the positions that each token of ``order`` stands for; else empty.
    """

    steps: tuple[Step, ...]
    order: Positions
    outgoing: int
    groups: tuple[Positions, ...] = ()

    def rows_of(self, positions: Iterable[int]) -> Positions:
        """Where ``positions`` are in the final sequence."""
        groups = self.groups or [(position,) for position in self.order]
        place = {position: index for index, group in enumerate(groups) for position in group}
        return tuple(place[position] for position in positions)


class _Roles(NamedTuple):
    keys: frozenset[int]
    queries: frozenset[int]
    carried: frozenset[int]


def token_flow(kept: Sequence[Sequence[int] | None], variant: str, length: int, read: Iterable[int]) -> Flow:
    """Plan the way of the tokens.

    A token is worked on in a block only if it gives a key that somebody asks for, or if what becomes of it is read
    later: by a later block that keeps it, or by the head. Tokens are sorted by how soon a block will do without them,
    so that the tokens of a block are a slice wherever none comes back.

    Args:
        kept: Per block, the positions that take part (prefix tokens included), None for all.
        variant: ``"block"`` or ``"kv"``, what it means not to take part.
        length: Tokens in the sequence.
        read: Positions that are read after the last block.
    """
    roles = _roles(kept, variant, frozenset(range(length)), frozenset(read))
    source, incoming = list(range(length)), length
    steps = []
    for index, role in enumerate(roles):
        later = roles[index + 1 :]
        order = {position: (position in role.queries, _until(position, later), position) for position in source}
        gathered = sorted(role.keys | role.queries, key=order.__getitem__)
        carried = [position for position in source if position in role.carried]
        place = {position: number for number, position in enumerate(source)}
        first_query = len(gathered) - len(role.queries)
        keys = tuple(number for number, position in enumerate(gathered) if position in role.keys)
        taken, passed = (tuple(place[position] for position in positions) for positions in (gathered, carried))
        outside = {position: row for row, position in enumerate(sorted(set(range(length)) - role.keys))}
        rows = tuple(outside[position] for position in carried)
        steps.append(Step(taken, passed, keys, first_query, incoming, rows, positions=tuple(gathered)))
        source, incoming = gathered[first_query:] + carried, len(role.queries)
    return Flow(tuple(steps), tuple(source), incoming)


def merged_flow(groups: Sequence[Sequence[Positions]], prefix: int, read: Iterable[int]) -> Flow:
    """Plan the way of tokens that are merged for good.

    Args:
        groups: Per block, the patch positions that each of its tokens stands for.
        prefix: Tokens in front of the patches, which stay for themselves.
        read: Positions of the whole sequence that are read after the last block.
    """
    read = frozenset(read)
    first = [(position,) for position in range(prefix)]
    patches = sorted(position for group in groups[0] for position in group)
    source = [*first, *((prefix + position,) for position in patches)]
    steps: list[Step] = []
    for number, block in enumerate(groups):
        tokens = [*first, *(tuple(prefix + position for position in group) for group in block)]
        members = dict(zip(tokens, transition(source, tokens), strict=True))
        means = [token for token in tokens if len(members[token]) > 1]
        # What the head reads goes last in the last block, where nothing else asks.
        ending = read if number == len(groups) - 1 and read <= frozenset(range(prefix)) else frozenset()
        alone = sorted(set(tokens) - set(means), key=lambda token: (token[0] in ending, token))
        order = [*means, *alone]
        steps.append(
            Step(
                gather=tuple(members[token][0][0] for token in alone),
                carry=(),
                rows=(),
                keys=tuple(range(len(order))),
                first_query=len(order) - len(ending) if ending else 0,
                incoming=len(source),
                means=tuple(members[token] for token in means),
                sizes=tuple(map(len, order)) if max(map(len, order)) > 1 else (),
            )
        )
        source = order[steps[-1].first_query :]
    return Flow(tuple(steps), tuple(token[0] for token in source), len(source), tuple(source))


def _until(position: int, later: Sequence[_Roles]) -> int:
    """How many blocks from here on work on a position without a break."""
    return next((number for number, role in enumerate(later) if position not in role.queries), len(later))


def _roles(
    kept: Sequence[Sequence[int] | None], variant: str, everything: frozenset[int], needed: frozenset[int]
) -> list[_Roles]:
    roles = []
    for positions in reversed(kept):
        keys = everything if positions is None else frozenset(positions)
        queries = needed & keys if variant == "block" else needed
        roles.append(_Roles(keys, queries, needed - queries))
        needed = needed | keys
    return roles[::-1]
