"""The backbone: which models are taken, any image size, overlapping patches, features."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from timm.layers import GlobalResponseNormMlp, PatchEmbed
from torch import nn

from amg_plugin.errors import ConfigError, InputError, UnsupportedModelError
from amg_plugin.models import vit as module
from amg_plugin.models.vit import backbone_of, build_backbone, make_prunable, pooled_features

TINY = {"depth": 2, "embed_dim": 16, "num_heads": 2}
PLAIN = {
    "vit_tiny_patch16_224": 16,
    "vit_base_patch16_224": 16,
    "vit_large_patch16_224": 16,
    "deit_small_patch16_224": 16,
    "deit_tiny_distilled_patch16_224": 16,
    "deit3_small_patch16_224": 16,
    "vit_small_patch14_dinov2": 14,
    "vit_small_patch14_reg4_dinov2": 14,
    "vit_base_patch16_gap_224": 16,
    "vit_base_patch16_clip_224": 16,
    "vit_small_patch16_dinov3": 16,
    "eva02_base_patch14_224": 14,
}


def tiny(arch="vit_tiny_patch16_224", **options):
    options.setdefault("image_size", (64, 32))
    return build_backbone(arch, **{"overrides": TINY, **options}).eval()


@pytest.mark.parametrize("arch", PLAIN)
def test_plain_models_compute_what_timm_computes_under_timms_keys(arch):
    size = (4 * PLAIN[arch], 3 * PLAIN[arch])
    plain = timm.create_model(arch, img_size=size, num_classes=0, **TINY).eval()
    ours = build_backbone(arch, image_size=size, overrides=TINY).eval()
    assert list(ours.state_dict()) == list(plain.state_dict())
    ours.load_state_dict(plain.state_dict())
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        tokens = plain.forward_features(images)
        assert torch.equal(ours.forward_features(images), tokens)
        # timm takes the mean of the patches in some networks that have a class token.
        mean = plain.global_pool == "avg" and plain.cls_token is not None
        expected = plain.fc_norm(tokens[:, 0]) if mean else plain(images)
        assert torch.equal(pooled_features(ours, tokens), expected)


def test_converting_is_idempotent_and_keeps_the_tensors():
    plain = timm.create_model("vit_tiny_patch16_224", img_size=(64, 32), num_classes=0, **TINY)
    tensors = {name: value.data_ptr() for name, value in plain.state_dict().items()}
    once = make_prunable(plain)
    classes = [type(child) for child in once.modules()]
    assert make_prunable(once) is plain
    assert [type(child) for child in once.modules()] == classes
    assert {name: value.data_ptr() for name, value in once.state_dict().items()} == tensors


REFUSED = [
    ("eva02_enormous_patch14_clip_224", TINY, "EvaBlockPostNorm"),
    ("vit_base_patch16_sapiens2", {**TINY, "num_kv_heads": 1}, "share keys and values"),
    ("vit_small_patch16_rope_mixed_224", TINY, "rope_type 'mixed'"),
    ("vit_small_patch16_dinov3", {**TINY, "rope_shift_coords": 0.1}, "moved at random"),
    ("beit_base_patch16_224", {"depth": 1}, "Beit"),
    ("test_vit_relpos", {}, "VisionTransformerRelPos"),
    ("swin_tiny_patch4_window7_224", {}, "SwinTransformer"),
    ("vit_small_patch16_18x2_224", TINY, "ParallelThingsBlock"),
    ("vit_tiny_r_s16_p8_224", TINY, "HybridEmbed"),
    ("vit_tiny_patch16_224", {**TINY, "attn_layer": "diff"}, "DiffAttention"),
    ("naflexvit_base_patch16_gap", {"depth": 1}, "NaFlexVit"),
    ("resnet18", {}, "ResNet"),
]


@pytest.mark.parametrize(
    ("arch", "overrides", "name"), REFUSED, ids=[entry[2].strip() + "-" + entry[0] for entry in REFUSED]
)
def test_models_that_are_not_plain_are_refused_by_class_name(arch, overrides, name):
    with pytest.raises(UnsupportedModelError, match=name) as error:
        build_backbone(arch, image_size=(224, 224), overrides=overrides)
    assert "allowed" in str(error.value)


BROKEN_PARTS = [
    ("mlp", GlobalResponseNormMlp(16, 64), "mlp of block 1 is a GlobalResponseNormMlp; allowed: Mlp, GluMlp, SwiGLU"),
    ("norm1", nn.BatchNorm1d(9), "norm1 of block 1 is a BatchNorm1d; allowed: LayerNorm, LayerNormFp32, RmsNorm"),
    ("attn.norm", nn.RMSNorm(16), "attn.norm of block 1 is a RMSNorm; allowed: Identity, LayerNorm"),
    ("mlp.norm", nn.RMSNorm(64), "mlp.norm of block 1 is a RMSNorm; allowed: Identity, LayerNorm"),
    ("ls1", nn.Linear(16, 16), "ls1 of block 1 is a Linear; allowed: Identity, LayerScale"),
]


@pytest.mark.parametrize(("name", "part", "message"), BROKEN_PARTS, ids=[entry[0] for entry in BROKEN_PARTS])
def test_a_block_with_a_part_that_cannot_be_taken_apart_is_refused_by_part_and_class(name, part, message):
    model = timm.create_model("vit_tiny_patch16_224", img_size=(64, 32), num_classes=0, **TINY)
    model.blocks[1].set_submodule(name, part)
    with pytest.raises(UnsupportedModelError, match=message):
        make_prunable(model)


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        ({"norm_layer": "simplenorm"}, UnsupportedModelError, "SimpleNorm"),
        ({"patch_drop_rate": 0.1}, UnsupportedModelError, "dropped at random"),
        ({"class_token": False, "global_pool": ""}, UnsupportedModelError, "pool its patches"),
        ({"in_chans": 1}, ConfigError, "in_chans 1 is impossible"),
        ({"img_size": 32}, ConfigError, "img_size is impossible; data.height and data.width decide"),
        ({"num_classes": -7}, ConfigError, "num_classes -7 is impossible"),
    ],
)
def test_overrides_that_make_another_kind_of_network_are_refused_at_the_start(overrides, error, message):
    with pytest.raises(error, match=message):
        tiny(overrides={**TINY, **overrides})


def test_a_subclass_of_a_plain_model_is_refused():
    class Changed(timm.models.VisionTransformer):
        pass

    with pytest.raises(UnsupportedModelError, match="Changed"):
        make_prunable(Changed(img_size=32, **TINY))


def test_an_unknown_name_is_refused_and_near_ones_are_named():
    with pytest.raises(ConfigError, match=r"vit_tiny_patch16_225.*vit_tiny_patch16_224"):
        tiny("vit_tiny_patch16_225")


@pytest.mark.parametrize("size", [(64, 32), (16, 16), (128, 48)])
def test_any_multiple_of_the_patch_works(size):
    model = tiny(image_size=size)
    assert model.patch_embed.num_patches == size[0] // 16 * (size[1] // 16)
    assert model.pos_embed.shape[1] == model.patch_embed.num_patches + 1
    assert model(torch.zeros(1, 3, *size)).shape == (1, 16)


@pytest.mark.parametrize(
    ("size", "stride", "grid"),
    [
        ((256, 128), 12, (21, 10)),  # TransReID on Market-1501: nothing left of 240, 4 left of 112
        ((256, 128), 11, (22, 11)),  # on Occluded-Duke: 9 and 2 left
        ((64, 32), 16, (4, 2)),
        ((40, 20), 8, (4, 1)),
        ((16, 16), 5, (1, 1)),
    ],
)
def test_overlapping_patches_drop_the_remainder_at_the_border(size, stride, grid):
    model = tiny(image_size=size, stride=stride)
    assert tuple(model.patch_embed.grid_size) == grid
    assert model.patch_embed.num_patches == grid[0] * grid[1]
    assert model.pos_embed.shape[1] == grid[0] * grid[1] + 1
    images = torch.randn(1, 3, *size)
    tokens = model.patch_embed(images)
    used = (stride * (grid[0] - 1) + 16, stride * (grid[1] - 1) + 16)
    images[:, :, used[0] :], images[:, :, :, used[1] :] = 9.0, 9.0
    assert torch.equal(model.patch_embed(images), tokens)


def test_each_overlapping_patch_is_the_projection_of_its_pixels():
    model = tiny(image_size=(40, 28), stride=12)
    images = torch.randn(1, 3, 40, 28)
    tokens, proj = model.patch_embed(images), model.patch_embed.proj
    for row in range(3):
        for column in range(2):
            pixels = images[0, :, 12 * row : 12 * row + 16, 12 * column : 12 * column + 16]
            expected = (proj.weight * pixels).sum((1, 2, 3)) + proj.bias
            assert torch.allclose(tokens[0, 2 * row + column], expected, atol=1e-5)


@pytest.mark.parametrize("pad", [False, True])
def test_networks_for_images_of_several_sizes_overlap_their_patches_alike(pad):
    plain, flexible = (
        tiny(image_size=(40, 28), stride=12, overrides={**TINY, "dynamic_img_size": several, "dynamic_img_pad": pad})
        for several in (False, True)
    )
    flexible.load_state_dict(plain.state_dict())
    images = torch.randn(1, 3, 40, 28)
    assert torch.equal(flexible(images), plain(images))


def test_a_stride_of_the_patch_size_is_the_plain_patch_embedding():
    plain, strided = tiny(), tiny(stride=16)
    strided.load_state_dict(plain.state_dict())
    images = torch.randn(1, 3, 64, 32)
    assert type(plain.patch_embed) is PatchEmbed
    assert torch.equal(strided(images), plain(images))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": (8, 32)}, "^data.height 8 is smaller than a patch of 16 pixels"),
        ({"image_size": (64, 8), "stride": 4}, "^data.width 8 is smaller than a patch"),
        ({"image_size": (40, 32)}, "^data.height 40 is not a multiple.*use 32 or 48, or overlapping"),
        ({"image_size": (64, 40), "stride": 16}, "^data.width 40 is not a multiple"),
        ({"stride": 20}, "^amg.stride 20 is impossible; allowed: 1 to 16"),
        ({"stride": -3}, "^amg.stride -3 is impossible"),
        ({"overrides": {**TINY, "embed_dim": 15}}, "timm cannot build.*divisible"),
    ],
    ids=["small", "small-overlap", "multiple", "multiple-stride", "stride", "negative", "width"],
)
@pytest.mark.parametrize("pretrained", [False, True])
def test_impossible_sizes_are_refused_before_weights_are_fetched(options, message, pretrained):
    with pytest.raises(ConfigError, match=message):
        tiny(**options, pretrained=pretrained)


def test_missing_weights_say_what_to_do(monkeypatch):
    create = timm.create_model

    def offline(arch, pretrained=False, **options):
        if pretrained:
            raise OSError("We could not connect\nand much more")
        return create(arch, **options)

    monkeypatch.setattr(module.timm, "create_model", offline)
    with pytest.raises(InputError, match=r"We could not connect.*amg.weights.*model.pretrained") as error:
        tiny(pretrained=True)
    assert "\n" not in str(error.value)


def test_drop_path_is_passed_on():
    assert tiny(drop_path=0.3).blocks[-1].drop_path1.drop_prob == pytest.approx(0.3)


def test_the_feature_is_the_class_token():
    for arch in ("vit_tiny_patch16_224", "vit_small_patch16_224"):
        model = tiny(arch)
        tokens = torch.randn(2, 9, 16)
        assert torch.equal(pooled_features(model, tokens), tokens[:, 0])


def test_the_feature_of_a_model_with_registers_is_its_class_token():
    model = tiny("vit_small_patch14_reg4_dinov2", image_size=(28, 28))
    tokens = torch.randn(2, 9, 16)
    assert torch.equal(pooled_features(model, tokens), tokens[:, 0])


def test_the_feature_of_a_distilled_model_is_the_mean_of_both_tokens():
    tokens = torch.randn(2, 10, 16)
    model = tiny("deit_tiny_distilled_patch16_224")
    assert torch.allclose(pooled_features(model, tokens), (tokens[:, 0] + tokens[:, 1]) / 2)


def test_without_a_class_token_timms_own_pooling_counts():
    tokens = torch.randn(2, 8, 16)
    assert torch.allclose(pooled_features(tiny("vit_base_patch16_gap_224"), tokens), tokens.mean(1))


def test_the_class_token_is_taken_although_the_name_stands_for_another_pooling():
    model = tiny("beit3_base_patch16_224")  # timm would average the patches
    tokens = torch.randn(2, 9, 16)
    assert torch.equal(pooled_features(model, tokens), model.fc_norm(tokens[:, 0]))


def test_the_backbone_is_found_inside_networks_and_wrappers():
    model = tiny()
    network = nn.Module()
    network.backbone = model
    for outer in (model, network, nn.DataParallel(model), nn.DataParallel(network)):
        assert backbone_of(outer) is model
    with pytest.raises(UnsupportedModelError, match="Linear"):
        backbone_of(nn.Linear(1, 1))


def test_copies_are_independent():
    model = tiny()
    twin = copy.deepcopy(model)
    twin.blocks[0].keep_tokens([0, 1], 9, "block")
    assert model.blocks[0].kept_tokens is None
