"""Batches in which every identity comes equally often."""

from collections import Counter

import pytest
import torch

from amg_plugin.data.sampling import EvenBatches

#: Images of eleven identities, from one to thirty.
IDENTITIES = [identity for identity, count in enumerate((1, 2, 3, 4, 5, 6, 7, 8, 9, 20, 30)) for _ in range(count)]


def batches_of(size=16, images=4, batches=22):
    torch.manual_seed(0)
    order = list(sampler := EvenBatches(IDENTITIES, size, images, batches))
    assert len(order) == len(sampler) == size * batches
    return [order[start : start + size] for start in range(0, len(order), size)]


def test_every_identity_comes_equally_often():
    counts = Counter(IDENTITIES[place] for batch in batches_of() for place in batch)
    assert counts == dict.fromkeys(range(11), 32)  # 22 batches of four make eight rounds of eleven


def test_a_batch_has_as_many_images_of_each_of_its_identities():
    for batch in batches_of():
        assert sorted(Counter(IDENTITIES[place] for place in batch).values()) == [4, 4, 4, 4]


def test_images_repeat_only_where_an_identity_has_too_few():
    for batch in batches_of():
        repeated = {IDENTITIES[place] for place, count in Counter(batch).items() if count > 1}
        assert repeated <= {0, 1, 2}


def test_all_images_come():
    assert {place for batch in batches_of(batches=200) for place in batch} == set(range(len(IDENTITIES)))


def test_batches_are_full_where_there_are_fewer_identities_than_they_take():
    assert len(list(EvenBatches([0, 0, 0, 1, 1, 1], 10, 4, 3))) == 30


@pytest.mark.parametrize("size", [15, 17])
def test_the_last_identity_of_a_batch_may_be_incomplete(size):
    for batch in batches_of(size):
        assert min(Counter(IDENTITIES[place] for place in batch).values()) == size % 4
