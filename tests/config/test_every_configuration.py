"""Every shipped configuration: its network at full size, without data, and a short run at tiny size."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from tiny_run import BATCH, IMAGES_PER_IDENTITY, draw

from amg_plugin.checkpoint import read_checkpoint
from amg_plugin.config import list_configs, load_config
from amg_plugin.models.build import build_network
from amg_plugin.models.complexity import count
from amg_plugin.models.spec import ARCHITECTURES, spec_from_config
from amg_plugin.paper.accounting import published_accounting
from amg_plugin.paper.rows import ROWS
from amg_plugin.paper.tables import build, even_plan
from amg_plugin.pruning import apply_plan, current_plan
from amg_plugin.pruning.cut import prunable_blocks
from amg_plugin.pruning.schedule import PruningSchedule
from amg_plugin.pruning.selection import removal_count
from amg_plugin.runs.setup import prepare
from amg_plugin.runs.train import prune, train

#: Which published row a configuration ends at.
PUBLISHED = {
    "market1501/tr_base": "tr_base_market_dense",
    "market1501/tr_base_head15_token25": "tr_base_market_head15_token25",
    "market1501/tr_base_head25_token25": "tr_base_market_head25_token25",
    "occluded_duke/tr_base": "tr_base_duke_dense",
    "occluded_duke/tr_base_head25_token25": "tr_base_duke_head25_token25",
    "occluded_duke/tr_small_head40_token40": "tr_small_duke_head40_token40",
    "market1501/la_base": "la_base_dense",
    "market1501/la_base_token40": "la_base_token40",
    "market1501/la_base_head40": "la_base_head40",
    "market1501/la_base_head25_token25": "la_base_head25_token25",
    "occluded_duke/la_tiny": "la_tiny_dense",
    "occluded_duke/la_tiny_token40": "la_tiny_token40",
    "occluded_duke/la_tiny_head67": "la_tiny_head67",
    "occluded_duke/la_tiny_head15_token25": "la_tiny_head15_token25",
    "occluded_duke/la_tiny_head67_token40": "la_tiny_head67_token40",
}
#: Rows whose published figure no configuration can meet; LA-Base head 33 % is a slip of the published program.
UNREACHED = {"la_base_head33"}


@cache
def full_size(name):
    """The network of a configuration on the meta device, pruned to the totals of its schedule."""
    cfg = load_config(name)
    arch = ARCHITECTURES[cfg.model.name]
    size = (cfg.data.height, cfg.data.width)
    cfg.defrost()
    cfg.amg.image_size = list(size)
    spec = spec_from_config(cfg.amg, num_classes=10, loss=cfg.loss.name, default_arch=arch)
    with torch.device("meta"):
        model = build_network(replace(spec, drop_path=0.0)).eval()
        shares = PruningSchedule.from_config(cfg.amg.schedule, cfg.amg.final_epochs).shares
        plan, blocks = current_plan(model), prunable_blocks(model)
        heads = removal_count(shares["heads"], sum(plan.num_heads[block] for block in blocks))
        tokens = removal_count(shares["tokens"], plan.num_patches * len(blocks))
        apply_plan(model, even_plan(model, cfg.amg.token_variant, heads, tokens))
    return cfg, model, (heads, tokens)


def macs_by_hand(model):
    """MACs of one image from the plan and the layers' widths alone."""
    plan, vit = current_plan(model), model.backbone
    prefix, total = vit.num_prefix_tokens, plan.num_patches + vit.num_prefix_tokens
    dim, patch = vit.embed_dim, vit.patch_embed.patch_size
    macs = plan.num_patches * 3 * patch[0] * patch[1] * dim
    for block, heads, tokens in zip(vit.blocks, plan.heads_per_block, plan.tokens_per_block, strict=True):
        keys = tokens + prefix
        queries = keys if plan.variant == "block" else total
        macs += block_macs(block, queries, keys, heads, dim)
    if model.spec.jigsaw:
        parts = model.spec.jigsaw.parts
        length = plan.num_patches // parts + 1
        macs += parts * block_macs(vit.blocks[-1], length, length, plan.heads_per_block[-1], dim)
    return macs


def block_macs(block, queries, keys, heads, dim):
    """Projections, the two products of attention, and the MLP."""
    width, hidden = heads * block.attn.head_dim, block.mlp.fc1.out_features
    return 2 * (queries + keys) * dim * width + 2 * queries * keys * width + 2 * queries * dim * hidden


#: Those whose schedule has rates; a budget's cuts depend on the scores.
RATES = [name for name in list_configs() if not load_config(name).amg.target_macs_saving]


