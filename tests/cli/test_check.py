"""``amg-reid check`` and ``--skip-unreadable``."""

import json

import pytest
from tiny_run import SPEC

from amg_plugin.data.synthetic.reid import write_synthetic_reid

FLAGS = ("-s", "synthetic_reid", "--root")


@pytest.fixture
def own_root(tmp_path):
    write_synthetic_reid(tmp_path / "root", SPEC, seed=3)
    return tmp_path / "root"


def images(root, part):
    return sorted((root / "synthetic_reid" / part).glob("*.jpg"))


def test_good_data_is_summed_up(amg_reid, own_root):
    outcome = amg_reid("check", *FLAGS, own_root)
    assert outcome.status == 0, outcome.err
    rows = {line.split()[1]: line.split()[2:4] for line in outcome.out.splitlines() if "synthetic_reid" in line}
    assert rows["train"] == ["24", "6"]
    assert set(rows) == {"train", "query", "gallery"}
    assert "The data can be used." in outcome.out


def test_every_problem_is_printed_by_name(amg_reid, own_root):
    bad = images(own_root, "bounding_box_train")[:13]
    for path in bad:
        path.write_bytes(b"")
    outcome = amg_reid("check", "-s", "synthetic_reid", "-t", "market1501", "--root", own_root)
    assert outcome.status == 2
    assert all(f"  {path} (empty file)\n" in outcome.out for path in bad)
    assert str(own_root / "market1501") in outcome.out
    assert "2 problems found." in outcome.out
    assert "Traceback" not in outcome.err


def test_only_targets_are_checked_for_a_test(amg_reid, own_root):
    images(own_root, "bounding_box_train")[0].write_bytes(b"")
    assert amg_reid("check", "-t", "synthetic_reid", "--root", own_root).status == 0
    assert amg_reid("check", *FLAGS, own_root).status == 2


def test_an_unknown_data_set_is_refused(refused, own_root):
    assert "market1502" in refused("check", "-s", "market1502", "--root", own_root)


def test_skipping_what_is_never_looked_for_is_refused(refused, own_root):
    assert "amg.check_images" in refused("check", *FLAGS, own_root, "--skip-unreadable", "amg.check_images", "False")


def test_all_problems_stop_a_run_with_one_line(refused, words, own_root):
    bad, other = images(own_root, "query")[:2]
    bad.write_bytes(b"")
    misread = other.rename(other.with_name("0001_c13s1_000001_00.jpg"))
    sentence = refused("train", *words, "data.root", own_root)
    assert sentence.startswith("2 problems in the data: (1)")
    assert str(bad) in sentence
    assert misread.name in sentence


def test_folders_that_are_missing_are_named_with_all_else_that_stands_in_the_way(refused, words, own_root):
    sentence = refused(
        "train",
        *words,
        "data.root",
        own_root,
        "data.targets",
        "[synthetic_reid, market1501]",
        "amg.arch",
        "no_such_vit",
    )
    assert sentence.startswith("2 things stand in the way of this run: (1)")
    assert str(own_root / "market1501") in sentence
    assert "no_such_vit" in sentence


def test_a_run_goes_on_without_bad_files_and_names_them(amg_reid, words, own_root, tmp_path):
    train, query = images(own_root, "bounding_box_train"), images(own_root, "query")
    lost = [path for path in train if path.name[:4] == train[0].name[:4]]
    for path in (*lost, query[0]):
        path.write_bytes(b"")
    outcome = amg_reid("train", "--skip-unreadable", *words, "data.root", own_root, "train.max_epoch", "1")
    assert outcome.status == 0, outcome.err
    assert all(str(path) in outcome.out for path in (*lost, query[0]))
    result = json.loads((tmp_path / "log" / "result.json").read_text(encoding="utf-8"))
    assert result["config"]["amg"]["skip_unreadable"] is True
    checkpoint = tmp_path / "log" / "last.pth"
    assert "5 training identities" in amg_reid("inspect", checkpoint).out
