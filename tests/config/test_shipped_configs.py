"""The configurations in ``configs/`` and what the documentation says about the keys."""

import re
from pathlib import Path

import pytest

from amg_plugin.config import configs_root, get_default_config, list_configs, load_config, schedule_epochs
from amg_plugin.config.files import decode
from amg_plugin.config.schema import KEYS, STAGE_DEFAULTS

DOCS = Path(__file__).resolve().parents[2] / "docs" / "configuration.md"
PRUNING = [name for name in list_configs() if name.endswith("head25_token25")]


def opening_comment(name):
    lines = (configs_root() / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    end = next(index for index, line in enumerate(lines) if not line.startswith("#"))
    return lines[:end]


@pytest.mark.parametrize("name", list_configs())
def test_shipped_configuration_loads_as_a_model_of_the_plugin(name):
    assert load_config(name).model.name.startswith("vit_amg")


@pytest.mark.parametrize("name", list_configs())
def test_leaf_is_at_most_20_lines(name):
    assert len((configs_root() / f"{name}.yaml").read_text(encoding="utf-8").splitlines()) <= 20


@pytest.mark.parametrize("name", list_configs())
def test_leaf_opens_with_what_it_is_and_its_launch_line(name):
    comment = opening_comment(name)
    assert len(comment) >= 2
    assert any(re.match(rf"# Launch: amg-reid (train|prune) --config-file {name}( |$)", line) for line in comment)


@pytest.mark.parametrize("name", PRUNING)
def test_pruning_leaf_is_launched_by_prune_with_weights(name):
    (launch,) = [line for line in opening_comment(name) if line.startswith("# Launch: ")]
    assert " prune " in launch
    assert "--weights CKPT" in launch


@pytest.mark.parametrize("name", PRUNING)
def test_pruning_leaf_removes_a_quarter_of_both_and_then_fine_tunes(name):
    amg = load_config(name).amg
    for target in ("heads", "tokens"):
        assert sum(stage["rate"] for stage in amg.schedule if stage["target"] == target) == pytest.approx(0.25)
    assert amg.token_variant == ("kv" if amg.head == "parts" else "block")
    assert amg.final_epochs > 0


@pytest.mark.parametrize("name", PRUNING)
def test_pruning_leaf_describes_the_network_of_its_dense_leaf(name):
    dense, pruned = load_config(name.removesuffix("_head25_token25")), load_config(name)
    assert pruned.data.norm_mean == dense.data.norm_mean
    for key in ("arch", "stride", "image_size", "override", "neck_feat", "head", "sie", "jpm"):
        assert pruned.amg[key] == dense.amg[key]


SAVING = [name for name in list_configs() if "_saving30_" in name]
DEV_SPLIT = [name for name in list_configs() if "dev_split" in name]
PUBLISHED = [name for name in list_configs() if name.split("/")[1].startswith(("tr_", "la_"))]


@pytest.mark.parametrize("name", DEV_SPLIT)
def test_pretrained_weights_are_fine_tuned_by_the_recipe_of_docs_training(name):
    cfg = load_config(name)
    assert cfg.train.optim == "adamw"
    assert cfg.train.lr_scheduler == "cosine"
    assert cfg.amg.lr_per_step
    assert {"pad_crop", "random_erase"} <= set(cfg.data.transforms)
    assert cfg.amg.finetune.warmup_share == pytest.approx(0.1)
    if not cfg.amg.schedule:
        assert cfg.amg.warmup_epochs == pytest.approx(0.1 * cfg.train.max_epoch)


@pytest.mark.parametrize("name", SAVING)
def test_budget_leaves_differ_in_the_method_alone(name):
    cfg, fixed = load_config(name), load_config("market1501/dev_split_vits14_equal_macs")
    assert cfg.amg.target_macs_saving == 0.3
    assert [(stage["iterations"], stage["epochs"]) for stage in cfg.amg.schedule] == [(1, 0)] * 2
    assert schedule_epochs(cfg) == fixed.train.max_epoch
    assert cfg.amg.distill == fixed.amg.distill
    published = name.endswith("_amg")
    assert (cfg.amg.head_scorer == cfg.amg.token_scorer == "amg") is published
    assert (cfg.amg.repair == "none") is published


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_recipes_stay_as_published(name):
    cfg = load_config(name)
    assert cfg.train.optim == ("sgd" if "/tr_" in name else "adam")
    assert not cfg.amg.lr_per_step
    assert cfg.amg.finetune.warmup_share == 0


@pytest.mark.parametrize("name", list_configs())
def test_images_are_kept_in_memory(name):
    assert load_config(name).amg.cache_images == "auto"


def test_every_configuration_writes_to_a_folder_of_its_own():
    folders = [load_config(name).data.save_dir for name in list_configs()]
    assert len(set(folders)) == len(folders)


def test_control_trains_as_long_as_the_pruned_model():
    for name in ("market1501/dev_split_vits14", "market1501/dev_split_vits14_long"):
        pruned = load_config(f"{name}_head25_token25")
        assert load_config(f"{name}_control").train.max_epoch == schedule_epochs(pruned)


# --- Documentation ----------------------------------------------------------------------------------------


def documented(pattern):
    rows = re.findall(rf"^\| `({pattern})` \| (`[^`]*`|\S+) \| .+ \|$", DOCS.read_text(encoding="utf-8"), flags=re.M)
    return {key: None if default == "none" else decode(default.strip("`")) for key, default in rows}


def test_docs_list_every_amg_key_with_its_default():
    amg = get_default_config().amg
    expected = {key: _value(amg, key.removeprefix("amg.")) for key in KEYS if key.startswith("amg.")}
    assert documented(r"amg\.[a-z_.]+") == expected


def test_docs_list_every_key_of_a_stage_with_its_default():
    assert documented("[a-z]+") == STAGE_DEFAULTS


def test_docs_name_every_shipped_configuration():
    text = DOCS.read_text(encoding="utf-8")
    assert [name for name in list_configs() if f"`{name}`" not in text] == []


def test_every_key_says_what_it_means():
    assert [name for name, key in KEYS.items() if not key.help] == []


def _value(node, key):
    for name in key.split("."):
        node = node[name]
    return node
