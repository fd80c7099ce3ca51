"""train -> prune -> test -> inspect on a tiny drawn data set, and what lies in ``result.json`` afterwards."""

import json

import numpy as np
import pytest
import torch
from tiny_run import BATCHES, DEPTH, HEADS, HEIGHT, PATCHES, WIDTH, WIDTH_OF_TOKENS

import amg_plugin
from amg_plugin.checkpoint import read_checkpoint
from amg_plugin.models import complexity
from amg_plugin.pruning import apply_plan, current_plan
from amg_plugin.runs.result import structure

SECTION = {"mAP", "rank1", "targets", "params", "macs", "heads_per_block", "tokens_per_block", "neurons_per_block"}
ALWAYS = {"command", "arguments", "config_file", "config", "seed", "device", "threads", "versions", "seconds"}


def test_training_writes_the_dense_section(trained):
    assert set(trained.result) == {*ALWAYS, "dense", "best", "history"}
    assert set(trained.result["dense"]) == SECTION
    assert trained.result["dense"]["heads_per_block"] == [HEADS] * DEPTH
    assert trained.result["dense"]["tokens_per_block"] == [PATCHES] * DEPTH


def test_pruning_writes_all_three_sections(pruned):
    assert set(pruned.result) == {*ALWAYS, "dense", "pruned", "finetuned", "best", "history"}
    for name in ("dense", "pruned", "finetuned"):
        assert set(pruned.result[name]) == SECTION
    assert pruned.result["dense"]["heads_per_block"] == [HEADS] * DEPTH
    for name in ("pruned", "finetuned"):
        assert sum(pruned.result[name]["heads_per_block"]) == 6
        assert sum(pruned.result[name]["tokens_per_block"]) == 12


@pytest.mark.parametrize("run", ["trained", "pruned"])
def test_results_say_how_they_came_about(run, request):
    result = request.getfixturevalue(run).result
    assert result["command"] in ("train", "prune")
    assert result["seed"] == result["config"]["train"]["seed"] == 1
    assert result["config"]["amg"]["override"]["depth"] == DEPTH
    assert {"amg_plugin", "python", "torch", "torchvision", "timm", "torchreid"} <= set(result["versions"])
    assert result["device"].startswith("cpu")
    assert result["threads"] >= 1
    assert result["seconds"] > 0


def test_figures_are_fractions_of_the_first_target_and_all_targets_are_there(trained):
    section = trained.result["dense"]
    assert list(section["targets"]) == ["synthetic_reid", "market1501"]
    first = section["targets"]["synthetic_reid"]
    assert (section["mAP"], section["rank1"]) == (first["mAP"], first["rank1"])
    for scores in section["targets"].values():
        assert 0 < scores["mAP"] <= 1
        assert 0 <= scores["rank1"] <= 1
        assert scores["cmc"]["1"] == scores["rank1"]


@pytest.mark.parametrize(("run", "section"), [("trained", "dense"), ("pruned", "dense"), ("pruned", "finetuned")])
def test_what_queries_contribute_is_kept_and_averages_to_the_figures(run, section, request):
    finished = request.getfixturevalue(run)
    kept = json.loads((finished.folder / "details.json").read_text(encoding="utf-8"))["queries"][section]
    for target, scores in finished.result[section]["targets"].items():
        assert np.mean(kept[target]["AP"]) == pytest.approx(scores["mAP"], abs=1e-5)
        assert np.mean(np.array(kept[target]["first"]) <= 5) == pytest.approx(scores["cmc"]["5"], abs=1e-5)


@pytest.mark.parametrize(("run", "section"), [("trained", "dense"), ("pruned", "finetuned")])
def test_costs_are_counted_on_the_model_without_its_classifier(run, section, request):
    files = request.getfixturevalue(run)
    model = amg_plugin.load_model(files.last)
    counted = complexity.count(model, HEIGHT, WIDTH)
    found = files.result[section]
    assert (found["params"], found["macs"]) == (counted["params"], counted["macs"])
    everything = sum(parameter.numel() for parameter in model.parameters())
    assert found["params"] == everything - model.classifier.weight.numel()


def test_pruning_makes_the_model_cheaper(pruned):
    dense, cut = pruned.result["dense"], pruned.result["pruned"]
    assert cut["macs"] < dense["macs"]
    assert cut["params"] < dense["params"]


def test_pruning_starts_from_the_trained_models_figures(trained, pruned):
    assert pruned.result["dense"] == trained.result["dense"]


