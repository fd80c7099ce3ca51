import pytest
from torch.utils.data import DataLoader, RandomSampler

from amg_plugin.data.manager import shortened


@pytest.mark.parametrize(("batches", "expected"), [(1, 4), (3, 12), (9, 20)])
def test_an_epoch_ends_after_so_many_batches_or_with_the_data(batches, expected):
    loader = shortened(DataLoader(range(20), batch_size=4, sampler=RandomSampler(range(20))), batches)
    seen = [item for batch in loader for item in batch.tolist()]
    assert len(seen) == expected == len(set(seen))
    assert len(loader) == expected // 4


def test_every_epoch_has_an_order_of_its_own():
    loader = shortened(DataLoader(range(1000), batch_size=4, sampler=RandomSampler(range(1000))), 2)
    first, second = ([item for batch in loader for item in batch.tolist()] for _ in range(2))
    assert first != second
