"""TransReID state dicts become models with the same outputs; everything odd is refused by name."""

from __future__ import annotations

import pytest
import torch
from published_state import CAMERAS, la_transformer, la_transformer_state, transreid, transreid_state

from amg_plugin.checkpoint import load_model, save_checkpoint
from amg_plugin.errors import CheckpointError, InputError
from amg_plugin.paper import load_transreid
from amg_plugin.pruning import apply_plan, current_plan

ARGUMENTS = {"image_size": (64, 40), "stride": (8, 12), "num_heads": 4, "head_dim": 8, "num_cameras": CAMERAS}
HEADS = [[0, 2, 3], [1], [0, 1, 2, 3], [0, 1, 2, 3]]
TOKENS = [[0, 3, 5, 11, 20], [1, 3, 4, 19, 20], range(21), range(21)]
LABELS = torch.tensor([0, 2, 1])


def load(state, **changes):
    return load_transreid(state, **{**ARGUMENTS, **changes})


@pytest.fixture
def images():
    return torch.randn(3, 3, 64, 40, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def state():
    return transreid_state(transreid(heads=HEADS, tokens=TOKENS))


@pytest.mark.parametrize("jigsaw", [True, False], ids=["jpm", "plain"])
@pytest.mark.parametrize(
    ("heads", "tokens"), [(None, None), (HEADS, None), (None, TOKENS), (HEADS, TOKENS)], ids=["dense", "h", "t", "ht"]
)
def test_outputs_are_those_of_the_saved_model(images, jigsaw, heads, tokens):
    model = transreid(heads=heads, tokens=tokens, jigsaw=jigsaw)
    loaded = load(transreid_state(model))
    assert torch.allclose(loaded(images, LABELS), model(images, LABELS), atol=1e-5)
    for ours, theirs in zip(loaded.train()(images, LABELS), model.train()(images, LABELS), strict=True):
        ours, theirs = (value if isinstance(value, list) else [value] for value in (ours, theirs))
        assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(ours, theirs, strict=True))


def test_the_plan_holds_patch_positions_and_the_number_of_heads(state):
    plan = current_plan(load(state))
    assert plan.tokens == tuple(tuple(kept) for kept in TOKENS)
    assert plan.heads_per_block == [3, 1, 4, 4]
    assert not plan.heads_known
    assert plan.variant == "block"


def test_a_dense_plan_knows_its_heads():
    plan = current_plan(load(transreid_state(transreid())))
    assert plan.is_dense
    assert plan.heads_known


def test_a_loaded_model_can_be_pruned_further_and_saved(state, images, tmp_path):
    model = load(state)
    apply_plan(model, current_plan(model).narrow(heads=[[1, 2], [0], [0, 3], range(4)]))
    assert current_plan(model).heads_per_block == [2, 1, 2, 4]
    save_checkpoint(tmp_path / "model.pth", model)
    assert torch.equal(load_model(tmp_path / "model.pth")(images, LABELS), model(images, LABELS))


def test_the_input_is_not_changed(state):
    before = {name: value.clone() for name, value in state.items()}
    load(state)
    assert all(torch.equal(value, before[name]) for name, value in state.items())


def test_masks_and_unused_tensors_may_be_absent(images):
    model = transreid()
    state = {n: v for n, v in transreid_state(model).items() if "token_index" not in n and "base.fc" not in n}
    assert torch.allclose(load(state)(images, LABELS), model(images, LABELS), atol=1e-5)


def test_the_prefix_of_data_parallel_and_half_precision_are_fine(state):
    loaded = load({f"module.{n}": v.half() if v.is_floating_point() else v for n, v in state.items()})
    assert {value.dtype for value in loaded.parameters()} == {torch.float32}


def test_a_block_that_lost_all_heads_adds_its_projection_bias_only(state, images):
    for name, size in (("qkv.weight", (0, 32)), ("qkv.bias", (0,)), ("proj.weight", (32, 0))):
        state[f"base.blocks.1.attn.{name}"] = torch.zeros(size)
    model = load(state)
    assert current_plan(model).heads_per_block[1] == 1
    attention = model.backbone.blocks[1].attn
    assert torch.allclose(attention(torch.randn(2, 5, 32)), attention.proj.bias.expand(2, 5, 32))


