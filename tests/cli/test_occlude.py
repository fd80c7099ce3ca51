"""``amg-reid occlude``."""

import json
import shutil

import pytest

from amg_plugin import compat

pytestmark = pytest.mark.skipif(not compat.is_installed(), reason="torchreid is not installed")


@pytest.fixture
def root(tiny_root, tmp_path):
    """A data root of one's own with the tiny data sets."""
    return shutil.copytree(tiny_root, tmp_path / "root")


def test_a_registered_data_set_is_occluded_below_the_root(amg_reid, root):
    outcome = amg_reid("occlude", "--source", "market1501", "--root", root, "--seed", "2", "--coverage", "0.2", "0.4")
    assert outcome.status == 0, outcome.err
    target = root / "occluded_market1501"
    manifest = json.loads((target / "occlusion.json").read_text(encoding="utf-8"))
    assert (manifest["seed"], manifest["source"]["name"]) == (2, "market1501")
    assert manifest["parameters"]["coverage"] == {"low": 0.2, "high": 0.4}
    assert str(target) in outcome.out
    lines = {line.split()[0]: line.split()[1:3] for line in outcome.out.splitlines() if line.startswith(("query", "b"))}
    for part, counts in manifest["counts"].items():
        assert lines[part] == [str(counts["images"]), str(counts["occluded"])]


def test_a_folder_is_occluded_under_the_name_that_was_asked_for(amg_reid, root):
    words = ("--source", root / "synthetic_reid", "--target", "hidden", "--root", root, "--link", "--threads", "2")
    assert amg_reid("occlude", *words).status == 0
    assert (root / "hidden" / "masks" / "query").is_dir()


def test_an_unknown_source_is_named_with_the_known_ones(refused, root):
    sentence = refused("occlude", "--source", "market1502", "--root", root)
    assert "market1502" in sentence and "market1501" in sentence


def test_a_known_source_that_is_not_there_is_named_with_its_folder(refused, root):
    assert str(root / "dukemtmc-reid") in refused("occlude", "--source", "dukemtmcreid", "--root", root)


def test_a_target_that_exists_is_refused(refused, root):
    (root / "occluded_market1501").mkdir()
    assert "exists already" in refused("occlude", "--source", "market1501", "--root", root)


@pytest.mark.parametrize("target", ["a/b", "..", ""])
def test_a_target_that_is_no_plain_name_is_refused(refused, root, target):
    assert "plain name" in refused("occlude", "--source", "market1501", "--root", root, "--target", target)


@pytest.mark.parametrize("words", [("--coverage", "0.5", "0.1"), ("--seed", "-1"), ("--threads", "-2")])
def test_impossible_numbers_are_refused(refused, root, words):
    refused("occlude", "--source", "market1501", "--root", root, *words)
    assert not (root / "occluded_market1501").exists()
