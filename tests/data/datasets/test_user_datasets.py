"""A data set class of the user's, registered in torchreid's way; it knows nothing of the plugin."""

import multiprocessing
import sys

import pytest
from occluded_folders import write_images

from amg_plugin import compat
from amg_plugin.errors import DataError
from amg_plugin.registries.imports import load_import

if not compat.is_installed():
    pytest.skip("torchreid is not installed", allow_module_level=True)

from amg_plugin.data.checks.folders import check_dataset_folder
from amg_plugin.data.manager import AMGImageDataManager

MODULE = """
import os
import torchreid

class Mine(torchreid.data.ImageDataset):
    dataset_dir = "my_folder"

    def __init__(self, root="", **kwargs):
        folder = os.path.join(root, self.dataset_dir)
        super().__init__(*(self.read(os.path.join(folder, part)) for part in ("train", "query", "gallery")), **kwargs)

    def read(self, folder):
        return [(os.path.join(folder, name), int(name[0]), int(name[2])) for name in sorted(os.listdir(folder))]

torchreid.data.register_image_dataset("data_of_a_user", Mine)
"""


@pytest.fixture
def name(tmp_path, monkeypatch):
    """The data set's name, in this process only."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "module_of_a_user.py").write_text(MODULE)
    load_import(str(tmp_path / "module_of_a_user.py"))
    yield "data_of_a_user"
    del compat.image_dataset_factory()["data_of_a_user"], sys.modules["module_of_a_user"]


@pytest.fixture
def root(tmp_path):
    for part, camera in (("train", 0), ("query", 0), ("gallery", 1)):
        write_images(tmp_path / "my_folder" / part, [f"{pid}_{camera}.jpg" for pid in range(4)])
    return tmp_path


def manager(root, name, **options):
    small = {"height": 32, "width": 16, "batch_size_train": 2, "workers": 0, "use_gpu": False}
    return AMGImageDataManager(root=str(root), sources=name, **{**small, **options})


def test_its_folder_is_the_one_it_names(name, root):
    assert check_dataset_folder(name, root) == root.resolve() / "my_folder"


def test_a_missing_folder_is_named(name, tmp_path):
    with pytest.raises(DataError, match=r"data_of_a_user is expected in .*my_folder"):
        manager(tmp_path, name)


def test_an_unreadable_image_is_named(name, root):
    (root / "my_folder" / "gallery" / "2_1.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"gallery/2_1\.jpg"):
        manager(root, name)


def test_a_part_without_images_is_named(name, root):
    for path in (root / "my_folder" / "query").iterdir():
        path.unlink()
    with pytest.raises(DataError, match="has no query images"):
        manager(root, name)


def test_the_rule_that_a_class_states_is_shown(name, root, monkeypatch):
    def read(self, folder):
        raise AssertionError

    monkeypatch.setattr(compat.image_dataset_factory()[name], "read", read)
    with pytest.raises(DataError, match=r"cannot be read: AssertionError \(line \d+ of .*: raise AssertionError\)"):
        manager(root, name)


def test_loader_workers_that_are_spawned_find_its_class(name, root):
    made = manager(root, name, workers=1)
    made.train_loader.multiprocessing_context = multiprocessing.get_context("spawn")
    assert next(iter(made.train_loader))["img"].shape == (2, 3, 32, 16)