def test_a_position_embedding_of_another_size_is_fitted():
    state = transreid_state(transreid())
    model = load(state, image_size=(96, 48), stride=16)
    assert model.backbone.pos_embed.shape == (1, 1 + 6 * 3, 32)
    assert torch.equal(model.backbone.pos_embed[:, 0], state["base.pos_embed"][:, 0])


def test_no_qkv_bias_and_a_scale_of_its_own_are_understood(images):
    model = transreid(qkv_bias=False)
    for block in [*model.backbone.blocks, model.jigsaw.block]:
        block.attn.scale = 0.1
    loaded = load(transreid_state(model), attention_scale=0.1)
    assert torch.allclose(loaded(images, LABELS), model(images, LABELS), atol=1e-5)


MISSING = ["base.blocks.2.norm1.weight", "b2.0.mlp.fc1.bias", "bottleneck_3.running_mean", "classifier.weight",
           "base.pos_embed", "base.cls_token", "base.sie_embed", "b1.1.bias", "base.blocks.1.attn.token_index",
           "base.blocks.1.attn.qkv.bias", "b1.0.attn.proj.weight"]  # fmt: skip


@pytest.mark.parametrize("name", MISSING)
def test_a_missing_tensor_is_named(state, name):
    del state[name]
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        load(state)


@pytest.mark.parametrize(
    "name", ["base.extra", "base.blocks.1.attn.gate.weight", "classifier_5.weight", "b3.0.norm1.bias", "head.weight"]
)
def test_an_unknown_tensor_is_named(state, name):
    state[name] = torch.zeros(3)
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        load(state)


def test_a_tensor_of_another_shape_is_named(state):
    state["base.blocks.2.mlp.fc1.bias"] = torch.zeros(3)
    with pytest.raises(CheckpointError, match=r"base\.blocks\.2\.mlp\.fc1\.bias is \(3,\)"):
        load(state)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.ones(9, dtype=torch.bool), "9 entries"),
        (torch.tensor([False] + [True] * 21), "class token"),
        (torch.tensor([True] + [False] * 21), "every patch token"),
        (torch.full((22,), 0.5), "not boolean"),
        (torch.ones(2, 11, dtype=torch.bool), "dimensions"),
    ],
)
def test_contradictory_masks_are_refused(state, mask, message):
    state["base.blocks.1.attn.token_index"] = mask
    with pytest.raises(CheckpointError, match=message) as error:
        load(state)
    assert "base.blocks.1.attn.token_index" in str(error.value)


@pytest.mark.parametrize("branch", ["b1", "b2"])
def test_a_pruned_last_block_under_the_jigsaw_module_is_refused(state, branch):
    state[f"{branch}.0.attn.token_index"] = torch.tensor([True] * 20 + [False] * 2)
    with pytest.raises(CheckpointError, match=rf"{branch}\.0\.attn\.token_index"):
        load(state)


def test_pruned_tokens_cannot_change_their_grid(state):
    with pytest.raises(CheckpointError, match="21 patches"):
        load(state, image_size=(96, 48))


def test_rows_that_are_no_whole_number_of_heads_are_refused(state):
    state["base.blocks.1.attn.proj.weight"] = torch.zeros(32, 5)
    with pytest.raises(CheckpointError, match=r"base\.blocks\.1\.attn"):
        load(state)


@pytest.mark.parametrize("changes", [{"num_heads": 3}, {"head_dim": 64}, {"num_heads": 0}])
def test_heads_that_do_not_fill_the_embedding_are_refused(state, changes):
    with pytest.raises(InputError, match="embedding width 32"):
        load(state, **changes)


@pytest.mark.parametrize("cameras", [0, 2])
def test_another_number_of_cameras_is_refused(state, cameras):
    with pytest.raises(CheckpointError, match="sie_embed"):
        load(state, num_cameras=cameras)


def test_a_single_view_needs_no_labels_of_views(images, state):
    assert torch.equal(load(state, num_views=1)(images, LABELS), load(state)(images, LABELS))


def test_another_program_is_refused_by_name():
    with pytest.raises(CheckpointError, match="LA-Transformer, not of TransReID"):
        load(la_transformer_state(la_transformer()))
    with pytest.raises(CheckpointError, match="no known program"):
        load({"conv1.weight": torch.zeros(1)})


@pytest.mark.parametrize("content", [{}, None, {"base.cls_token": 3}])
def test_what_is_no_state_dict_is_refused(content):
    with pytest.raises(CheckpointError, match="state dict"):
        load(content)
