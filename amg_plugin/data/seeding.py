"""Random numbers of training data that follow from seed and epoch, whoever reads the images.

The order of an epoch is drawn by torchreid's sampler from a seed of its own. Every place in that order has a seed, too,
which travels with the index to whichever process reads the image; transforms draw from it.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from amg_plugin.utils import processes

#: What random numbers are for; each has numbers of its own.
TRAINING, CALIBRATION, NETWORK = 0, 1, 2
_ITEMS = np.random.MT19937(0)  # stands in for numpy's own generator; seeded for every item


class SeededIndex(int):
    """An index with the seed of the random numbers that its item takes.

    Attributes:
        seed: 64 bits; None leaves the item to the random numbers of the process.
    """

    seed: int | None = None


@contextlib.contextmanager
def random_numbers(seed: int | None) -> Iterator[None]:
    """Let Python's, numpy's and torch's random numbers on the CPU start from ``seed`` in this block only.

    Blocks do not stand in one another.

    Args:
        seed: 64 bits; None changes nothing.
    """
    if seed is None:
        yield
        return
    python, generator, state = random.getstate(), np.random.get_bit_generator(), torch.get_rng_state()
    np.random.set_bit_generator(_ITEMS)  # copying numpy's state would take most of the time
    random.seed(seed)
    # Halves: numpy and torch have the same generator, whose numbers must not be the same.
    np.random.seed(seed >> 32)
    torch.default_generator.manual_seed(seed & 0xFFFFFFFF)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_bit_generator(generator)
        torch.set_rng_state(state)


class SeededSampler(Sampler[int]):
    """Another sampler, whose order follows from seed and epoch; gives :class:`SeededIndex`.

    Every pass is an epoch of its own, unless :meth:`begin` says which one comes next.

    Where several processes share a run, all of them draw the same order, and each gets its slice of every batch: no
    image goes to two of them, and an image has the same random numbers wherever it goes.

    Args:
        sampler: Draws the order from Python's, numpy's or torch's random numbers, as torchreid's samplers do.
        seed: The seed of the run.
        purpose: What the order is for.
        batch: Images of a batch, over all processes.
    """

    def __init__(self, sampler: Sampler, seed: int, purpose: int = TRAINING, batch: int = 1) -> None:
        self.sampler, self.seed, self.purpose, self.batch = sampler, seed, purpose, batch
        self._epoch = self._done = 0

    def other(self, sampler: Sampler | None = None, purpose: int | None = None) -> SeededSampler:
        """The same with another sampler, or for another purpose."""
        purpose = self.purpose if purpose is None else purpose
        return SeededSampler(sampler or self.sampler, self.seed, purpose, self.batch)

    def begin(self, epoch: int, done: int = 0) -> None:
        """The next pass is that of ``epoch``, counted from 0, behind the first ``done`` items of all processes."""
        self._epoch, self._done = epoch, done

    def __iter__(self) -> Iterator[int]:
        numbers = np.random.default_rng([self.seed, self.purpose, self._epoch])
        self._epoch += 1
        with random_numbers(_draw(numbers, 1)[0]):
            order = [SeededIndex(index) for index in self.sampler]
        for index, seed in zip(order, _draw(numbers, len(order)), strict=True):
            index.seed = seed
        order, self._done = order[self._done :], 0
        return iter(order if processes.world() == 1 else self._share(order))

    def _share(self, order: list[SeededIndex]) -> list[SeededIndex]:
        whole = len(order) - len(order) % self.batch  # as loaders that drop what fills no batch
        batches = (order[start : start + self.batch] for start in range(0, whole, self.batch))
        return [index for batch in batches for index in processes.own(batch)]

    def __len__(self) -> int:
        count, number = len(self.sampler), processes.world()
        return count if number == 1 else count // self.batch * self.batch // number


def seed_networks(seed: int, epoch: int) -> None:
    """Give what a network draws (stochastic depth, dropout) in an epoch to each process that shares a run.

    Process 0 goes on with the random numbers of the run; those of the others follow from seed, epoch and number.
    """
    if processes.is_main():
        return
    (drawn,) = _draw(np.random.default_rng([seed, NETWORK, epoch, processes.rank()]), 1)
    random.seed(drawn)
    np.random.seed(drawn >> 32)
    torch.manual_seed(drawn & 0xFFFFFFFF)


def _draw(numbers: np.random.Generator, count: int) -> list[int]:
    return numbers.integers(2**64, size=count, dtype=np.uint64).tolist()


def begin(loader: DataLoader, epoch: int, done: int = 0) -> None:
    """Start an epoch, counted from 0, of a loader, behind its first ``done`` items; one that is not seeded stays."""
    if hasattr(loader.sampler, "begin"):
        loader.sampler.begin(epoch, done)
    if (replacements := getattr(loader.dataset, "replacements", None)) is not None:
        replacements.begin(epoch)
