"""What ``torchrun`` says of the processes that it has started; light, for what runs before torch is imported."""

from __future__ import annotations

import os
from dataclasses import dataclass

from amg_plugin.errors import InputError


@dataclass(frozen=True)
class Launched:
    """This process among those of a run.

    Attributes:
        rank: Its number, from 0.
        count: How many there are, on all machines together.
        local_rank: Its number on this machine.
        local_count: How many there are on this machine.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    local_count: int = 1


def launched() -> Launched:
    """Read ``RANK``, ``WORLD_SIZE``, ``LOCAL_RANK`` and ``LOCAL_WORLD_SIZE``; one process without them.

    Raises:
        InputError: If they are no such numbers.
    """
    found = os.environ.get("WORLD_SIZE", "")
    if found in ("", "1"):
        return Launched()
    try:
        rank, count = int(os.environ.get("RANK", "")), int(found)
        local_rank = int(os.environ.get("LOCAL_RANK", rank))
        local_count = int(os.environ.get("LOCAL_WORLD_SIZE", count))
    except ValueError:
        rank, count, local_rank, local_count = -1, 0, 0, 0
    if not (0 <= rank < count and 0 <= local_rank < local_count <= count):
        raise InputError(
            f"WORLD_SIZE is {found!r} in the environment, which stands for one of several processes, but RANK and the "
            "others do not fit it; start with torchrun, or take WORLD_SIZE out of the environment."
        )
    return Launched(rank, count, local_rank, local_count)
