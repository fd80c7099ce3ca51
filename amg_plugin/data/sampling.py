"""Which images make a batch, beside torchreid's samplers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import DataLoader, Sampler


class EvenBatches(Sampler[int]):
    """Batches of equally many images of identities that all come equally often.

    torchreid's ``RandomIdentitySampler`` deals images out without repetition: identities with many images come more
    often, and the last batches of an epoch hold only those. Here every batch takes the next identities of a random
    order of all, and random images of each. Random numbers are torch's.

    Args:
        identities: Identity of every image.
        size: Images of a batch.
        images: Images of an identity in it; drawn with repetition where there are fewer. The last identity of a batch
            has fewer if ``size`` is not a multiple.
        batches: Batches of an epoch.
    """

    def __init__(self, identities: Sequence[int], size: int, images: int, batches: int) -> None:
        self.places: dict[int, list[int]] = defaultdict(list)
        for place, identity in enumerate(identities):
            self.places[identity].append(place)
        self.size, self.images, self.batches = size, images, batches

    @classmethod
    def of(cls, loader: DataLoader, images: int) -> EvenBatches:
        """Batches for a training loader of torchreid's, in an epoch as many as its images fill."""
        items, size = loader.dataset.train, loader.batch_size
        return cls([item[1] for item in items], size, images, len(items) // size)

    def __len__(self) -> int:
        return self.size * self.batches

    def __iter__(self) -> Iterator[int]:
        identities, count = list(self.places), -(-self.size // self.images)
        waiting: list[int] = []
        for _ in range(self.batches):
            while len(waiting) < count:  # those that are left come first, and last in the next order
                order = [identities[number] for number in torch.randperm(len(identities)).tolist()]
                waiting = waiting + sorted(order, key=waiting.__contains__)
            batch, waiting = waiting[:count], waiting[count:]
            yield from [place for identity in batch for place in self._images_of(identity)][: self.size]

    def _images_of(self, identity: int) -> list[int]:
        own = self.places[identity]
        if len(own) < self.images:
            return [own[number] for number in torch.randint(len(own), (self.images,)).tolist()]
        return [own[number] for number in torch.randperm(len(own))[: self.images].tolist()]
