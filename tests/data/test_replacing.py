"""Images that break during a run: tried again, then named, or replaced by another one of the identity."""

import copy
import shutil
from pathlib import Path

import pytest

from amg_plugin import compat
from amg_plugin.errors import DataError

if not compat.is_installed():
    pytest.skip("torchreid is not installed", allow_module_level=True)

from amg_plugin.data.images import read_rgb
from amg_plugin.data.manager import build_datamanager


@pytest.fixture
def made(make_cfg, tiny_root, tmp_path):
    """Builds a data manager over data of one's own."""
    root = tmp_path / "own"
    shutil.copytree(tiny_root / "synthetic_reid", root / "synthetic_reid")

    def make(**changes):
        return build_datamanager(make_cfg(data__root=str(root), **changes))

    return make


def truncate(path):
    Path(path).write_bytes(Path(path).read_bytes()[:300])


def remove(path):
    Path(path).unlink()


@pytest.mark.parametrize("damage", [truncate, remove])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_breaks_is_named_in_one_sentence(made, damage, workers):
    manager = made(data__workers=workers)
    broken = manager.train_loader.dataset.data[3][0]
    damage(broken)
    with pytest.raises(DataError) as caught:
        list(manager.train_loader)
    assert str(caught.value).startswith(f"The image '{broken}' ")
    assert "\n" not in str(caught.value)


def test_a_file_that_fails_for_a_moment_is_read(made, monkeypatch):
    manager, failures = made(), []

    def sometimes(path):
        if len(failures) < 2:
            failures.append(path)
            raise DataError("The disk is away.")
        return read_rgb(path)

    monkeypatch.setattr("amg_plugin.data.images.read_rgb", sometimes)
    assert manager.train_loader.dataset[0]["impath"] == failures[0] == failures[1]


@pytest.mark.parametrize("damage", [truncate, remove])
def test_another_image_of_the_identity_is_taken_and_counted(made, damage):
    dataset = made(amg__skip_unreadable=True).train_loader.dataset
    path, pid, *_ = dataset.data[5]
    damage(path)
    taken = []
    for epoch in range(8):
        dataset.replacements.begin(epoch)
        item = dataset[5]
        assert item["pid"] == pid and item["impath"] != path
        assert item["camid"] == next(entry[2] for entry in dataset.data if entry[0] == item["impath"])
        assert dataset[5]["impath"] == item["impath"]  # the same in one epoch
        taken.append(item["impath"])
    assert len(set(taken)) > 1
    assert dataset.replacements.take_count() == 16
    assert dataset.replacements.take_count() == 0


def test_the_choice_follows_from_the_seed(made):
    def chosen(seed):
        dataset = made(amg__skip_unreadable=True, amg__check_images=True, train__seed=seed).train_loader.dataset
        return [dataset.replacements.order(dataset.data, index) for index in range(len(dataset))]

    assert chosen(1) == chosen(1) != chosen(2)


def test_an_identity_without_a_readable_image_ends_the_run(made):
    dataset = made(amg__skip_unreadable=True).train_loader.dataset
    of_one = [item[0] for item in dataset.data if item[1] == dataset.data[0][1]]
    for path in of_one:
        remove(path)
    with pytest.raises(DataError, match=r"does not exist\. No other image of its identity"):
        dataset[0]


def test_in_evaluation_a_broken_file_ends_the_run(made):
    manager = made(amg__skip_unreadable=True)
    loader = manager.test_loader["synthetic_reid"]["query"]
    remove(loader.dataset.data[0][0])
    with pytest.raises(DataError, match="does not exist"):
        list(loader)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_training_goes_on_and_says_how_many_were_replaced(
    make_cfg, make_engine, run, tiny_root, tmp_path, caplog, workers
):
    root = tmp_path / "own"
    shutil.copytree(tiny_root / "synthetic_reid", root / "synthetic_reid")
    engine = make_engine(amg__skip_unreadable=True, data__root=str(root), data__workers=workers)
    remove(engine.train_loader.dataset.data[2][0])
    run(engine, 2)
    for epoch in (1, 2):
        assert f"epoch {epoch}: 1 images could not be read" in caplog.text


def test_a_copy_of_the_data_set_counts_with_it(made):
    dataset = made(amg__skip_unreadable=True).train_loader.dataset
    remove(dataset.data[0][0])
    assert copy.copy(dataset)[0]["pid"] == dataset.data[0][1]
    assert dataset.replacements.take_count() == 1
