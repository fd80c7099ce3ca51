"""Images kept in memory: the same pixels, the same randomness, shared by loader processes, within bounds."""

import copy
import logging
import random
import shutil

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from torchvision.transforms import CenterCrop, ToTensor

import amg_plugin
from amg_plugin import compat
from amg_plugin.errors import DataError, RunError
from amg_plugin.registries import TRANSFORMS, register_transform

if not compat.is_installed():
    pytest.skip("torchreid is not installed", allow_module_level=True)

from amg_plugin.data.cache import keep_images
from amg_plugin.data.manager import AMGImageDataManager, build_datamanager
from amg_plugin.data.seeding import begin

HEIGHT, WIDTH = 64, 32
BYTES = 3 * HEIGHT * WIDTH
TRAIN, QUERY = 24, 8
OPTIONS = {
    "sources": "synthetic_reid",
    "height": HEIGHT,
    "width": WIDTH,
    "batch_size_train": 8,
    "batch_size_test": 8,
    "workers": 0,
    "use_gpu": False,
}


def manager(root, cache_gb=0.0, **changes):
    amg_plugin.register()
    return AMGImageDataManager(root=str(root), cache_gb=cache_gb, **{**OPTIONS, **changes})


def loaders(made):
    return [made.train_loader, *made.test_loader["synthetic_reid"].values()]


def seed():
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)


def epochs(loader, count=2):
    """Everything that some epochs of a loader give, from one seed on."""
    seed()
    begin(loader, 0)
    return [batch for _ in range(count) for batch in loader]


def assert_equal(ours, expected):
    assert len(ours) == len(expected) > 0
    for batch, other in zip(ours, expected, strict=True):
        assert batch.keys() == other.keys()
        for key in other:
            same = torch.equal if torch.is_tensor(other[key]) else lambda one, two: one == two
            assert same(batch[key], other[key]), key


@pytest.mark.parametrize("names", [[], *([name] for name in TRANSFORMS), list(TRANSFORMS)], ids=str)
def test_items_are_torchreids_bit_for_bit(drawn_root, names):
    plain, kept = manager(drawn_root, transforms=names), manager(drawn_root, 1.0, transforms=names)
    for ours, expected in zip(loaders(kept), loaders(plain), strict=True):
        assert_equal(epochs(ours), epochs(expected))


def test_what_is_random_stays_random(drawn_root):
    first, second = (
        torch.cat([batch["img"] for batch in DataLoader(manager(drawn_root, 1.0).train_loader.dataset, 8)])
        for _ in range(2)
    )
    assert not torch.equal(first, second)


def test_files_are_read_once(own_root):
    made = manager(own_root, 1.0)
    expected = [epochs(loader, 1) for loader in loaders(made)]
    shutil.rmtree(own_root / "synthetic_reid")
    for loader, before in zip(loaders(made), expected, strict=True):
        assert_equal(epochs(loader, 1), before)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_loader_processes_share_them_however_they_are_started(own_root, method):
    if method not in torch.multiprocessing.get_all_start_methods():
        pytest.skip(f"there is no {method} here")
    made = manager(own_root, 1.0, transforms=[])
    expected = list(DataLoader(made.train_loader.dataset, 8))
    shutil.rmtree(own_root / "synthetic_reid")
    assert_equal(
        list(DataLoader(made.train_loader.dataset, 8, num_workers=1, multiprocessing_context=method)), expected
    )


def test_processes_of_the_training_loader_go_on_from_epoch_to_epoch(drawn_root):
    made = manager(drawn_root, 1.0, workers=1)
    assert made.train_loader.persistent_workers
    first, second = ([path for batch in made.train_loader for path in batch["impath"]] for _ in range(2))
    assert sorted(first) == sorted(second)
    assert first != second


def test_memory_is_bounded_and_training_comes_first(own_root, caplog):
    room = TRAIN + 3
    with caplog.at_level(logging.INFO):
        made = manager(own_root, room * BYTES / 1e9)
    assert f"{room} of {len(set(paths(made)))} images are kept in memory" in caplog.text
    shutil.rmtree(own_root / "synthetic_reid" / "bounding_box_train")
    assert len(epochs(made.train_loader, 1)) == TRAIN // 8
    assert_equal(
        epochs(made.test_loader["synthetic_reid"]["query"], 1),
        epochs(DataLoader(made.test_loader["synthetic_reid"]["query"].dataset.dataset, 8), 1),
    )


def paths(made):
    return [item[0] for loader in loaders(made) for item in loader.dataset.data]


def test_without_room_for_an_image_all_are_read_from_their_files(drawn_root, caplog):
    with caplog.at_level(logging.INFO):
        kept = manager(drawn_root, 1e-9, transforms=[])
    assert "0 of " in caplog.text
    assert_equal(epochs(kept.train_loader), epochs(manager(drawn_root, transforms=[]).train_loader))


