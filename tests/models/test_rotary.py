"""ViTs with rotary positions (EVA-02, DINOv3) keep the promises of plain ones, or are refused by name."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from amg_plugin.checkpoint import load_model, save_checkpoint
from amg_plugin.errors import ConfigError
from amg_plugin.models import complexity
from amg_plugin.models.attention import checkpoint_activations
from amg_plugin.models.build import build_network, differences
from amg_plugin.models.spec import JigsawSpec, ModelSpec, ReducerSpec, SideInformationSpec
from amg_plugin.paper import published_accounting
from amg_plugin.pruning import apply_plan, current_plan
from amg_plugin.pruning.budget import PlanCost
from amg_plugin.pruning.scorers import Calibration
from amg_plugin.pruning.streams import Repair, prune_and_repair
from amg_plugin.registries import HEAD_SCORERS, TOKEN_SCORERS
from amg_plugin.utils.preprocessing import Preprocessing

TINY = {"depth": 2, "embed_dim": 32, "num_heads": 4, "patch_size": 8}
ARCHS = ("vit_small_patch16_dinov3_qkvb", "eva02_base_patch14_224")
HEADS, TOKENS, NEURONS = [[0, 2, 3], [1]], [[0, 2, 3, 5], [1, 2, 7]], [range(5, 20), range(30)]


@pytest.fixture(scope="module", params=ARCHS)
def spec(request):
    return ModelSpec(request.param, (32, 16), 5, overrides=TINY)


@pytest.fixture(scope="module")
def built(spec):
    torch.manual_seed(0)
    return build_network(spec).eval()


@pytest.fixture
def network(built):
    return copy.deepcopy(built)


@pytest.fixture(scope="module")
def images():
    return torch.randn(40, 3, 32, 16, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("variant", ["block", "kv"])
def test_macs_of_a_plan_are_those_that_are_counted(network, variant):
    cost, plan = PlanCost.of(network), current_plan(network).with_variant(variant)
    plan = plan.narrow(heads=HEADS, tokens=TOKENS, neurons=NEURONS)
    dense = complexity.count(network, 32, 16)
    pruned = complexity.count(apply_plan(network, plan), 32, 16)
    assert cost.macs(plan) == pruned["macs"] < dense["macs"]
    assert pruned["params"] < dense["params"]


def test_the_published_accounting_takes_gated_mlps(network):
    dense = published_accounting(network)
    plan = current_plan(network).narrow(heads=HEADS, tokens=TOKENS, neurons=NEURONS)
    pruned = published_accounting(apply_plan(network, plan))
    tokens = [network.backbone.num_prefix_tokens + len(kept) for kept in TOKENS]
    mlp = sum(2 * count * 32 * len(units) for count, units in zip(tokens, NEURONS, strict=True))
    assert pruned["macs"] - pruned["attention_macs"] == mlp
    assert pruned["macs"] < dense["macs"]


@pytest.mark.parametrize(("table", "sizes"), [(HEAD_SCORERS, [4, 4]), (TOKEN_SCORERS, [8, 8])], ids=["heads", "tokens"])
def test_every_scorer_scores_them(network, images, table, sizes):
    calibration = Calibration(
        lambda: iter([images[:2]]),
        network,
        lambda batch: F.cross_entropy(network.logits(batch.clone().requires_grad_()), torch.tensor([0, 3])),
    )
    for name in table:
        scores = table.load(name)(network, calibration, [0, 1])
        assert [len(values) for values in scores] == sizes, name
        assert all(torch.isfinite(values).all() for values in scores), name


@pytest.mark.parametrize("kind", ["mean", "least_squares"])
def test_repair_brings_the_features_closer(network, images, kind):
    plan = current_plan(network).narrow(heads=HEADS, tokens=TOKENS)
    distances = prune_and_repair(network, plan, Repair(kind, 40), [images])
    assert distances["repaired"] < distances["as_cut"]


def test_a_checkpoint_gives_the_pruned_network_back(network, images, tmp_path):
    apply_plan(network, current_plan(network).narrow(heads=HEADS, tokens=TOKENS, neurons=NEURONS))
    save_checkpoint(tmp_path / "pruned.pth", network, preprocessing=Preprocessing.of_torchreid((32, 16)))
    with torch.no_grad():
        assert torch.equal(load_model(tmp_path / "pruned.pth")(images[:2]), network(images[:2]))


@pytest.mark.parametrize("checkpointed", [False, True], ids=["as it is", "checkpointed"])
def test_pruned_networks_learn_in_every_parameter(network, images, checkpointed):
    if checkpointed:
        checkpoint_activations(network)
    apply_plan(network.train(), current_plan(network).narrow(heads=HEADS, tokens=TOKENS))
    network.training_outputs(images[:4]).square().sum().backward()
    assert [name for name, value in network.backbone.named_parameters() if value.grad is None] == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda spec: replace(spec, jigsaw=JigsawSpec()), "amg.jpm"),
        (lambda spec: replace(spec, reducer=ReducerSpec("tome", (8, 8))), "amg.reducer 'tome'"),
    ],
    ids=["jigsaw", "reducer"],
)
def test_what_mixes_tokens_is_refused_by_name(spec, change, words):
    with pytest.raises(ConfigError, match=rf"{words}.*rotary positions \(EVA-02, DINOv3\)"):
        build_network(change(spec))


def test_merging_is_refused_by_name(network):
    with pytest.raises(ConfigError, match=r"amg.token_variant 'merge'.*rotary positions \(EVA-02, DINOv3\)"):
        apply_plan(network, current_plan(network).with_variant("merge"))


def test_side_information_goes_with_them(spec, images):
    network = build_network(replace(spec, side_information=SideInformationSpec(cameras=3))).eval()
    with torch.no_grad():
        first, second = (network(images[:2], torch.tensor([camera, camera])) for camera in (0, 1))
    assert not torch.equal(first, second)


def test_networks_of_other_rotations_are_different(spec):
    other = replace(spec, overrides={**TINY, "rope_temperature": 7.0})
    assert [key for key, _, _ in differences(spec, other)] == ["amg.override"]
