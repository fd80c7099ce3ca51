"""Checkpoints on other identities than their own: a start with a new classifier, or a refusal."""

import torch

from amg_plugin.checkpoint import read_checkpoint
from amg_plugin.pruning import current_plan

NEW = "the classifier is new, for 6 identities"
ONE = ("train.max_epoch", "1")


def test_training_goes_on_with_the_classifier_on_the_same_identities(amg_reid, trained, tmp_path):
    outcome = amg_reid("train", "--weights", trained.last, "data.save_dir", tmp_path, *ONE)
    assert outcome.status == 0, outcome.err
    assert "classifier is new" not in outcome.out
    assert read_checkpoint(tmp_path / "last.pth").identities == read_checkpoint(trained.last).identities != ""


def test_as_many_other_identities_get_a_new_classifier(amg_reid, pruned, tmp_path):
    words = ["-s", "market1501", "-t", "market1501", "data.save_dir", tmp_path, *ONE, "train.lr", "1e-9"]
    outcome = amg_reid("train", "--weights", pruned.last, *words)
    assert outcome.status == 0, outcome.err
    (line,) = (line for line in outcome.out.splitlines() if NEW in line)
    assert "backbone, pruned as it is," in line
    start, found = read_checkpoint(pruned.last), read_checkpoint(tmp_path / "last.pth")
    assert found.plan == start.plan
    assert found.identities != start.identities
    assert not torch.allclose(found.weights["classifier.weight"], start.weights["classifier.weight"])
    name = "backbone.blocks.0.mlp.fc1.weight"
    assert torch.allclose(found.weights[name], start.weights[name], atol=1e-5)


def test_a_checkpoint_in_the_configuration_is_a_start(amg_reid, pruned, words, tmp_path):
    outcome = amg_reid("train", *words, "data.sources", "[market1501]", "amg.weights", pruned.last, *ONE)
    assert outcome.status == 0, outcome.err
    assert NEW in outcome.out
    assert current_plan(read_checkpoint(tmp_path / "log" / "last.pth").build()) == read_checkpoint(pruned.last).plan


def test_a_checkpoint_of_another_structure_is_refused_before_the_data_is_read(refused, pruned, words, tmp_path):
    words = [*words, "data.root", tmp_path / "nowhere", "amg.weights", pruned.last]
    assert "amg.override" in refused("train", *words, "amg.override.depth", "1")


def test_pruning_with_a_teacher_of_other_identities_is_refused(refused, trained, tmp_path):
    words = ["-s", "market1501", "data.save_dir", tmp_path, "amg.schedule", "[{target: heads, rate: 0.25}]"]
    assert "has as many others" in refused("prune", "--weights", trained.last, *words)


def test_a_given_teacher_of_other_identities_is_refused(refused, amg_reid, trained, tmp_path):
    words = ["-s", "market1501", "amg.schedule", "[{target: heads, rate: 0.25}]", "amg.final_epochs", "1"]
    start = tmp_path / "start"
    assert amg_reid("train", "--weights", trained.last, *words[:2], "data.save_dir", start, *ONE).status == 0
    words += ["--weights", start / "last.pth", "data.save_dir", tmp_path / "log", "amg.distill.teacher", trained.last]
    assert "teacher knows 6 identities" in refused("prune", *words)
