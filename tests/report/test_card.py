"""Model cards of checkpoints and of exported files."""

import json

import pytest
import torch
import yaml

from amg_plugin.checkpoint import read_checkpoint
from amg_plugin.report.card import card


def parts(text):
    """The head of a card, read, and its body."""
    _, head, body = text.split("---\n", 2)
    return yaml.safe_load(head), body


@pytest.fixture(scope="module")
def pruned_card(pruned):
    return parts(card(pruned.last))


def test_the_head_has_what_model_hubs_read(pruned, pruned_card):
    head, _ = pruned_card
    assert {"license", "library_name", "pipeline_tag", "tags", "datasets", "metrics", "model-index"} <= set(head)
    assert head["datasets"] == ["synthetic_reid"]
    results = {one["dataset"]["name"]: one["metrics"] for one in head["model-index"][0]["results"]}
    scores = pruned.result["finetuned"]["targets"]
    assert set(results) == set(scores)
    for target, metrics in results.items():
        found = {metric["type"]: metric["value"] for metric in metrics}
        assert found == pytest.approx({kind: 100 * scores[target][kind] for kind in ("mAP", "rank1")}, abs=0.01)


def test_the_body_says_what_the_network_is_and_how_it_was_made(pruned, pruned_card):
    _, body = pruned_card
    for words in ("heads | 6 of 8", "tokens | 12 of 16, variant block", "32 x 16", "3 cuts, head scorer amg", "torch "):
        assert words in body
    assert f"{pruned.result['finetuned']['macs']:,}" in body
    assert "licence of the weights is not recorded" in body


def test_what_a_file_does_not_record_is_said_to_be_not_recorded(trained, tmp_path):
    content = torch.load(trained.last, weights_only=True)
    content |= {"config": {}, "history": [], "preprocessing": {}, "identities": ""}
    del content["versions"]
    torch.save(content, tmp_path / "bare.pth")
    head, body = parts(card(tmp_path / "bare.pth"))
    assert "model-index" not in head and "datasets" not in head
    for words in ("in the file are not recorded", "become inputs is not recorded", "data sets | not recorded",
                  "versions | not recorded", "seed | not recorded"):  # fmt: skip
        assert words in body


def test_scores_of_another_state_of_the_network_are_not_passed_off_as_its_own(trained, tmp_path):
    content = torch.load(trained.last, weights_only=True)
    content["history"].append({"event": "epoch", "epoch": 9, "loss": {}, "accuracy": None, "lr": 0.1})
    torch.save(content, tmp_path / "later.pth")
    assert read_checkpoint(tmp_path / "later.pth").latest_scores == {}
    assert "in the file are not recorded" in card(tmp_path / "later.pth")


def test_what_a_file_says_is_text_in_its_card(trained, tmp_path):
    content = torch.load(trained.last, weights_only=True)
    content["config"]["data"]["sources"] = ["/home/somebody/x", "a | b\n# heading <script>"]
    torch.save(content, tmp_path / "odd.pth")
    _, body = parts(card(tmp_path / "odd.pth"))
    assert "a \\| b \\# heading \\<script\\>" in body
    assert "somebody" not in body


def test_an_exported_file_has_the_scores_of_its_checkpoint(amg_reid, pruned, tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    path = tmp_path / "model.onnx"
    exported = amg_reid("export", pruned.last, "--format", "onnx", "--output", path)
    assert exported.status == 0, exported.err
    outcome = amg_reid("card", path)
    head, body = parts(outcome.out)
    assert {"onnx", "fp32", "pruning"} <= set(head["tags"])
    (metrics,) = [
        one["metrics"] for one in head["model-index"][0]["results"] if one["dataset"]["name"] == "synthetic_reid"
    ]
    assert metrics[0]["value"] == pytest.approx(100 * pruned.result["finetuned"]["mAP"], abs=0.01)
    assert "exported from | last.pth, SHA-256" in body


def test_other_files_are_refused(refused, tmp_path):
    (tmp_path / "x.json").write_text(json.dumps({}))
    assert "not an amg-reid checkpoint" in refused("card", tmp_path / "x.json")
    assert "does not exist" in refused("card", tmp_path / "nothing.pth")
