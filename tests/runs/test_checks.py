"""What is looked at before any work, in one list."""

import shutil
from types import SimpleNamespace

import pytest
from tiny_run import tiny_config

from amg_plugin.checkpoint import read_checkpoint
from amg_plugin.config.load import load_config
from amg_plugin.runs.checks import bytes_on_disk

STAGES = "[{target: heads, rate: 0.25}]"


@pytest.fixture
def disk(monkeypatch):
    """Pretends that so many bytes are left on every disk."""
    return lambda free: monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))


def test_a_disk_without_room_is_refused_before_work(disk, refused, trained, tmp_path):
    disk(10**7)
    words = ["--weights", trained.last, "amg.schedule", STAGES, "data.save_dir", tmp_path / "new"]
    assert "0.01 GB left, but the run's checkpoints and states may take 0.0" in refused("prune", *words)


def test_all_problems_are_said_at_once(disk, refused, trained, tmp_path):
    disk(0)
    words = ["--weights", trained.last, "data.save_dir", tmp_path, "data.root", tmp_path / "nowhere"]
    sentence = refused("prune", *words, "amg.schedule", "[{target: heads, rate: 0.9}]")
    assert "3 things stand in the way of this run: (1) data.save_dir" in sentence
    assert "(2) amg.schedule asks for" in sentence
    assert "(3) The data root" in sentence and "nowhere" in sentence


def test_a_teacher_that_the_run_would_write_over_is_refused(refused, trained, tmp_path):
    teacher = shutil.copy(trained.last, tmp_path / "best.pth")
    words = [
        "--weights",
        trained.last,
        "amg.schedule",
        STAGES,
        "data.save_dir",
        tmp_path,
        "amg.distill.teacher",
        teacher,
    ]
    assert "is a file that this run writes" in refused("prune", *words)


def test_the_start_may_be_the_teacher_by_its_file(amg_reid, trained, tmp_path):
    words = ["--weights", trained.last, "amg.schedule", STAGES, "amg.distill.teacher", trained.last]
    outcome = amg_reid("prune", *words, "data.save_dir", tmp_path / "new")
    assert outcome.status == 0, outcome.err


def test_the_estimate_covers_what_a_run_leaves(trained, pruned):
    checkpoint = read_checkpoint(trained.last)
    cfg = load_config(None, [], base={**checkpoint.config, "amg": {**checkpoint.config["amg"], "image_size": []}})
    held = sum(path.stat().st_size for path in pruned.folder.iterdir())
    assert held < bytes_on_disk(cfg, checkpoint, "prune")


@pytest.mark.parametrize("command", ["train", "prune"])
def test_the_optimisers_memory_counts(trained, tmp_path, command):
    checkpoint = read_checkpoint(trained.last)
    weights = sum(value.numel() * value.element_size() for value in checkpoint.weights.values())
    sgd, adam = (
        bytes_on_disk(tiny_config(tmp_path, tmp_path, train__optim=name), checkpoint, command)
        for name in ("sgd", "adam")
    )
    assert adam - sgd == 3 * weights


def test_a_network_that_is_not_there_yet_is_counted_from_its_description(trained, tmp_path):
    checkpoint, cfg = read_checkpoint(trained.last), tiny_config(tmp_path, tmp_path)
    assert bytes_on_disk(cfg, None, "train") == pytest.approx(bytes_on_disk(cfg, checkpoint, "train"), rel=0.01)
