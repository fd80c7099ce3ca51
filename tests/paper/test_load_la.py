"""State dicts of the LA program become models with the same outputs."""

from __future__ import annotations

import pytest
import torch
from published_state import la_transformer, la_transformer_state, la_vit_state, transreid, transreid_state
from timm.models.vision_transformer import VisionTransformer

from amg_plugin.errors import CheckpointError
from amg_plugin.paper import load_la_transformer, load_la_vit
from amg_plugin.pruning import apply_plan, current_plan

HEADS = [[0, 2, 3], [1], [0, 1, 2, 3], [2, 3]]
TOKENS = [[0, 3, 5, 11], [1, 3, 4, 15], range(16), [7]]
ARGUMENTS = {"image_size": (64, 64), "num_heads": 4, "head_dim": 8}


@pytest.fixture
def images():
    return torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model():
    return la_transformer(heads=HEADS, tokens=TOKENS)


def test_tokens_of_the_bare_vit_agree(images, model):
    vit = load_la_vit(la_vit_state(model.backbone), **ARGUMENTS)
    assert type(vit) is VisionTransformer
    assert torch.allclose(vit.forward_features(images), model.backbone.forward_features(images), atol=1e-5)


def test_the_plan_of_the_bare_vit_follows_further_pruning(model):
    vit = load_la_vit(la_vit_state(model.backbone), **ARGUMENTS)
    assert current_plan(vit).tokens == tuple(tuple(kept) for kept in TOKENS)
    assert current_plan(vit).heads_per_block == [3, 1, 4, 2]
    assert (current_plan(vit).variant, current_plan(vit).heads_known) == ("kv", False)
    apply_plan(vit, current_plan(vit).narrow(heads=[[0], [0], [0], [0]]))
    assert current_plan(vit).heads_per_block == [1, 1, 1, 1]


def test_a_head_of_the_bare_vit_gives_logits(images, model):
    state = la_vit_state(model.backbone)
    state["head.weight"], state["head.bias"] = torch.randn(6, 32), torch.randn(6)
    vit = load_la_vit(state, **ARGUMENTS)
    tokens = vit.forward_features(images)
    assert torch.allclose(vit(images), tokens[:, 0] @ state["head.weight"].T + state["head.bias"], atol=1e-5)


def test_features_and_logits_of_the_whole_model_agree(images, model):
    loaded = load_la_transformer(la_transformer_state(model), parts=4, **ARGUMENTS)
    assert torch.allclose(loaded(images), model(images), atol=1e-6)
    assert all(
        torch.allclose(a, b, atol=1e-5) for a, b in zip(loaded.logits(images), model.logits(images), strict=True)
    )
    assert current_plan(loaded).tokens == current_plan(model).tokens


def test_another_image_size_is_fitted_unless_tokens_are_pruned(model):
    dense = load_la_vit(la_vit_state(la_transformer().backbone), **{**ARGUMENTS, "image_size": (96, 48)})
    assert dense.pos_embed.shape == (1, 19, 32)
    with pytest.raises(CheckpointError, match="16 patches"):
        load_la_vit(la_vit_state(model.backbone), **{**ARGUMENTS, "image_size": (96, 48)})


@pytest.mark.parametrize(
    "name", ["model.norm.weight", "classifier2.add_block.1.running_var", "classifier0.classifier.0.weight"]
)
def test_a_missing_tensor_is_named(model, name):
    state = la_transformer_state(model)
    del state[name]
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        load_la_transformer(state, parts=4, **ARGUMENTS)


@pytest.mark.parametrize("name", ["model.extra", "classifier4.add_block.0.weight", "norm.weight"])
def test_an_unknown_tensor_is_named(model, name):
    state = {**la_transformer_state(model), name: torch.zeros(3)}
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        load_la_transformer(state, parts=4, **ARGUMENTS)


def test_another_number_of_parts_is_refused(model):
    with pytest.raises(CheckpointError, match="classifier4"):
        load_la_transformer(la_transformer_state(model), parts=5, **ARGUMENTS)


def test_copies_that_differ_are_refused(model):
    state = la_transformer_state(model)
    state["cls_token"] = state["cls_token"] + 1
    with pytest.raises(CheckpointError, match=r"'cls_token' and 'model\.cls_token' differ"):
        load_la_transformer(state, parts=4, **ARGUMENTS)


def test_each_loader_refuses_the_other_families(model):
    with pytest.raises(CheckpointError, match="LA ViT, not of LA-Transformer"):
        load_la_transformer(la_vit_state(model.backbone), **ARGUMENTS)
    with pytest.raises(CheckpointError, match="LA-Transformer, not of LA ViT"):
        load_la_vit(la_transformer_state(model), **ARGUMENTS)
    with pytest.raises(CheckpointError, match="TransReID, not of LA ViT"):
        load_la_vit(transreid_state(transreid()), **ARGUMENTS)