def test_the_best_model_is_that_of_the_best_evaluation(trained):
    tests = [event for event in trained.result["history"] if event["event"] == "test"]
    scores = [event["targets"]["synthetic_reid"]["mAP"] for event in tests]
    assert len(scores) == 2
    assert trained.result["best"]["mAP"] == max(scores)


def test_the_best_pruned_model_has_the_final_structure(pruned):
    best, last = read_checkpoint(pruned.best), read_checkpoint(pruned.last)
    assert best.plan == last.plan
    assert last.plan.heads_per_block == pruned.result["finetuned"]["heads_per_block"]


@pytest.mark.parametrize(("run", "section"), [("trained", "dense"), ("pruned", "finetuned")])
def test_testing_a_checkpoint_gives_the_figures_again(run, section, request, amg_reid, tmp_path):
    files = request.getfixturevalue(run)
    outcome = amg_reid("test", "--weights", files.last, "data.save_dir", tmp_path)
    assert outcome.status == 0, outcome.err
    result = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert set(result) == {*ALWAYS, section}
    assert result[section] == files.result[section]


def test_testing_one_target_of_two(trained, amg_reid, tmp_path):
    assert amg_reid("test", "--weights", trained.last, "-t", "market1501", "data.save_dir", tmp_path).status == 0
    result = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    expected = trained.result["dense"]["targets"]["market1501"]
    assert result["dense"]["targets"] == {"market1501": expected}
    assert result["dense"]["mAP"] == expected["mAP"]


def test_the_feature_before_the_neck_can_be_tested_too(trained, amg_reid, tmp_path):
    words = ("test", "--weights", trained.last, "data.save_dir", tmp_path, "amg.neck_feat", "before")
    assert amg_reid(*words).status == 0
    result = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert result["dense"]["targets"] != trained.result["dense"]["targets"]


def test_pictures_of_rankings_are_drawn_on_demand(trained, amg_reid, tmp_path):
    words = ("test", "--weights", trained.last, "-t", "synthetic_reid", "data.save_dir", tmp_path)
    assert amg_reid(*words, "test.visrank", "True", "test.visrank_topk", "3").status == 0
    assert len(list((tmp_path / "visrank_synthetic_reid").glob("*.jpg"))) == 8


def test_the_control_goes_on_training_the_dense_model(trained, amg_reid, tmp_path):
    words = ("train", "--weights", trained.last, "-t", "synthetic_reid", "data.save_dir", tmp_path)
    assert amg_reid(*words, "train.max_epoch", "1").status == 0
    result = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert result["dense"]["macs"] == trained.result["dense"]["macs"]
    before, after = (amg_plugin.load_model(path) for path in (trained.last, tmp_path / "last.pth"))
    name = "backbone.blocks.0.attn.qkv.weight"
    moved = (after.state_dict()[name] - before.state_dict()[name]).abs().max()
    # One epoch of Adam moves a weight by the learning rate per step at most: it did not start anew.
    assert 0 < moved <= 1.1 * 0.001 * BATCHES


def test_training_on_a_pruned_model_is_fine_tuning(pruned, amg_reid, tmp_path):
    words = ("train", "--weights", pruned.last, "-t", "synthetic_reid", "data.save_dir", tmp_path)
    assert amg_reid(*words, "train.max_epoch", "1").status == 0
    result = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert "dense" not in result
    assert result["finetuned"]["heads_per_block"] == pruned.result["finetuned"]["heads_per_block"]


def test_a_pruned_model_is_pruned_further_with_the_dense_one_as_teacher(trained, pruned, amg_reid, tmp_path):
    outcome = amg_reid(
        *("prune", "--weights", pruned.last, "-t", "synthetic_reid", "data.save_dir", tmp_path),
        *("amg.schedule", "[{target: heads, rate: 0.5, epochs: 1}]", "amg.final_epochs", "0"),
        *("amg.distill.teacher", trained.last),
    )
    assert outcome.status == 0, outcome.err
    result = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert "dense" not in result
    assert sum(result["start"]["heads_per_block"]) == 6
    assert sum(result["finetuned"]["heads_per_block"]) == 4
    assert sum(result["finetuned"]["tokens_per_block"]) == 12


def test_pruning_without_any_epoch_leaves_a_pruned_model_and_no_fine_tuned_one(trained, amg_reid, tmp_path):
    outcome = amg_reid(
        *("prune", "--weights", trained.last, "-t", "synthetic_reid", "data.save_dir", tmp_path),
        *("amg.schedule", "[{target: heads, rate: 0.25}, {target: tokens, rate: 0.25}]"),
    )
    assert outcome.status == 0, outcome.err
    result = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert "finetuned" not in result
    assert sum(read_checkpoint(tmp_path / "last.pth").plan.heads_per_block) == 6
    again = tmp_path / "again"
    assert amg_reid("test", "--weights", tmp_path / "last.pth", "data.save_dir", again).status == 0
    tested = json.loads((again / "result.json").read_text(encoding="utf-8"))
    assert tested["pruned"] == result["pruned"]


