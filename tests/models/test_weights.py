"""Local weight files: what is fitted, what is refused."""

from __future__ import annotations

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed

from amg_plugin.errors import InputError
from amg_plugin.models.reid import ReIDModel
from amg_plugin.models.spec import ModelSpec
from amg_plugin.models.vit import build_backbone
from amg_plugin.models.weights import load_backbone_weights
from amg_plugin.pruning import apply_plan, current_plan

TINY = {"depth": 2, "embed_dim": 16, "num_heads": 2}


def source(size=(64, 32), arch="vit_tiny_patch16_224", num_classes=7, **options):
    torch.manual_seed(1)
    return timm.create_model(arch, img_size=size, num_classes=num_classes, **{**TINY, **options})


def target(size=(64, 32), arch="vit_tiny_patch16_224", **options):
    torch.manual_seed(2)
    return build_backbone(arch, image_size=size, overrides=TINY, **options)


def agree(model, state, leave_out=()):
    return all(torch.equal(value, state[name]) for name, value in model.state_dict().items() if name not in leave_out)


def write_pth(path, state):
    torch.save(state, path)
    return path


def write_safetensors(path, state):
    save_file({name: value.contiguous() for name, value in state.items()}, path)
    return path


@pytest.mark.parametrize(("name", "write"), [("w.pth", write_pth), ("w.safetensors", write_safetensors)])
def test_both_formats_are_read(tmp_path, name, write):
    state, model = source().state_dict(), target()
    load_backbone_weights(model, write(tmp_path / name, state))
    assert agree(model, state)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"state_dict": state},
        lambda state: {"model": state, "epoch": 3},
        lambda state: {"state_dict": {f"module.{name}": value for name, value in state.items()}},
        lambda state: {f"backbone.{name}": value for name, value in state.items()} | {"neck.weight": torch.ones(1)},
        lambda state: {f"module.base.{name}": value for name, value in state.items()},
    ],
    ids=["state_dict", "model", "data_parallel", "backbone", "base"],
)
def test_wrapped_and_prefixed_weights_are_found(tmp_path, wrap):
    state, model = source().state_dict(), target()
    load_backbone_weights(model, write_pth(tmp_path / "w.pth", wrap(state)))
    assert agree(model, state)


@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_files_load_as_float32(tmp_path, precision):
    state = {name: value.to(precision) for name, value in source().state_dict().items()}
    model = target()
    load_backbone_weights(model, write_pth(tmp_path / "w.pth", state))
    assert {value.dtype for value in model.state_dict().values()} == {torch.float32}
    assert agree(model, {name: value.float() for name, value in state.items()})


def test_the_position_embedding_of_another_grid_is_fitted_by_timm(tmp_path):
    state, model = source((224, 224)).state_dict(), target((64, 32))
    load_backbone_weights(model, write_pth(tmp_path / "w.pth", state))
    expected = resample_abs_pos_embed(state["pos_embed"], new_size=[4, 2], old_size=[14, 14], num_prefix_tokens=1)
    assert torch.allclose(model.pos_embed, expected)
    assert agree(model, state, leave_out=("pos_embed",))


def test_the_position_embedding_is_fitted_to_overlapping_patches(tmp_path):
    state, model = source((224, 224)).state_dict(), target((64, 32), stride=12)
    load_backbone_weights(model, write_pth(tmp_path / "w.pth", state))
    expected = resample_abs_pos_embed(state["pos_embed"], new_size=[5, 2], old_size=[14, 14], num_prefix_tokens=1)
    assert torch.allclose(model.pos_embed, expected)


def test_registers_keep_their_place_beside_a_fitted_position_embedding(tmp_path):
    arch = "vit_small_patch14_reg4_dinov2"
    state, model = source((112, 112), arch).state_dict(), target((56, 28), arch)
    load_backbone_weights(model, write_pth(tmp_path / "w.pth", state))
    assert model.pos_embed.shape == (1, 8, 16)
    assert torch.equal(model.reg_token, state["reg_token"])


