"""TransReID and LA-Transformer from configuration to pruned checkpoint, and imported ones on data."""

import json
from dataclasses import replace

import pytest
import torch
from published_state import la_transformer, la_transformer_state, transreid, transreid_state
from tiny_run import PATCHES, SPEC, settings

from amg_plugin.checkpoint import load_model, read_checkpoint
from amg_plugin.cli.main import main
from amg_plugin.data.synthetic.reid import write_synthetic_reid
from amg_plugin.models.la_transformer import LATransformer
from amg_plugin.models.transreid import TransReID

DEPTH = 3
NETWORKS = {
    "transreid": {
        "loss.name": "triplet",
        "loss.triplet.weight_x": 1.0,
        "loss.softmax.label_smooth": False,
        "train.optim": "sgd",
        "amg.soft_margin": True,
        "amg.neck_feat": "before",
        "test.normalize_feature": True,
        "amg.stride": 6,
        "amg.sie.enabled": True,
        "amg.jpm.enabled": True,
        "amg.jpm.parts": 2,
        "amg.warmup_epochs": 1,
        "amg.min_lr_factor": 0.002,
        "amg.bias_lr_factor": 2.0,
    },
    "la": {
        "amg.head": "parts",
        "amg.parts.number": 4,
        "amg.parts.hidden": 16,
        "amg.token_variant": "kv",
        "amg.unfreeze.every": 1,
        "train.lr_scheduler": "single_step",
        "train.gamma": 0.8,
    },
}
SCHEDULE = (
    "[{target: heads, rate: 0.25, iterations: 2, epochs: 1}, {target: tokens, rate: 0.25, iterations: 1, epochs: 0}]"
)


def options(network, change=None):
    values = {**NETWORKS[network], "amg.override.depth": DEPTH, **(change or {})}
    return [str(word) for pair in values.items() for word in pair]


@pytest.fixture(scope="module")
def finished_runs(tiny_root, tmp_path_factory):
    """Folder of a finished ``train``, with a finished ``prune`` inside, by network."""
    folders = {}
    for name in NETWORKS:
        folders[name] = folder = tmp_path_factory.mktemp("runs") / name
        assert main(["train", *settings(tiny_root, folder), "train.max_epoch", "2", *options(name)]) == 0
        more = ["amg.schedule", SCHEDULE, "amg.final_epochs", "1"]
        assert main(["prune", "--weights", str(folder / "last.pth"), *more]) == 0
    return folders


@pytest.fixture(params=list(NETWORKS))
def runs(request, finished_runs):
    """Name of a network and the folder of its runs."""
    return request.param, finished_runs[request.param]


def result(folder):
    return json.loads((folder / "result.json").read_text(encoding="utf-8"))


def test_the_configuration_builds_the_published_network(runs):
    name, folder = runs
    model = load_model(folder / "last.pth")
    assert type(model) is {"transreid": TransReID, "la": LATransformer}[name]
    if name == "transreid":
        assert model.spec.side_information.camera_table == {"synthetic_reid": [0, 1, 2]}
        assert model.spec.jigsaw.parts == len(model.local_classifiers) == 2
        assert model.spec.stride == 6
    else:
        assert len(model.classifiers) == 4
        assert model.classifiers[0].reduce.out_features == 16


def test_pruning_removes_what_is_asked_for_and_leaves_the_block_that_the_jigsaw_module_copies(runs):
    name, folder = runs
    checkpoint = read_checkpoint(folder / "prune" / "last.pth")
    plan = checkpoint.plan
    blocks = range(DEPTH - 1 if name == "transreid" else DEPTH)
    for kept, dense in ((plan.heads_per_block, 4), (plan.tokens_per_block, plan.num_patches)):
        assert sum(kept[block] for block in blocks) == len(blocks) * dense - int(0.25 * len(blocks) * dense)
        assert all(kept[block] == dense for block in range(DEPTH) if block not in blocks)
    assert plan.variant == ("block" if name == "transreid" else "kv")
    assert plan.num_patches == (5 * 2 if name == "transreid" else PATCHES)
    sections = result(folder / "prune")
    assert sections["finetuned"]["macs"] < sections["dense"]["macs"]
    assert len([event for event in sections["history"] if event["event"] == "cut"]) == 3


def test_a_test_of_the_checkpoint_gives_the_figures_of_the_run(runs, amg_reid, tmp_path):
    _, folder = runs
    words = ["--weights", folder / "prune" / "last.pth", "data.save_dir", tmp_path / "test"]
    assert amg_reid("test", *words).status == 0
    ours, theirs = result(tmp_path / "test")["finetuned"], result(folder / "prune")["finetuned"]
    assert ours["mAP"] == pytest.approx(theirs["mAP"], abs=1e-9)
    assert (ours["rank1"], ours["macs"], ours["params"]) == (theirs["rank1"], theirs["macs"], theirs["params"])


def test_inspect_shows_every_block_and_what_is_special(runs, amg_reid):
    name, folder = runs
    outcome = amg_reid("inspect", folder / "prune" / "last.pth")
    assert outcome.status == 0
    assert f"{DEPTH - 1}  " in outcome.out
    told = (
        ["3 cameras (synthetic_reid 0 1 2)", "2 parts; the last block"] if name == "transreid" else ["classifiers: 4"]
    )
    assert all(words in outcome.out for words in told)


