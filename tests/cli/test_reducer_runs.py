"""Token merging and dropping through the commands."""

import json

import pytest

from amg_plugin.checkpoint import read_checkpoint

SAVING, TOKENS = 0.21, (6, 4)
METHODS = ["tome", "evit"]


def reducer(method, saving=SAVING):
    return ["amg.reducer", method, "amg.target_macs_saving", saving]


@pytest.fixture(scope="module", params=METHODS)
def tuned(request, trained, tmp_path_factory):
    """A reduced network, fine-tuned from the dense checkpoint."""
    from amg_plugin.cli.main import main

    folder = tmp_path_factory.mktemp("tuned") / request.param
    words = ["data.save_dir", folder, "train.max_epoch", 1, *reducer(request.param)]
    assert main(["train", "--weights", *map(str, [trained.last, *words])]) == 0
    return request.param, folder


def result_of(folder):
    return json.loads((folder / "result.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("method", METHODS)
def test_a_dense_checkpoint_is_evaluated_with_a_reducer(amg_reid, trained, method, tmp_path):
    outcome = amg_reid("test", "--weights", trained.last, "data.save_dir", tmp_path, *reducer(method))
    assert outcome.status == 0, outcome.err
    section = result_of(tmp_path)["reduced"]
    dense = trained.result["dense"]
    assert abs(1 - section["macs"] / dense["macs"] - SAVING) <= 0.005
    assert section["params"] == dense["params"]
    assert section["tokens_per_block"] == [8, TOKENS[0]]
    assert "reduced" in outcome.out


def test_fine_tuning_keeps_the_reducer_in_the_checkpoint(tuned):
    method, folder = tuned
    checkpoint = read_checkpoint(folder / "last.pth")
    assert (checkpoint.spec.reducer.method, checkpoint.spec.reducer.tokens) == (method, TOKENS)
    assert result_of(folder)["reduced"]["tokens_per_block"] == [8, TOKENS[0]]


def test_the_evaluation_of_the_checkpoint_is_that_of_the_run(amg_reid, tuned, tmp_path):
    _, folder = tuned
    assert amg_reid("test", "--weights", folder / "last.pth", "data.save_dir", tmp_path).status == 0
    assert result_of(tmp_path)["reduced"]["mAP"] == pytest.approx(result_of(folder)["reduced"]["mAP"])


def test_inspect_shows_the_reducer(amg_reid, tuned):
    method, folder = tuned
    shown = amg_reid("inspect", folder / "last.pth").out
    assert f"reducer {method}" in shown
    assert "6/8" in shown


@pytest.mark.parametrize("method", METHODS)
def test_pruning_with_a_reducer_is_refused(refused, trained, method, tmp_path):
    schedule = ["amg.schedule", "[{target: heads, rate: 0.25}]", "data.save_dir", tmp_path]
    sentence = refused("prune", "--weights", trained.last, *schedule, "amg.reducer", method,
                       "amg.target_macs_saving", SAVING)  # fmt: skip
    assert f"amg.reducer is '{method}'" in sentence
    assert "amg.schedule" in sentence


def test_pruning_without_any_reduction_is_refused(refused, trained, tmp_path):
    schedule = ["amg.schedule", "[{target: heads, rate: 0.25}]", "data.save_dir", tmp_path]
    assert "amg.reducer is 'none'" in refused("prune", "--weights", trained.last, *schedule, "amg.reducer", "none")


def test_pruning_a_reduced_checkpoint_is_refused(refused, tuned, tmp_path):
    method, folder = tuned
    words = ["amg.schedule", "[{target: heads, rate: 0.25}]", "data.save_dir", tmp_path, "amg.reducer", "amg"]
    sentence = refused("prune", "--weights", folder / "last.pth", *words, "amg.target_macs_saving", 0.0)
    assert f"amg.reducer is '{method}' in the checkpoint" in sentence


@pytest.mark.parametrize("method", METHODS)
def test_a_reducer_without_a_target_is_refused(refused, words, method):
    assert "'amg.target_macs_saving' is 0.0, but must be above 0" in refused("train", *words, "amg.reducer", method)


def test_a_target_out_of_reach_is_refused_before_the_data_is_looked_at(refused, words, tmp_path):
    sentence = refused("train", *words, *reducer("evit", 0.8), "data.root", tmp_path / "nowhere")
    assert "0.8 cannot be met by amg.reducer 'evit'" in sentence


def test_a_pruned_checkpoint_with_a_reducer_is_refused(refused, pruned, tmp_path):
    words = ["data.save_dir", tmp_path, "amg.schedule", "[]"]
    assert "The checkpoint is pruned" in refused("test", "--weights", pruned.last, *words, *reducer("tome"))


def test_another_target_than_the_checkpoints_is_refused(refused, tuned, tmp_path):
    method, folder = tuned
    words = ["data.save_dir", tmp_path, *reducer(method, 0.24)]
    assert "amg.target_macs_saving 0.21" in refused("test", "--weights", folder / "last.pth", *words)