@pytest.mark.parametrize("name", RATES)
def test_network_at_full_size_costs_what_a_hand_formula_says(name):
    cfg, model, _ = full_size(name)
    assert count(model, cfg.data.height, cfg.data.width)["macs"] == macs_by_hand(model)


@pytest.mark.parametrize("name", RATES)
def test_plan_of_the_schedule_removes_its_totals_from_prunable_blocks_only(name):
    _, model, (heads, tokens) = full_size(name)
    plan, blocks = current_plan(model), prunable_blocks(model)
    lost_heads = [full - kept for full, kept in zip(plan.num_heads, plan.heads_per_block, strict=True)]
    lost_tokens = [plan.num_patches - kept for kept in plan.tokens_per_block]
    assert (sum(lost_heads), sum(lost_tokens)) == (heads, tokens)
    assert all(lost_heads[block] == lost_tokens[block] == 0 for block in range(plan.depth) if block not in blocks)


@pytest.mark.parametrize(("name", "key"), PUBLISHED.items())
def test_configuration_of_a_published_row_has_its_structure(name, key):
    _, model, removed = full_size(name)
    row = next(row for row in ROWS if row.key == key)
    expected, heads, tokens = build(row)
    assert removed == (heads, tokens)
    assert published_accounting(model) == published_accounting(expected)


def test_every_published_row_has_a_configuration():
    assert {row.key for row in ROWS} - set(PUBLISHED.values()) == UNREACHED


# --- Short runs -------------------------------------------------------------------------------------------

DENSE = [name for name in list_configs() if not load_config(name).amg.schedule]
PRUNING = [name for name in list_configs() if name not in DENSE]
TINY = {
    "model.pretrained": False,
    "use_gpu": False,
    "data.sources": ["synthetic_reid"],
    "data.targets": ["synthetic_reid"],
    "data.workers": 0,
    "sampler.num_instances": IMAGES_PER_IDENTITY,
    "train.batch_size": BATCH,
    "test.batch_size": 16,
    "amg.override.depth": 3,
    "amg.override.embed_dim": 96,  # for 3, 6, 8 and 12 heads alike
    "amg.check_images": False,
    "amg.warmup_epochs": 0.0,
    "amg.calibration.batches": 1,
}


def tiny(name, root, folder, **changes):
    """The configuration with depth, width, batch, image size and data overridden: 4x4 patches, 3 blocks of width 96."""
    side = 4 * (14 if "patch14" in load_config(name).amg.arch else 16)
    values = {**TINY, "data.height": side, "data.width": side, "data.root": root, "data.save_dir": folder, **changes}
    words = [str(word) for pair in values.items() for word in pair]
    return load_config(name, words, use_schedule="amg.schedule" in changes)


def dense_of(name):
    """The dense configuration that a pruning one starts from."""
    return max((dense for dense in DENSE if name.startswith(dense)), key=len)


def one_round(stages):
    """The same stages, each in one cut and without epochs."""
    return [{**stage, "iterations": 1, "epochs": 0} for stage in stages]


@pytest.fixture(scope="module")
def tiny_root(tmp_path_factory):
    return draw(tmp_path_factory.mktemp("reid-data"))


@pytest.fixture(scope="module")
def trained(tiny_root, tmp_path_factory):
    """Trains a dense configuration for an epoch, once; gives its checkpoint and the result's section."""

    @cache
    def run(name):
        folder = tmp_path_factory.mktemp("dense")
        cfg = tiny(name, tiny_root, folder, **{"train.max_epoch": 1})
        prepare(cfg)
        return folder / "last.pth", train(cfg)["dense"]

    return run


@pytest.mark.parametrize("name", DENSE)
def test_dense_configuration_trains_and_evaluates_at_tiny_size(name, trained):
    checkpoint, section = trained(name)
    assert checkpoint.is_file()
    assert 0 <= section["mAP"] <= 1


@pytest.mark.parametrize("name", PRUNING)
def test_pruning_configuration_cuts_trains_and_evaluates_at_tiny_size(name, trained, tiny_root, tmp_path):
    checkpoint, dense = trained(dense_of(name))
    amg = load_config(name).amg
    changes = {"amg.schedule": one_round(amg.schedule), "amg.final_epochs": 1}
    if amg.target_macs_saving:
        changes["amg.target_macs_saving"] = 0.306  # steps are large in three blocks of 16 patches
    if amg.repair != "none":
        changes["amg.repair"] = "mean"  # 24 images are too few for least squares
    cfg = tiny(name, tiny_root, tmp_path, **changes)
    prepare(cfg)
    section = prune(cfg, read_checkpoint(checkpoint))["finetuned"]
    assert section["macs"] < dense["macs"]
    assert 0 <= section["mAP"] <= 1