def test_a_network_whose_only_block_is_the_jigsaw_modules_cannot_be_pruned(refused, amg_reid, tiny_root, tmp_path):
    words = [*settings(tiny_root, tmp_path / "log"), "train.max_epoch", "1", "amg.override.depth", "1"]
    assert amg_reid("train", *words, "amg.jpm.enabled", "True").status == 0
    message = refused("prune", "--weights", tmp_path / "log" / "last.pth", "amg.schedule", SCHEDULE)
    assert "No block can be pruned" in message


@pytest.mark.parametrize(
    ("name", "change", "key"),
    [
        ("transreid", {"amg.sie.enabled": False}, "amg.sie.enabled"),
        ("transreid", {"amg.sie.coefficient": 2.0}, "amg.sie.coefficient"),
        ("transreid", {"amg.sie.cameras": 6}, "amg.sie.cameras"),
        ("transreid", {"amg.jpm.enabled": False}, "amg.jpm.enabled"),
        ("transreid", {"amg.jpm.parts": 4}, "amg.jpm.parts"),
        ("transreid", {"amg.stride": 8}, "amg.stride"),
        ("transreid", {"amg.override.qkv_bias": False}, "amg.override"),
        ("transreid", {"amg.override.attention_scale": 0.5}, "amg.override.attention_scale"),
        ("la", {"amg.head": "bnneck"}, "amg.head"),
        ("la", {"amg.parts.number": 7}, "amg.parts.number"),
        ("la", {"amg.parts.hidden": 32}, "amg.parts.hidden"),
    ],
)
def test_a_configuration_of_another_network_is_refused(finished_runs, refused, tiny_root, tmp_path, name, change, key):
    (tmp_path / "config.yaml").write_text("model: {name: vit_amg_tiny}\n", encoding="utf-8")
    message = refused(
        *("test", "--config-file", tmp_path / "config.yaml", "--weights", finished_runs[name] / "last.pth"),
        *(*settings(tiny_root, tmp_path), *options(name, change)),
    )
    assert f"another structure: its {key} is" in message


@pytest.mark.parametrize(
    ("name", "change"), [("transreid", {"amg.sie.unseen": "mean"}), ("la", {"amg.parts.dropout": 0.1})]
)
def test_what_is_no_structure_may_change(finished_runs, amg_reid, tiny_root, tmp_path, name, change):
    words = [*settings(tiny_root, tmp_path), *options(name, change)]
    outcome = amg_reid("train", "--weights", finished_runs[name] / "last.pth", *words, "train.max_epoch", "2")
    assert outcome.status == 0, outcome.err
    spec = read_checkpoint(tmp_path / "last.pth").spec
    assert spec.side_information.unseen == "mean" if name == "transreid" else spec.part_dropout == 0.1


# --- Imported networks ------------------------------------------------------------------------------------------------

IMPORTED = {
    "transreid": ("transreid", lambda: transreid_state(transreid(stride=12)), (64, 40), []),
    "la": ("la", lambda: la_transformer_state(la_transformer()), (64, 64), ["--parts", "4"]),
}


@pytest.fixture(params=list(IMPORTED))
def imported(request, amg_reid, tmp_path):
    """Imports a file that was trained on the given data set."""
    source, state, size, words = IMPORTED[request.param]

    def run(trained_on):
        torch.save(state(), tmp_path / "published.pth")
        outcome = amg_reid(
            *("import", tmp_path / "published.pth", "--from", source, "--image-size", *size, "--head-dim", "8", *words),
            *("--trained-on", trained_on, "--out", tmp_path / "imported.pth"),
        )
        assert outcome.status == 0, outcome.err
        return tmp_path / "imported.pth"

    return run


def test_an_imported_network_is_evaluated_without_any_configuration(imported, amg_reid, tiny_root, tmp_path):
    words = ["--root", tiny_root, "-t", "synthetic_reid", "market1501"]
    checkpoint = imported("market1501")
    outcome = amg_reid(
        *("test", "--weights", checkpoint, *words, "data.workers", "0", "data.save_dir", tmp_path / "t"),
        *("use_gpu", "False"),
    )
    assert outcome.status == 0, outcome.err
    assert set(result(tmp_path / "t")["dense"]["targets"]) == {"synthetic_reid", "market1501"}
    unseen = [line for line in outcome.out.splitlines() if "unseen" in line]
    if read_checkpoint(checkpoint).spec.side_information:
        assert len(unseen) == 1 and unseen[0].startswith("all cameras of synthetic_reid are unseen")
    else:
        assert unseen == []


def test_an_imported_network_is_pruned_by_its_own_configuration(imported, amg_reid, tmp_path):
    write_synthetic_reid(tmp_path, replace(SPEC, train_ids=5), seed=3)
    words = ["--root", tmp_path, "data.workers", "0", "use_gpu", "False"]
    outcome = amg_reid(
        *("prune", "--weights", imported("synthetic_reid"), *words),
        *("data.save_dir", tmp_path / "p", "sampler.train_sampler", "RandomIdentitySampler", "train.batch_size", "8"),
        *("amg.schedule", "[{target: heads, rate: 0.25}, {target: tokens, rate: 0.25, epochs: 1}]"),
    )
    assert outcome.status == 0, outcome.err
    checkpoint = read_checkpoint(tmp_path / "p" / "last.pth")
    blocks = 3 if checkpoint.spec.jigsaw else 4
    assert sum(checkpoint.plan.heads_per_block[:blocks]) == 3 * blocks
    assert checkpoint.plan.heads_per_block[blocks:] == [4] * (4 - blocks)
    if side := checkpoint.spec.side_information:
        assert side.camera_table == {"synthetic_reid": [0, 1, 2]}
