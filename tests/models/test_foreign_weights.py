"""Weights that people of re-ID use, in the forms in which they are published; every file is made here."""

from __future__ import annotations

import argparse
from pathlib import PosixPath

import pytest
import timm
import torch
from timm.layers import resample_abs_pos_embed

from amg_plugin.checkpoint import build_start, save_checkpoint
from amg_plugin.errors import CheckpointError, InputError, UnsupportedModelError
from amg_plugin.models.build import build_network
from amg_plugin.models.spec import ModelSpec
from amg_plugin.models.vit import build_backbone
from amg_plugin.models.weights import load_backbone_weights, read_state_dict

TINY = {"depth": 2, "embed_dim": 16, "num_heads": 2}
SIZE = (64, 32)  # a grid of 4x2


def source(arch="vit_tiny_patch16_224", size=SIZE, **options):
    """A state dict under timm's names, with weights that differ from any other."""
    torch.manual_seed(1)
    model = timm.create_model(arch, img_size=size, num_classes=0, **{**TINY, **options})
    return {name: torch.randn_like(value) for name, value in model.state_dict().items()}


def target(arch="vit_tiny_patch16_224", size=SIZE, **options):
    torch.manual_seed(2)
    return build_backbone(arch, image_size=size, overrides={**TINY, **options.pop("overrides", {})}, **options)


def written(path, content):
    torch.save(content, path / "w.pth")
    return path / "w.pth"


def agree(model, state):
    return all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def dino(state):
    """A training file of DINO or iBOT: student and teacher behind prefixes, heads, arguments and an optimiser."""
    teacher = {f"backbone.{name}": value for name, value in state.items()}
    teacher |= {"backbone.masked_embed": torch.ones(1, 16), "head.mlp.0.weight": torch.ones(3, 16)}
    return {
        "student": {f"module.{name}": torch.zeros_like(value) for name, value in teacher.items()},
        "teacher": teacher,
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]},
        "args": argparse.Namespace(arch="vit_small", patch_size=16, crops=(0.4, 1.0)),
        "epoch": 100,
    }


FORMS = {
    "dino and ibot": dino,
    "deepspeed": lambda state: {"module": state},
    "i-jepa": lambda state: {
        "encoder": {},
        "predictor": {"module.x": torch.ones(1)},
        "target_encoder": {f"module.{name}": value for name, value in state.items()},
    },
    "ema": lambda state: {"ema": state, "epoch": 3},
    "torch.compile": lambda state: {f"_orig_mod.{name}": value for name, value in state.items()},
    "compiled in ddp": lambda state: {"model": {f"module._orig_mod.{name}": value for name, value in state.items()}},
}


@pytest.mark.parametrize("form", FORMS)
def test_published_forms_are_understood(tmp_path, form):
    state, model = source(), target()
    load_backbone_weights(model, written(tmp_path, FORMS[form](state)))
    assert agree(model, state)


def test_what_is_beside_the_backbone_is_named(tmp_path, caplog):
    caplog.set_level("INFO")
    load_backbone_weights(target(), written(tmp_path, dino(source())))
    assert "1 tensors of" in caplog.text and "head.mlp.0.weight" in caplog.text


def test_arguments_that_hold_other_classes_are_refused_by_class(tmp_path):
    content = dino(source())
    content["args"].output_dir = PosixPath("somewhere")
    with pytest.raises(CheckpointError, match=r"names 'pathlib"):
        read_state_dict(written(tmp_path, content))


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_arguments_cannot_hide_tensors_that_the_file_does_not_hold(tmp_path, legacy):
    content = {"teacher": source(), "args": argparse.Namespace(big=torch.zeros(1).expand(10**6))}
    torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=not legacy)
    assert set(read_state_dict(tmp_path / "w.pth")) == set(source())


def clip(state, prefix):
    """OpenAI's names of a vision transformer."""
    found = {}
    for name, value in state.items():
        for ours, theirs in (
            ("patch_embed.proj", "conv1"), ("norm_pre", "ln_pre"), ("blocks.", "transformer.resblocks."),
            ("norm1", "ln_1"), ("norm2", "ln_2"), ("attn.qkv.", "attn.in_proj_"), ("attn.proj", "attn.out_proj"),
            ("mlp.fc1", "mlp.c_fc"), ("mlp.fc2", "mlp.c_proj"),
        ):  # fmt: skip
            name = name.replace(ours, theirs)
        name = name.replace("norm.", "ln_post.") if name.startswith("norm.") else name
        if name in ("pos_embed", "cls_token"):
            name = {"pos_embed": "positional_embedding", "cls_token": "class_embedding"}[name]
            value = value[0] if name == "positional_embedding" else value[0, 0]
        found[prefix + name] = value
    return found | {prefix + "proj": torch.ones(16, 8), "text_projection": torch.ones(4, 8)}


@pytest.mark.parametrize("prefix", ["image_encoder.", "module.image_encoder.", "visual."])
def test_clips_names_fill_a_vit_with_a_norm_in_front(tmp_path, prefix):
    arch = "vit_base_patch16_clip_quickgelu_224"
    state, model = source(arch), target(arch)
    load_backbone_weights(model, written(tmp_path, clip(state, prefix)))
    assert agree(model, state)