@pytest.fixture
def cut_first(monkeypatch):
    """Registers a transform that puts a step in front of torchreid's resize."""
    monkeypatch.setattr(TRANSFORMS, "rows", dict(TRANSFORMS.rows))

    @register_transform("cut_first", places=True)
    def place(train, test, height, width):
        train.transforms.insert(0, RandomCut())

    return ["cut_first", "random_flip"]


class RandomCut:
    """Cuts off a random part of an image, before it is resized."""

    def __call__(self, image):
        side = random.randint(10, 40)
        return CenterCrop((side, side))(image)


def test_where_a_pipeline_begins_with_another_step_decoded_images_are_kept(own_root, cut_first):
    plain, kept = manager(own_root, transforms=cut_first), manager(own_root, 1.0, transforms=cut_first)
    expected = [epochs(loader) for loader in loaders(plain)]
    shutil.rmtree(own_root / "synthetic_reid")
    for loader, before in zip(loaders(kept), expected, strict=True):
        assert_equal(epochs(loader), before)


def test_a_step_that_paints_on_an_image_does_not_reach_what_is_kept(drawn_root):
    dataset = manager(drawn_root, 1.0, transforms=[]).train_loader.dataset
    before = dataset[0]["img"]

    class Painter:
        def __call__(self, image):
            image.paste((255, 0, 0), (0, 0, *image.size))
            return image

    painted = copy.copy(dataset)
    painted.transform = copy.deepcopy(dataset.transform)
    painted.transform.transforms.insert(1, Painter())
    assert not torch.equal(painted[0]["img"], before)
    assert torch.equal(dataset[0]["img"], before)


def test_another_transform_on_a_copy_is_the_copys_own(own_root):
    made = manager(own_root, 1.0, transforms=["random_erase"])
    dataset = copy.copy(made.train_loader.dataset)
    dataset.transform = made.transform_te
    expected = manager(own_root, transforms=[]).train_loader.dataset
    assert made.train_loader.dataset.transform is made.transform_tr
    for index in (0, 5):
        assert torch.equal(dataset[index]["img"], expected[index]["img"])
    dataset.transform = ToTensor()
    assert dataset[0]["img"].shape[1:] != (HEIGHT, WIDTH)  # drawn larger, and nothing resizes it now


def test_everything_else_is_the_data_sets_own(drawn_root):
    dataset = manager(drawn_root, 1.0).train_loader.dataset
    assert isinstance(dataset.dataset, compat.torchreid().data.ImageDataset)
    assert dataset.num_train_pids == 6
    assert len(dataset) == len(dataset.train) == TRAIN
    with pytest.raises(AttributeError, match="nothing"):
        _ = dataset.nothing


def test_a_class_that_reads_images_its_own_way_is_left_alone(drawn_root, caplog):
    stock = manager(drawn_root).train_loader.dataset.dataset

    class Own(type(stock)):
        def __getitem__(self, index):
            return {**super().__getitem__(index), "viewid": 0}

    own = copy.copy(stock)
    own.__class__ = Own
    found = keep_images([own, stock], 1.0)
    assert found[0] is own
    assert found[1].dataset is stock
    assert "Own reads its images in a way of its own" in caplog.text


@pytest.mark.parametrize("transforms", [[], ["cut_first"]])
def test_an_image_that_cannot_be_read_is_named(own_root, cut_first, transforms):
    victim = next((own_root / "synthetic_reid" / "query").iterdir())
    victim.write_bytes(b"")
    with pytest.raises(DataError, match=victim.name):
        manager(own_root, 1.0, transforms=transforms, check_images=False)


def test_too_little_memory_is_an_error_that_says_what_to_do(drawn_root, monkeypatch):
    def full(*args):
        raise OSError("No space left on device")

    monkeypatch.setattr("multiprocessing.RawArray", full)
    with pytest.raises(RunError, match=r"no room for .* GB .*lower amg.cache_gb"):
        manager(drawn_root, 1.0)


def test_images_that_are_left_out_are_not_missed(own_root):
    victim = next((own_root / "synthetic_reid" / "bounding_box_train").iterdir())
    victim.write_bytes(b"")
    made = manager(own_root, 1.0, skip_unreadable=True)
    assert len(made.train_loader.dataset) == TRAIN - 1
    assert len(epochs(made.train_loader, 1)) == (TRAIN - 1) // 8


@pytest.mark.parametrize(("value", "kept"), [("none", False), ("auto", True)])
def test_a_configuration_decides(drawn_root, value, kept):
    cfg = amg_plugin.get_default_config()
    cfg.data.root = str(drawn_root)
    cfg.data.sources = cfg.data.targets = ["synthetic_reid"]
    cfg.train.batch_size, cfg.data.workers = 8, 0
    cfg.amg.cache_images, cfg.amg.batches_per_epoch = value, 1
    made = build_datamanager(cfg)
    assert hasattr(made.train_loader.dataset, "kept") is kept
    assert len(list(made.train_loader)) == 1
