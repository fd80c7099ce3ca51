"""What the ``amg`` node builds, at full size but without memory."""

import pytest
import torch

from amg_plugin.config.active import using_amg_config
from amg_plugin.config.load import load_config
from amg_plugin.errors import InputError
from amg_plugin.models.build import build_network
from amg_plugin.models.spec import spec_from_config
from amg_plugin.plugin.registry import vit_amg


def spec(*words, num_classes=5, default_arch="vit_base_patch16_224"):
    cfg = load_config(None, ["model.name", "vit_amg", *words])
    return spec_from_config(cfg.amg, num_classes=num_classes, loss=cfg.loss.name, default_arch=default_arch)


def built(*words):
    with torch.device("meta"):
        return build_network(spec(*words))


def test_transreids_small_is_built_by_its_name():
    model = built(
        "amg.arch", "transreid_small", "amg.stride", "11", "amg.sie.enabled", "True", "amg.jpm.enabled", "True"
    )
    vit = model.backbone
    assert (len(vit.blocks), vit.embed_dim, vit.patch_embed.grid_size) == (8, 768, (22, 11))
    for block in [*vit.blocks, model.jigsaw.block]:
        attention = block.attn
        assert (attention.num_heads, attention.head_dim, attention.qkv.bias) == (8, 96, None)
        assert attention.scale == pytest.approx(768**-0.5)
        assert attention.fused_attn
        assert block.mlp.fc1.out_features == 2304
        assert block.norm1.eps == 1e-6


def test_transreids_deit_small_is_built_by_its_name():
    vit = built("amg.arch", "deit_small").backbone
    assert (len(vit.blocks), vit.embed_dim, vit.blocks[0].attn.num_heads) == (12, 384, 6)


def test_the_published_name_can_be_spelled_out():
    words = ["amg.override.depth", "8", "amg.override.num_heads", "8", "amg.override.mlp_ratio", "3.0"]
    words += ["amg.override.qkv_bias", "False", "amg.override.attention_scale", str(768**-0.5)]
    spelled, named = built(*words), built("amg.arch", "transreid_small")
    assert {n: v.shape for n, v in spelled.state_dict().items()} == {n: v.shape for n, v in named.state_dict().items()}
    assert spelled.backbone.blocks[0].attn.scale == pytest.approx(named.backbone.blocks[0].attn.scale)


def test_la_transformer_is_built_by_its_head():
    size = ["data.height", "224", "data.width", "224"]
    model = built("amg.head", "parts", "amg.parts.dropout", "0.25", *size)
    assert (len(model.classifiers), model.feature_dim) == (14, 14 * 768)
    assert (model.classifiers[0].reduce.out_features, model.classifiers[0].dropout.p) == (256, 0.25)


def test_plain_keys_describe_a_plain_network():
    plain = spec()
    assert plain.overrides == {}
    assert plain.attention_scale is plain.side_information is plain.jigsaw is None
    assert plain.head == "bnneck"


def test_keys_of_side_information_and_jigsaw_reach_the_description():
    sie = ["amg.sie.enabled", "True", "amg.sie.cameras", "6", "amg.sie.views", "2", "amg.sie.coefficient", "1.5"]
    jpm = ["amg.jpm.enabled", "True", "amg.jpm.parts", "3", "amg.jpm.shift", "2", "amg.jpm.groups", "4"]
    full = spec(*sie, "amg.sie.unseen", "mean", *jpm)
    side, jigsaw = full.side_information, full.jigsaw
    assert (side.cameras, side.views, side.coefficient, side.unseen) == (6, 2, 1.5, "mean")
    assert (jigsaw.parts, jigsaw.shift, jigsaw.groups) == (3, 2, 4)


@pytest.mark.parametrize(
    "words",
    [["amg.arch", "transreid_small"], ["amg.override.qkv_bias", "False"], ["amg.override.attention_scale", "0.1"]],
)
def test_weights_that_timm_does_not_have_are_not_asked_for(words):
    cfg = load_config(None, ["model.name", "vit_amg", *words])
    with using_amg_config(cfg.amg), pytest.raises(InputError, match=r"timm has no .*model\.pretrained to False"):
        vit_amg(5, pretrained=True)