def test_patches_of_another_size_are_fitted_by_timm(tmp_path):
    state, model = source((224, 224)).state_dict(), target((56, 28), "vit_small_patch14_dinov2")
    state = {name: value for name, value in state.items() if not name.startswith("head.")}
    state |= {f"blocks.{block}.ls{n}.gamma": torch.ones(16) for block in (0, 1) for n in (1, 2)}
    load_backbone_weights(model, write_pth(tmp_path / "w.pth", state))
    assert model.patch_embed.proj.weight.shape[-2:] == (14, 14)


def test_published_names_of_layer_scale_are_understood(tmp_path):
    arch = "deit3_small_patch16_224"
    state, model = source(arch=arch).state_dict(), target(arch=arch)
    renamed = {name.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"): v for name, v in state.items()}
    assert renamed.keys() != state.keys()
    load_backbone_weights(model, write_pth(tmp_path / "w.pth", renamed))
    assert agree(model, state)


def test_the_networks_own_weights_can_start_another_one(tmp_path):
    network = ReIDModel(ModelSpec("vit_tiny_patch16_224", (64, 32), 5, overrides=TINY))
    model = target()
    load_backbone_weights(model, write_pth(tmp_path / "w.pth", network.state_dict()))
    assert agree(model, network.backbone.state_dict())


def damaged(change):
    state = source().state_dict()
    change(state)
    return state


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (lambda: damaged(lambda s: s.pop("norm.bias")), r"1 missing \(norm\.bias\)"),
        (lambda: damaged(lambda s: s.update(surprise=torch.ones(1))), r"1 unknown \(surprise\)"),
        (lambda: source(embed_dim=32, num_heads=4).state_dict(), "of another shape"),
        (lambda: source(depth=3).state_dict(), "unknown"),
        (lambda: source(arch="vit_small_patch14_reg4_dinov2", size=(28, 28)).state_dict(), "does not fit"),
        (lambda: source((128, 48)).state_dict(), "does not fit"),
        (lambda: source((80, 32)).state_dict(), "does not fit.*amg.weights_grid"),
    ],
    ids=["missing", "unknown", "width", "depth", "arch", "grid", "grid-not-square"],
)
def test_weights_that_do_not_fit_are_refused_and_the_model_stays(tmp_path, state, message):
    model = target()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(InputError, match=message):
        load_backbone_weights(model, write_pth(tmp_path / "w.pth", state()))
    assert agree(model, before)


def test_weights_of_a_pruned_model_are_refused(tmp_path):
    pruned = target()
    apply_plan(pruned, current_plan(pruned).narrow(heads=[[0], [0, 1]]))
    path = write_pth(tmp_path / "w.pth", pruned.state_dict())
    with pytest.raises(InputError, match=r"2 of another shape|3 of another shape"):
        load_backbone_weights(target(), path)


@pytest.mark.parametrize(
    ("size", "warns"),
    [((128, 32), True), ((64, 64), False), ((96, 32), False)],
    ids=["as many as a square", "square", "no square"],
)
def test_a_grid_that_the_file_leaves_open_is_warned_of(tmp_path, caplog, size, warns):
    load_backbone_weights(target(size), write_pth(tmp_path / "w.pth", source(size).state_dict()))
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert [("8x2" in text, "4x4" in text, "kept" in text) for text in warnings] == [(True,) * 3] * warns


def test_the_warning_says_what_became_of_the_embedding(tmp_path, caplog):
    state, model = source((224, 224)).state_dict(), target((448, 112))
    load_backbone_weights(model, write_pth(tmp_path / "w.pth", state))
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    kept = torch.equal(model.pos_embed, state["pos_embed"])  # differs among timm's releases
    assert ("28x7 and kept" if kept else "14x14 and refitted to 28x7") in warning
