"""``benchmarks/epoch_cost.py``: what it measures and writes, on a tiny network."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from tiny_run import BATCHES, HEIGHT, WIDTH, settings

from amg_plugin.data.manager import build_datamanager
from amg_plugin.runs.setup import build_model

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "epoch_cost.py"
if not SCRIPT.exists():
    pytest.skip("the tests do not run from a checkout", allow_module_level=True)


def test_it_writes_ratios_of_loading_and_of_an_epoch(tiny_root, tmp_path, run_script):
    keys = settings(tiny_root, tmp_path)
    for key in ("data.root", "data.save_dir"):
        place = keys.index(key)
        del keys[place : place + 2]
    keys += ["loss.name", "triplet", "loss.triplet.weight_x", "1.0", "amg.soft_margin", "True"]
    (tmp_path / "empty.yaml").write_text("train: {max_epoch: 1}\n")
    words = ["--root", tiny_root, "--config-file", tmp_path / "empty.yaml", "--repeats", "2"]
    outcome = run_script(SCRIPT, *words, "--output", tmp_path / "cost.json", "--keys", *keys)
    assert outcome.returncode == 0, outcome.stderr
    found = json.loads((tmp_path / "cost.json").read_text(encoding="utf-8"))
    assert found["steps"] == BATCHES
    assert set(found["loading"]["wall"]["ratios"]) == {"kept / plain"}
    for clock in ("wall", "cpu"):
        row = found["epoch"][clock]
        assert set(row["seconds"]) == {"plain", "kept", "bare"}
        assert set(row["ratios"]) == {"kept / plain", "kept / bare", "plain / bare"}
        assert all(len(one["all"]) == 2 and min(one["all"]) > 0 for one in row["ratios"].values())
    assert str(tmp_path) not in json.dumps({key: value for key, value in found.items() if key != "config_file"})


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("epoch_cost", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def bare(script, make_cfg):
    cfg = make_cfg(loss__name="triplet", loss__triplet__weight_x=1.0)
    datamanager = build_datamanager(cfg)
    return script.Bare(cfg, datamanager, build_model(cfg, datamanager.num_train_pids))


def test_the_bare_loop_flips_shifts_and_erases_each_image_on_its_own(bare):
    torch.manual_seed(0)
    white = torch.full((400, 3, HEIGHT, WIDTH), 255, dtype=torch.uint8)
    white[:, :, :, : WIDTH // 2] = 128
    images = bare.augmented(white)
    assert images.shape == white.shape
    assert torch.isfinite(images).all()
    assert len({tuple(image.flatten()[::7].tolist()) for image in images}) > 300
    erased = (images == bare.mean).all(1).flatten(1).any(1).float().mean()
    assert 0.4 < erased < 0.6


def test_an_epoch_of_the_bare_loop_trains(bare):
    before = bare.model.classifier.weight.detach().clone()
    bare.epoch()
    assert not torch.equal(bare.model.classifier.weight, before)