def test_the_table_shows_before_and_after(trained, amg_reid, tmp_path):
    outcome = amg_reid(
        *("prune", "--weights", trained.last, "-t", "synthetic_reid", "data.save_dir", tmp_path),
        *("amg.schedule", "[{target: heads, rate: 0.25, epochs: 1}]", "amg.distill.enabled", "False"),
    )
    lines = outcome.out.splitlines()
    header = next(index for index, line in enumerate(lines) if line.startswith("model "))
    assert lines[header].split()[:3] == ["model", "Rank-1", "%"]
    assert [line.split()[0] for line in lines[header + 2 : header + 5]] == ["dense", "pruned", "finetuned"]
    assert str(tmp_path / "result.json") in outcome.out


def test_curves_and_a_log_are_written(trained):
    assert list(trained.folder.glob("events.out.tfevents*"))
    (log,) = trained.folder.glob("train.log-*")
    assert "mAP" in log.read_text(encoding="utf-8")


def test_inspect_prints_the_structure_per_block(pruned, amg_reid):
    outcome = amg_reid("inspect", pruned.last)
    assert outcome.status == 0
    plan, table = read_checkpoint(pruned.last).plan, outcome.out.splitlines()[-DEPTH:]
    for block, line in enumerate(table):
        assert line.split()[:2] == [str(block), f"{len(plan.heads[block])}/{HEADS}"]
        assert f"{len(plan.tokens[block])}/{PATCHES}" in line
    assert f"{pruned.result['finetuned']['macs']:,} MACs" in outcome.out


def test_inspect_gives_json(pruned, amg_reid):
    content = json.loads(amg_reid("inspect", pruned.last, "--json").out)
    plan = read_checkpoint(pruned.last).plan
    assert [block["heads"] for block in content["blocks"]] == [list(kept) for kept in plan.heads]
    assert [block["tokens"] for block in content["blocks"]] == plan.tokens_per_block
    assert [block["neurons"] for block in content["blocks"]] == content["num_neurons"] == [128] * DEPTH
    assert content["macs"] == pruned.result["finetuned"]["macs"]
    assert content["params"] == pruned.result["finetuned"]["params"]


def test_constant_updates_are_counted_as_buffers(pruned, amg_reid, tmp_path):
    model = amg_plugin.load_model(pruned.last)
    plan = current_plan(model)
    left = [PATCHES - count for count in plan.tokens_per_block]
    apply_plan(model, plan.with_updates(range(DEPTH)))
    amg_plugin.save_checkpoint(tmp_path / "updated.pth", model)
    content = json.loads(amg_reid("inspect", tmp_path / "updated.pth", "--json").out)
    assert content["constants"] == sum(left) * WIDTH_OF_TOKENS == structure(model, HEIGHT, WIDTH)["constants"]
    assert content["params"] == pruned.result["finetuned"]["params"]
    assert content["macs"] == pruned.result["finetuned"]["macs"]
    shown = amg_reid("inspect", tmp_path / "updated.pth").out
    assert f"constant updates in blocks 0 1: {content['constants']:,} values in buffers, not trained" in shown


def test_the_checkpoint_tells_how_images_are_prepared(trained):
    preprocessing = read_checkpoint(trained.last).preprocessing
    assert preprocessing.image_size == (HEIGHT, WIDTH)
    assert preprocessing.interpolation == "bilinear"
    assert len(preprocessing.mean) == len(preprocessing.std) == 3


def test_the_same_seed_gives_the_same_model(trained, tiny_root, amg_reid, tmp_path):
    config = trained.result["config"]
    words = [word for key in ("use_gpu",) for word in (key, config[key])]
    outcome = amg_reid("train", *same_run(trained), *words, "data.save_dir", tmp_path)
    assert outcome.status == 0, outcome.err
    first, second = (amg_plugin.load_model(path).state_dict() for path in (trained.last, tmp_path / "last.pth"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def same_run(trained):
    """The configuration of a finished run, as a file."""
    import yaml

    path = trained.folder / "again.yaml"
    path.write_text(yaml.safe_dump(trained.result["config"]), encoding="utf-8")
    return "--config-file", path
