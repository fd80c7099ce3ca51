"""Evaluation on the occluded data sets by ``amg-reid test``."""

import json
import shutil

import pytest
from occluded_folders import TARGETS_ONLY, WRITERS


@pytest.fixture(scope="module")
def root(tiny_root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("occluded")
    for name, write in WRITERS.items():
        write(folder / name)
    shutil.copytree(tiny_root / "synthetic_reid", folder / "synthetic_reid")
    return folder


def evaluated(amg_reid, trained, root, tmp_path, *targets):
    words = ("--weights", trained.last, "--root", root, "-t", *targets, "data.save_dir", tmp_path / "log")
    outcome = amg_reid("test", *words)
    assert outcome.status == 0, outcome.err
    return json.loads((tmp_path / "log" / "result.json").read_text(encoding="utf-8"))["dense"]["targets"]


@pytest.mark.parametrize("name", WRITERS)
def test_each_can_be_the_only_target(amg_reid, trained, root, tmp_path, name):
    assert list(evaluated(amg_reid, trained, root, tmp_path, name)) == [name]


@pytest.mark.parametrize("name", TARGETS_ONLY)
def test_one_without_training_part_can_be_the_first_of_several(amg_reid, trained, root, tmp_path, name):
    assert list(evaluated(amg_reid, trained, root, tmp_path, name, "synthetic_reid")) == [name, "synthetic_reid"]


def test_training_on_one_without_training_part_is_refused(refused, words, root, tmp_path):
    words = [*words, "data.root", root, "data.sources", "['occluded_reid']"]
    assert "no training part" in refused("train", *words)


def test_training_images_of_a_target_are_not_needed(amg_reid, trained, root, tmp_path):
    """Nothing but queries and gallery is read, so a damaged training image does not stop an evaluation."""
    shutil.copytree(root / "synthetic_reid", tmp_path / "synthetic_reid")
    next((tmp_path / "synthetic_reid" / "bounding_box_train").iterdir()).write_bytes(b"")
    assert evaluated(amg_reid, trained, tmp_path, tmp_path, "synthetic_reid")
