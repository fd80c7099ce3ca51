"""Order and transforms of an epoch follow from seed and epoch, whoever reads the images."""

import random

import numpy as np
import pytest
import torch
from torch.utils.data import RandomSampler

from amg_plugin import compat

if not compat.is_installed():
    pytest.skip("torchreid is not installed", allow_module_level=True)

from amg_plugin.config.schema import SAMPLERS
from amg_plugin.data.manager import build_datamanager
from amg_plugin.data.seeding import SeededSampler, begin
from amg_plugin.engine.calibration import build_calibration

AUGMENTED = ["random_flip", "random_crop", "color_jitter", "pad_crop", "random_occlusion", "random_erase"]


@pytest.fixture
def loader(make_cfg):
    """Gives a training loader; the process's random numbers are others each time."""

    def make(**changes):
        return build_datamanager(make_cfg(data__transforms=AUGMENTED, **changes)).train_loader

    return make


def epochs(loader, count=2):
    """Images, paths of some epochs, the first of them with number 0."""
    batches = [batch for _ in range(count) for batch in loader]
    return torch.cat([batch["img"] for batch in batches]), [path for batch in batches for path in batch["impath"]]


@pytest.mark.parametrize("memory", ["auto", "none"])
@pytest.mark.parametrize("workers", [1, 2])
def test_images_do_not_depend_on_the_number_of_workers(loader, workers, memory):
    expected, paths = epochs(loader(data__workers=0, amg__cache_images=memory))
    images, found = epochs(loader(data__workers=workers, amg__cache_images=memory))
    assert found == paths
    assert torch.equal(images, expected)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_is_seeded(loader, sampler):
    options = {"sampler__train_sampler": sampler, "sampler__num_instances": 4, "sampler__num_cams": 2}
    (images, paths), (again, same), (other, _) = (epochs(loader(train__seed=seed, **options), 1) for seed in (1, 1, 2))
    assert same == paths
    assert torch.equal(images, again)
    assert not torch.equal(images, other)


def test_short_epochs_are_the_beginnings_of_long_ones(loader):
    _, paths = epochs(loader(), 1)
    _, short = epochs(loader(amg__batches_per_epoch=2), 1)
    assert short == paths[: len(short)]


def test_every_epoch_has_an_order_and_transforms_of_its_own(loader):
    made = loader(sampler__train_sampler="SequentialSampler")
    (first, paths), (second, same) = epochs(made, 1), epochs(made, 1)
    assert paths == same
    assert not torch.equal(first, second)
    begin(made, 0)
    assert torch.equal(epochs(made, 1)[0], first)


def test_an_image_that_comes_twice_is_transformed_twice(loader):
    dataset = loader().dataset
    one, two = (dataset[index]["img"] for index in SeededSampler([3, 3], seed=1))
    assert not torch.equal(one, two)


def test_random_numbers_of_the_process_stay_as_they_were(loader):
    made = loader()

    def drawn():
        return random.random(), np.random.rand(), torch.rand(()).item()

    def restart():
        random.seed(4)
        np.random.seed(4)
        torch.manual_seed(4)

    restart()
    expected = drawn()
    restart()
    epochs(made)
    assert drawn() == expected


def test_a_sampler_with_an_order_of_its_own_keeps_it():
    assert list(SeededSampler(range(5), seed=1)) == list(range(5))
    assert len(SeededSampler(RandomSampler(range(5)), seed=1)) == 5


@pytest.mark.parametrize("augment", [False, True])
def test_every_calibration_of_an_epoch_sees_the_same_images(make_engine, augment):
    def images(engine):
        return torch.cat([images for images, *_ in build_calibration(engine, "score").batches()])

    options = {"data__transforms": AUGMENTED, "amg__calibration__augment": augment}
    engine, other = make_engine(**options), make_engine(data__workers=2, **options)
    first = images(engine)
    assert torch.equal(images(engine), first)
    assert torch.equal(images(other), first)
    engine.epoch = 1
    assert not torch.equal(images(engine), first)
