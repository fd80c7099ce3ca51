"""``amg-reid test`` on a holistic and an occluded target: scores side by side, and attention on covered patches."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from tiny_run import DEPTH, PATCHES

from amg_plugin.checkpoint import read_checkpoint
from amg_plugin.data.occlusion.copy import write_occluded_copy
from amg_plugin.data.occlusion.masks import Grid, covered_by_masks, write_mask
from amg_plugin.data.occlusion.settings import CopySettings

TOOL = Path(__file__).resolve().parents[2] / "tools" / "results.py"
checkout = pytest.mark.skipif(not TOOL.is_file(), reason="the tests do not run from a checkout")
PAIR = ("-t", "market1501", "occluded_market1501")
SETTINGS = CopySettings(gallery_share=0.5)


@pytest.fixture(scope="session")
def pair_root(tiny_root, tmp_path_factory):
    """A data root with the drawn people and an occluded copy; tests must not change it."""
    root = tmp_path_factory.mktemp("pair")
    shutil.copytree(tiny_root / "market1501", root / "market1501")
    write_occluded_copy(root / "market1501", root / "occluded_market1501", SETTINGS)
    return root


@pytest.fixture
def own_root(pair_root, tmp_path):
    return shutil.copytree(pair_root, tmp_path / "own")


@pytest.fixture
def test_words(pruned, pair_root, tmp_path):
    return ["test", "--weights", pruned.last, *PAIR, "--root", pair_root, "data.save_dir", tmp_path / "log"]


def result_of(tmp_path):
    return json.loads((tmp_path / "log" / "result.json").read_text(encoding="utf-8"))


def test_dense_and_pruned_stand_side_by_side_on_both_targets(amg_reid, trained, test_words, tmp_path):
    outcome = amg_reid(*test_words[:3], "--dense", trained.last, *test_words[3:])
    assert outcome.status == 0, outcome.err
    result = result_of(tmp_path)
    for name in ("dense", "finetuned"):
        assert list(result[name]["targets"]) == ["market1501", "occluded_market1501"]
    assert result["dense"]["targets"]["market1501"] == trained.result["dense"]["targets"]["market1501"]
    assert sum(result["dense"]["heads_per_block"]) > sum(result["finetuned"]["heads_per_block"])
    cell = "{rank1:.1f} / {mAP:.1f}"
    markdown = (tmp_path / "log" / "result.md").read_text(encoding="utf-8")
    for name in ("dense", "finetuned"):
        for scores in result[name]["targets"].values():
            shown = cell.format(rank1=100 * scores["rank1"], mAP=100 * scores["mAP"])
            assert shown in outcome.out and shown in markdown
    assert "occluded_market1501 - market1501" in outcome.out
    assert result["versions"]["torch"] in markdown


def test_attention_on_covered_patches_is_reported_per_block(amg_reid, trained, pruned, test_words, pair_root, tmp_path):
    assert amg_reid(*test_words[:3], "--dense", trained.last, *test_words[3:]).status == 0
    assert list(result_of(tmp_path)["covered_attention"]) == ["occluded_market1501"]
    section = result_of(tmp_path)["covered_attention"]["occluded_market1501"]
    folder = pair_root / "occluded_market1501"
    images = [path for part in ("query", "bounding_box_test") for path in (folder / part).iterdir()]
    covered = np.stack(list(covered_by_masks(images, Grid((32, 16), (8, 8), (8, 8))).values()))
    assert covered.shape[1] == PATCHES
    assert section["images"] == len(covered) == 8 + 8
    assert section["patches"] == pytest.approx(covered.mean())
    for name, files in (("dense", trained), ("finetuned", pruned)):
        plan = read_checkpoint(files.last).plan
        assert len(section["models"][name]) == DEPTH
        for block, found in enumerate(section["models"][name]):
            assert found["keys"] == pytest.approx(covered[:, plan.tokens[block]].mean())
            assert 0 < found["attention"] < 1


def test_without_a_dense_model_its_own_attention_is_reported(amg_reid, test_words, tmp_path):
    assert amg_reid(*test_words).status == 0
    section = result_of(tmp_path)["covered_attention"]["occluded_market1501"]
    assert list(section["models"]) == ["finetuned"]


def test_batches_and_loaders_do_not_matter(amg_reid, test_words, tmp_path):
    found = []
    for words in (("test.batch_size", "100"), ("test.batch_size", "3", "data.workers", "1")):
        assert amg_reid("test", "--overwrite", *test_words[1:], *words).status == 0
        found.append(result_of(tmp_path)["covered_attention"]["occluded_market1501"]["models"]["finetuned"])
    for one, other in zip(*found, strict=True):
        assert one == {name: pytest.approx(value, rel=1e-5) for name, value in other.items()}


def test_targets_without_masks_report_scores_only(amg_reid, test_words, own_root, tmp_path):
    shutil.rmtree(own_root / "occluded_market1501" / "masks")
    outcome = amg_reid(*test_words, "data.root", own_root)
    assert outcome.status == 0, outcome.err
    assert "covered_attention" not in result_of(tmp_path)
    assert "occluded_market1501 - market1501" in outcome.out


def test_networks_that_choose_tokens_by_the_image_report_scores_only(amg_reid, trained, test_words, tmp_path):
    words = ["--weights", trained.last, *test_words[3:], "amg.reducer", "evit", "amg.target_macs_saving", "0.21"]
    outcome = amg_reid("test", *words)
    assert outcome.status == 0, outcome.err
    assert "covered_attention" not in result_of(tmp_path)
    assert "attention on covered patches is not reported" in outcome.out


def test_a_missing_mask_is_named_before_anything_is_evaluated(refused, test_words, own_root, tmp_path):
    mask = sorted((own_root / "occluded_market1501" / "masks" / "query").iterdir())[0]
    mask.unlink()
    assert mask.name in refused(*test_words, "data.root", own_root)
    assert not (tmp_path / "log" / "result.json").exists()


def test_a_mask_of_another_size_is_named(refused, test_words, own_root):
    mask = sorted((own_root / "occluded_market1501" / "masks" / "query").iterdir())[0]
    write_mask(mask, np.ones((5, 5), bool))
    assert "5x5 pixels" in refused(*test_words, "data.root", own_root)


def test_a_dense_model_is_compared_with_a_pruned_one_only(refused, trained, pruned, test_words):
    assert "--weights holds a dense one" in refused("test", "--weights", trained.last, "--dense", trained.last)
    assert "is pruned" in refused(*test_words[:3], "--dense", pruned.last, *test_words[3:])


def test_a_dense_model_of_another_structure_is_refused(refused, pruned, test_words, tmp_path):
    from dataclasses import replace

    import torch

    from amg_plugin.checkpoint import save_checkpoint
    from amg_plugin.models.reid import ReIDModel

    spec = read_checkpoint(pruned.last).spec
    torch.manual_seed(0)
    other = ReIDModel(replace(spec, overrides={**spec.overrides, "depth": DEPTH + 1}))
    save_checkpoint(tmp_path / "other.pth", other)
    sentence = refused(*test_words[:3], "--dense", tmp_path / "other.pth", *test_words[3:])
    assert "another structure" in sentence


@pytest.fixture
def page(amg_reid, trained, test_words, pair_root, tmp_path, run_script):
    """Runs tools/results.py on the evaluations of a dense and a pruned model and of a control."""
    assert amg_reid(*test_words[:3], "--dense", trained.last, *test_words[3:]).status == 0
    control = tmp_path / "control"
    words = ("--weights", trained.last, *PAIR, "--root", pair_root, "data.save_dir", control)
    assert amg_reid("test", *words).status == 0
    arguments = {
        "--pruned": tmp_path / "log" / "result.json",
        "--control": control / "result.json",
        "--manifest": pair_root / "occluded_market1501" / "occlusion.json",
        "--title": "Drawn people",
        "--output": tmp_path / "page",
    }

    def run(**changes):
        words = {**arguments, **{f"--{name}": value for name, value in changes.items()}}
        return run_script(TOOL, "occlusion", *(word for pair in words.items() for word in pair), cwd=tmp_path)

    return run


@checkout
def test_the_page_joins_dense_control_and_pruned(page, tmp_path):
    outcome = page()
    assert outcome.returncode == 0, outcome.stderr
    joined = json.loads((tmp_path / "page.json").read_text(encoding="utf-8"))
    result = result_of(tmp_path)
    assert (joined["dense"], joined["pruned"]) == (result["dense"], result["finetuned"])
    models = joined["covered_attention"]["occluded_market1501"]["models"]
    assert list(models) == ["dense", "control", "pruned"]
    assert models["pruned"] == result["covered_attention"]["occluded_market1501"]["models"]["finetuned"]
    assert "images" not in joined["occlusion"]
    text = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert text.startswith("# Drawn people\n")
    assert [line.split(" |")[0] for line in text.splitlines() if line.startswith(("| d", "| c", "| p"))] == [
        "| dense",
        "| control",
        "| pruned",
    ]
    assert f"seed {SETTINGS.seed}; bounding_box_train: 0 of 24 images occluded" in text


@checkout
def test_the_page_shows_intervals_and_paired_differences(page, tmp_path):
    entry = {
        "queries": 8,
        **dict.fromkeys(("rank1", "mAP"), 0.5),
        **{f"{key}_interval": [0.4, 0.6] for key in ("rank1", "mAP")},
        **{f"{key}_difference": -0.1 for key in ("rank1", "mAP")},
        **{f"{key}_difference_interval": [-0.2, 0.05] for key in ("rank1", "mAP")},
    }
    intervals = tmp_path / "intervals.json"
    intervals.write_text(json.dumps({"target": "x", "models": {"control": entry, "finetuned": entry}}))
    assert page(intervals=intervals).returncode == 0
    text = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert "| control | 50.0 [40.0, 60.0] | 50.0 [40.0, 60.0] |  |  |" in text
    assert "| pruned | 50.0 [40.0, 60.0] | 50.0 [40.0, 60.0] | -10.0 [-20.0, +5.0] | -10.0 [-20.0, +5.0] |" in text


@checkout
def test_the_page_refuses_results_that_do_not_belong_together(page, tmp_path):
    control = json.loads((tmp_path / "control" / "result.json").read_text(encoding="utf-8"))
    control["covered_attention"]["occluded_market1501"]["patches"] += 0.1
    other = tmp_path / "other.json"
    other.write_text(json.dumps(control))
    for changes, message in (
        ({"control": other}, "different masks"),
        ({"pruned": tmp_path / "control" / "result.json"}, "lacks finetuned"),
        ({"manifest": other}, "not a manifest"),
        ({"pruned": tmp_path / "nowhere"}, "cannot be read"),
    ):
        outcome = page(**changes)
        assert outcome.returncode == 2
        assert outcome.stderr.startswith("results: error: ") and message in outcome.stderr
        assert outcome.stderr.count("\n") == 1