def dinov3(bias):
    """The names in which DINOv3 is published."""
    state = source("vit_small_patch16_dinov3_qkvb", embed_dim=384, num_heads=6)
    found = {}
    for name, value in state.items():
        name = name.replace("reg_token", "storage_tokens").replace("gamma_", "ls")
        name = f"{name}.gamma" if name.endswith(("ls1", "ls2")) else name
        if name.endswith("q_bias"):
            layers = [value, torch.zeros_like(value), state[name.replace("q_bias", "v_bias")]]
            found[name.replace("q_bias", "qkv.bias")] = torch.cat(layers) * bias
        elif not name.endswith("v_bias"):
            found[name] = value
    return found | {"rope_embed.periods": torch.ones(16), "mask_token": torch.ones(1, 384)}


WIDE = {"embed_dim": 384, "num_heads": 6}


@pytest.mark.parametrize(("bias", "arch"), [(0, "vit_small_patch16_dinov3"), (1, "vit_small_patch16_dinov3_qkvb")])
def test_dinov3_fills_the_network_that_the_refusal_of_a_plain_vit_names(tmp_path, capsys, bias, arch):
    state = dinov3(bias)
    path = written(tmp_path, state)
    with pytest.raises(InputError, match=rf"rotary positions.*set amg.arch to {arch}\."):
        load_backbone_weights(target("vit_small_patch16_224", overrides=WIDE), path)
    model = target(arch, overrides=WIDE)
    load_backbone_weights(model, path)
    assert torch.equal(model.reg_token, state["storage_tokens"])
    assert torch.equal(model.blocks[1].gamma_2, state["blocks.1.ls2.gamma"])
    assert capsys.readouterr().out == ""


def test_biases_of_dinov3_are_not_dropped_in_silence(tmp_path):
    with pytest.raises(InputError, match=r"biases of queries and values.*vit_small_patch16_dinov3_qkvb"):
        load_backbone_weights(target("vit_small_patch16_dinov3", overrides=WIDE), written(tmp_path, dinov3(1)))


def test_timms_own_eva02_fills_its_network_and_no_other(tmp_path):
    arch, size = "eva02_base_patch14_224", (56, 28)
    state, model = source(arch, size), target(arch, size)
    path = written(tmp_path, state)
    load_backbone_weights(model, path)
    assert agree(model, state)
    with pytest.raises(InputError, match="eva02_"):
        load_backbone_weights(target("vit_small_patch14_dinov2", size), path)


REFUSED = {
    "solider": (
        lambda state: {"backbone.stages.0.blocks.0.attn.w_msa.qkv.weight": torch.ones(1)},
        UnsupportedModelError,
        "Swin Transformer.*SOLIDER",
    ),
    "swin": (lambda state: {"layers.0.blocks.0.attn.qkv.weight": torch.ones(1)}, UnsupportedModelError, "Swin"),
    "ics": (
        lambda state: {**state, "patch_embed.conv.0.weight": torch.ones(8, 3, 7, 7)},
        UnsupportedModelError,
        r"convolutional stem \('patch_embed.conv.0.weight'\)",
    ),
    "stem in the projection": (
        lambda state: {**state, "patch_embed.proj.weight": torch.ones(16, 64, 8, 8)},
        UnsupportedModelError,
        "convolutional stem",
    ),
    "clip": (lambda state: clip(source("vit_base_patch16_clip_224"), "visual."), InputError, "norm in front.*clip"),
    "parts": (lambda state: {**state, "part_token1": torch.ones(1, 1, 16)}, InputError, r"1 unknown \(part_token1\)"),
}


@pytest.mark.parametrize("form", REFUSED)
def test_other_networks_are_refused_by_name(tmp_path, form):
    change, error, message = REFUSED[form]
    with pytest.raises(error, match=message):
        load_backbone_weights(target(), written(tmp_path, change(source())))


@pytest.mark.parametrize(
    ("size", "stride"), [((64, 64), 0), ((64, 32), 12), ((128, 64), 0)], ids=["square", "overlapping", "as it is"]
)
def test_upright_grids_are_deduced_and_said(tmp_path, caplog, size, stride):
    caplog.set_level("INFO")
    state, model = source(size=(128, 64)), target(size=size, stride=stride)
    load_backbone_weights(model, written(tmp_path, state))
    expected = resample_abs_pos_embed(state["pos_embed"], list(model.patch_embed.grid_size), [8, 4], 1)
    assert torch.equal(model.pos_embed, expected)
    assert ("8x4 patches (amg.weights_grid)" in caplog.text) == (size != (128, 64))


def test_any_grid_can_be_given(tmp_path):
    state = source(size=(48, 80))
    path = written(tmp_path, state)
    spec = ModelSpec("vit_tiny_patch16_224", SIZE, 5, overrides=TINY)
    model = build_network(spec, weights=path, weights_grid=(3, 5)).backbone
    assert torch.equal(model.pos_embed, resample_abs_pos_embed(state["pos_embed"], [4, 2], [3, 5], 1))
    with pytest.raises(InputError, match=r"amg.weights_grid \[4, 4\] is impossible.*15 patches"):
        build_network(spec, weights=path, weights_grid=(4, 4))


def test_a_grid_for_what_has_none_is_refused(tmp_path):
    spec = ModelSpec("vit_small_patch16_dinov3", SIZE, 5, overrides=TINY)
    path = written(tmp_path, source(spec.arch))
    with pytest.raises(InputError, match=r"amg.weights_grid is given, but"):
        build_network(spec, weights=path, weights_grid=(4, 2))
    save_checkpoint(tmp_path / "own.pth", build_network(spec, weights=path))
    with pytest.raises(CheckpointError, match=r"amg.weights_grid is not for checkpoints"):
        build_start(spec, weights=tmp_path / "own.pth", weights_grid=(4, 2))
