"""Activation checkpointing: the same gradients and random numbers, with less kept."""

import copy

import pytest
import torch

from amg_plugin.errors import ConfigError
from amg_plugin.models.attention import checkpoint_activations
from amg_plugin.models.build import build_network
from amg_plugin.models.spec import ModelSpec
from amg_plugin.pruning import PruningPlan, apply_plan, current_plan
from amg_plugin.pruning.recorder import AttentionMapRecorder, InputVarianceRecorder

DEPTH, PATCHES = 3, 8
TINY = {"depth": DEPTH, "embed_dim": 16, "num_heads": 2}
NETWORKS = {
    "plain": {},
    "jigsaw": {"jigsaw": {}, "loss": "triplet"},
    "parts": {"head": "parts", "parts": 2, "part_hidden": 8},
    "reduced": {"reducer": {"method": "tome", "tokens": [8, 6, 4]}},
}


def network(**options):
    torch.manual_seed(0)
    spec = {"overrides": TINY, "drop_path": 0.3, "part_dropout": 0.3, **options}
    return build_network(ModelSpec("vit_tiny_patch16_224", (64, 32), 5, **spec)).train()


@pytest.fixture
def images():
    return torch.randn(4, 3, 64, 32, generator=torch.Generator().manual_seed(0))


def trained_once(model, images):
    """Gradients after a step, the bytes that autograd has kept for it, and the random numbers that follow."""
    kept = {}

    def keep(value):
        kept[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        return value

    torch.manual_seed(1)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        outputs = model(images)
    for value in (images, *model.parameters()):
        kept.pop(value.untyped_storage().data_ptr(), None)
    flat = [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)
    flat = [part for output in flat for part in (output if isinstance(output, list) else [output])]
    torch.stack([output.square().sum() for output in flat]).sum().backward()
    return {name: value.grad for name, value in model.named_parameters()}, sum(kept.values()), torch.rand(3)


def compare(model, images):
    light = copy.deepcopy(model)
    checkpoint_activations(light)
    (full, kept, after), (checkpointed, fewer, after_too) = trained_once(model, images), trained_once(light, images)
    for name, gradient in full.items():
        torch.testing.assert_close(checkpointed[name], gradient, rtol=1e-6, atol=1e-6)
    assert fewer < kept / 4
    assert torch.equal(after, after_too)


@pytest.mark.parametrize("kind", NETWORKS)
def test_every_network_has_the_same_gradients_and_keeps_less(images, kind):
    compare(network(**NETWORKS[kind]), images)


@pytest.mark.parametrize("variant", ["kv", "block", "merge"])
def test_pruned_networks_have_the_same_gradients_and_keep_less(images, variant):
    model = network()
    kept = [list(range(PATCHES)), [0, 2, 3, 5, 7], [0, 3, 5]]
    groups = [[[n] for n in range(PATCHES)], [[0, 1], [2], [3, 4], [5, 6], [7]], [[0, 1, 2], [3, 4], [5, 6, 7]]]
    data = current_plan(model).with_variant(variant).to_dict()
    apply_plan(model, PruningPlan.from_dict({**data, "tokens": kept, "groups": groups if variant == "merge" else []}))
    compare(model, images)


@pytest.mark.parametrize("record", ["attention", "inputs"])
def test_what_records_is_told_once(images, record):
    sums = []
    for light in (False, True):
        model = network(drop_path=0.0)
        if light:
            checkpoint_activations(model)
        layers = [block.attn.proj for block in model.backbone.blocks]
        recorder = AttentionMapRecorder(model) if record == "attention" else InputVarianceRecorder(layers)
        with recorder:
            model(images).sum().backward()
        sums.append(recorder.mean() if record == "attention" else recorder.variances())
    assert all(torch.equal(*pair) for pair in zip(*sums, strict=True))


def test_evaluation_keeps_nothing_for_gradients_and_computes_as_before(images):
    model = network().eval()
    light = copy.deepcopy(model)
    checkpoint_activations(light)
    assert torch.equal(model(images), light(images))


def test_a_network_of_others_is_refused():
    with pytest.raises(ConfigError, match=r"amg\.checkpoint_activations is True, but the network is not one of the"):
        checkpoint_activations(torch.nn.Linear(2, 2))
