"""Pruning by a budget through the commands, on a network with enough tokens to meet one."""

import json

import pytest
import torch
from tiny_run import settings

from amg_plugin.checkpoint import load_model
from amg_plugin.cli.main import main
from amg_plugin.models import complexity

FORM = "[{target: heads, epochs: 1}, {target: tokens}]"
FINE = ["amg.override.patch_size", "4", "amg.stride", "2", "train.max_epoch", "1"]  # 105 patches
SAVING = 0.25


@pytest.fixture(scope="module")
def dense(tiny_root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fine") / "dense"
    assert main(["train", *settings(tiny_root, folder), *FINE]) == 0
    return folder / "last.pth"


@pytest.fixture(scope="module")
def by_budget(dense, tmp_path_factory):
    """A finished run with a target in place of rates."""
    folder = tmp_path_factory.mktemp("fine") / "pruned"
    words = ["data.save_dir", folder, "amg.target_macs_saving", SAVING, "amg.schedule", FORM, "amg.final_epochs", 1]
    assert main(["prune", "--weights", *map(str, [dense, *words])]) == 0
    return folder


def result_of(folder):
    return json.loads((folder / "result.json").read_text(encoding="utf-8"))


def test_the_counted_saving_meets_the_target(by_budget):
    result = result_of(by_budget)
    counted = complexity.count(load_model(by_budget / "last.pth"), *result["config"]["amg"]["image_size"])["macs"]
    assert result["finetuned"]["macs"] == counted
    assert abs(1 - counted / result["dense"]["macs"] - SAVING) <= 0.005


def test_history_says_what_each_cut_saved(by_budget):
    result = result_of(by_budget)
    heads, tokens = [event["macs_saving"] for event in result["history"] if event["event"] == "cut"]
    assert 0 < heads < tokens
    assert tokens == pytest.approx(1 - result["finetuned"]["macs"] / result["dense"]["macs"])


def test_a_pruned_model_goes_on_from_what_it_saves_already(by_budget, dense, tmp_path):
    words = ["--weights", by_budget / "last.pth", "amg.target_macs_saving", 0.35, "data.save_dir", tmp_path]
    assert main(["prune", *map(str, words), "amg.distill.teacher", str(dense)]) == 0
    result = result_of(tmp_path)
    whole = result_of(by_budget)["dense"]["macs"]
    assert abs(1 - result["finetuned"]["macs"] / whole - 0.35) <= 0.005


def test_a_smaller_target_than_what_is_saved_already_is_refused(refused, by_budget, tmp_path):
    words = ["--weights", by_budget / "last.pth", "amg.target_macs_saving", 0.2, "data.save_dir", tmp_path]
    assert "already" in refused("prune", *words, "amg.distill.enabled", "False")


def test_the_preview_shows_balances_without_data_and_writes_nothing(amg_reid, dense, tmp_path):
    words = ["data.root", tmp_path / "nowhere", "data.save_dir", tmp_path / "log", "amg.target_macs_saving", 0.25]
    outcome = amg_reid("prune", "--preview", "--weights", dense, *words)
    assert outcome.status == 0, outcome.err
    for balance in ("{tokens: 1}", "{heads: 0.25, tokens: 0.75}", "{heads: 0.3, tokens: 0.7} (chosen)", "{neurons: 1}"):
        assert any(line.startswith(balance) for line in outcome.out.splitlines()), balance
    assert "-25." in outcome.out or "-24." in outcome.out
    assert not (tmp_path / "log").exists()


def test_a_target_that_cannot_be_met_is_refused_before_the_data_is_looked_at(refused, dense, tmp_path):
    words = ["data.root", tmp_path / "nowhere", "data.save_dir", tmp_path, "amg.schedule", "[{target: heads}]"]
    sentence = refused("prune", "--weights", dense, *words, "amg.target_macs_saving", 0.6, "amg.balance", "{heads: 1}")
    assert "0.6 cannot be met" in sentence
    assert "--preview" in sentence


def test_rates_beside_a_target_are_refused(refused, dense, tmp_path):
    words = ["amg.schedule", "[{target: heads, rate: 0.25}, {target: tokens}]", "data.save_dir", tmp_path]
    sentence = refused("prune", "--weights", dense, *words, "amg.target_macs_saving", 0.25)
    assert "leave one of them out" in sentence


THREE = "[{target: heads}, {target: neurons, iterations: 2}, {target: tokens}]"


def test_the_balance_is_found_before_anything_is_cut(amg_reid, dense, tmp_path):
    words = ["amg.target_macs_saving", SAVING, "amg.balance", "auto", "amg.schedule", THREE, "data.save_dir", tmp_path]
    outcome = amg_reid("prune", "--weights", dense, *words, "amg.repair", "mean")
    assert outcome.status == 0, outcome.err
    result = result_of(tmp_path)
    tried, found = result["balance"]["tried"], result["balance"]["found"]
    assert all(abs(one["macs_saving"] - SAVING) <= 0.005 for one in tried)
    assert found == min(tried, key=lambda one: one["distance"])["balance"] == result["config"]["amg"]["balance"]
    assert sum(found.values()) == pytest.approx(1) and len(tried) > 3
    wanted = {target for target, share in found.items() if share}
    assert {stage["target"] for stage in result["config"]["amg"]["schedule"]} == wanted
    assert {event["target"] for event in result["history"] if event["event"] == "cut"} == wanted
    assert outcome.out.index("distance") < outcome.out.index("meets target")
    assert abs(1 - result["pruned"]["macs"] / result["dense"]["macs"] - SAVING) <= 0.005


def test_a_run_with_the_balance_that_was_found_gives_the_same_network(amg_reid, dense, tmp_path):
    words = ["amg.target_macs_saving", SAVING, "amg.schedule", FORM, "amg.distill.enabled", "False"]
    outcome = amg_reid("prune", "--weights", dense, *words, "amg.balance", "auto", "data.save_dir", tmp_path / "auto")
    assert outcome.status == 0, outcome.err
    config = result_of(tmp_path / "auto")["config"]["amg"]
    words[3] = json.dumps(config["schedule"]).replace('"rate": null, ', "")
    outcome = amg_reid(
        "prune",
        "--weights",
        dense,
        *words,
        "amg.balance",
        json.dumps(config["balance"]),
        "data.save_dir",
        tmp_path / "own",
    )
    assert outcome.status == 0, outcome.err
    networks = [load_model(tmp_path / name / "last.pth").state_dict() for name in ("auto", "own")]
    assert all(torch.equal(value, networks[1][name]) for name, value in networks[0].items())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["amg.target_macs_saving", 0.2, "amg.min_tokens_per_block", 100, "amg.min_neurons_per_block", 120],
            "cannot be met by any balance of heads, tokens and neurons",
        ),
        (["amg.target_macs_saving", 0.2, "--preview"], "'amg-reid prune' without --preview"),
        (["amg.target_macs_saving", 0.2, "amg.distill.teacher", "nowhere.pth"], "nowhere.pth"),
    ],
)
def test_what_cannot_be_balanced_is_refused_before_the_data_is_looked_at(refused, dense, tmp_path, words, message):
    where = ["data.root", tmp_path / "nowhere", "data.save_dir", tmp_path / "log"]
    assert message in refused("prune", "--weights", dense, *where, "amg.balance", "auto", "amg.schedule", THREE, *words)
