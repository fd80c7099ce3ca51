"""Static merging through the commands, on a network with enough patches to meet a budget."""

import json

import numpy as np
import pytest
import torch
from tiny_run import settings

from amg_plugin.checkpoint import load_model
from amg_plugin.cli.main import main
from amg_plugin.models import complexity

FINE = ["amg.override.patch_size", "4", "amg.override.depth", "4", "train.max_epoch", "1"]  # 32 patches
SAVING = 0.25
BUDGET = ["amg.token_variant", "merge", "amg.token_scorer", "amg_image", "amg.target_macs_saving", str(SAVING)]
STAGES = ["amg.schedule", "[{target: heads}, {target: tokens}]", "amg.balance", "{heads: 0.3, tokens: 0.7}"]


@pytest.fixture(scope="module")
def dense(tiny_root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("merging") / "dense"
    assert main(["train", *settings(tiny_root, folder), *FINE]) == 0
    return folder / "last.pth"


@pytest.fixture(scope="module")
def merged(dense, tmp_path_factory):
    folder = tmp_path_factory.mktemp("merging") / "pruned"
    words = ["data.save_dir", str(folder), *BUDGET, *STAGES, "amg.final_epochs", "1"]
    assert main(["prune", "--weights", str(dense), *words]) == 0
    return folder / "last.pth"


def test_the_counted_saving_meets_the_target_and_the_groups_survive_the_file(merged):
    result = json.loads((merged.parent / "result.json").read_text(encoding="utf-8"))
    model = load_model(merged)
    assert complexity.count(model, 32, 16)["macs"] == result["finetuned"]["macs"]
    assert abs(1 - result["finetuned"]["macs"] / result["dense"]["macs"] - SAVING) <= 0.005
    assert model.backbone.plan.groups and model.backbone.plan.variant == "merge"


def test_the_preview_shows_what_merging_would_save(amg_reid, dense, tmp_path):
    outcome = amg_reid("prune", "--weights", dense, "--preview", "data.save_dir", tmp_path / "new", *BUDGET, *STAGES)
    assert outcome.status == 0, outcome.err
    assert "with token variant merge" in outcome.out
    chosen = next(line for line in outcome.out.splitlines() if "(chosen)" in line)
    assert "yes" in chosen


def test_inspect_names_the_variant(amg_reid, merged):
    outcome = amg_reid("inspect", merged)
    assert outcome.status == 0, outcome.err
    assert "token variant merge" in outcome.out
    blocks = json.loads(amg_reid("inspect", merged, "--json").out)["blocks"]
    assert blocks[0]["tokens"] == 32
    assert blocks[3]["macs"] < blocks[0]["macs"]


@pytest.mark.parametrize("calibrated", [False, True])
def test_the_groups_are_drawn(amg_reid, merged, dense, tmp_path, tiny_root, calibrated):
    image = sorted((tiny_root / "synthetic_reid" / "query").glob("*.jpg"))[0]
    what = ("--calibrate", "amg.calibration.batches", "1") if calibrated else ("--images", image, "--dense", dense)
    outcome = amg_reid("visualize", merged, *what, "--output", tmp_path, "--dpi", "50")
    assert outcome.status == 0, outcome.err
    assert len(list(tmp_path.glob("*.png"))) == 1


def test_an_exported_network_gives_the_same_features(amg_reid, merged, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    file = tmp_path / "merged.onnx"
    outcome = amg_reid("export", merged, "--format", "onnx", "--output", file)
    assert outcome.status == 0, outcome.err
    images = torch.randn(1, 3, 32, 16)
    with torch.no_grad():
        expected = load_model(merged)(images).numpy()
    session = runtime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def test_a_merged_network_is_pruned_further(amg_reid, merged, dense, tmp_path):
    words = [
        *BUDGET,
        "amg.target_macs_saving",
        "0.4",
        "amg.schedule",
        "[{target: tokens}]",
        "amg.balance",
        "{tokens: 1}",
    ]
    outcome = amg_reid(
        "prune", "--weights", merged, "data.save_dir", tmp_path / "again", "amg.distill.teacher", dense, *words
    )
    assert outcome.status == 0, outcome.err
    before, after = load_model(merged).backbone.plan, load_model(tmp_path / "again" / "last.pth").backbone.plan
    assert before.contains(after)


def test_another_variant_for_a_merged_network_is_refused(refused, merged, dense, tmp_path):
    words = ["amg.token_variant", "block", "amg.schedule", "[{target: tokens, rate: 0.5}]"]
    folder = ("data.save_dir", tmp_path / "new", "amg.distill.teacher", dense)
    assert "'block' cannot be mixed" in refused("prune", "--weights", merged, *folder, *words)
