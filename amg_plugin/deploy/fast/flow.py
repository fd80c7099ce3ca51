"""Which tokens each block has to work on, found backwards from what the head reads.

Positions are constants, so that all of this is done once, on lists of numbers: the network that runs has a handful of
slices and constant gathers left, and none to restore an order that nobody reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

Positions = tuple[int, ...]


@dataclass(frozen=True)
class Step:
    """What one block does, as places in a sequence.

    The sequence is what left the block before, then what was carried around it.

    Attributes:
        gather: Places of the tokens that the block works on.
        carry: Places of the tokens that pass around it and are needed later.
        keys: Places among the gathered tokens that give keys and values.
        first_query: The gathered tokens from here on are queries, pass the MLP and leave the block.
        incoming: How many tokens left the block before; places from there on were carried.
    """

    gather: Positions
    carry: Positions
    keys: Positions
    first_query: int
    incoming: int

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
    """

    steps: tuple[Step, ...]
    order: Positions
    outgoing: int

    def rows_of(self, positions: Iterable[int]) -> Positions:
        """Where ``positions`` are in the final sequence."""
        place = {position: index for index, position in enumerate(self.order)}
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
        steps.append(Step(taken, passed, keys, first_query, incoming))
        source, incoming = gathered[first_query:] + carried, len(role.queries)
    return Flow(tuple(steps), tuple(source), incoming)


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
