"""TransReID's network: outputs, branches, what may be pruned, its odd small variant."""

from __future__ import annotations

import json

import pytest
import torch
from torch.nn import functional as F

from amg_plugin.checkpoint import load_model, save_checkpoint
from amg_plugin.errors import ConfigError, InputError, PlanError
from amg_plugin.models import complexity
from amg_plugin.models.build import build_network
from amg_plugin.models.reid import ReIDModel
from amg_plugin.models.spec import ModelSpec
from amg_plugin.models.transreid import TransReID
from amg_plugin.models.vit import build_backbone
from amg_plugin.pruning import apply_plan, current_plan
from amg_plugin.pruning.cut import prunable_blocks

TINY = {"depth": 3, "embed_dim": 16, "num_heads": 2}
FULL = {"side_information": {"cameras": 3}, "jigsaw": {}, "loss": "triplet", "neck_feat": "before"}


def spec_of(**options):
    return ModelSpec("vit_tiny_patch16_224", (64, 32), 5, stride=12, overrides=TINY, **options)


def network(**options):
    torch.manual_seed(0)
    return build_network(spec_of(**options))


@pytest.fixture
def images():
    return torch.randn(4, 3, 64, 32, generator=torch.Generator().manual_seed(0))


CAMERAS = torch.tensor([0, 1, 2, 1])


def test_training_gives_five_logits_and_five_embeddings(images):
    logits, features = network(**FULL).train()(images, CAMERAS)
    assert [tuple(value.shape) for value in logits] == [(4, 5)] * 5
    assert [tuple(value.shape) for value in features] == [(4, 16)] * 5


def test_softmax_training_gives_the_logits_alone(images):
    assert len(network(**{**FULL, "loss": "softmax"}).train()(images)) == 5


def test_evaluation_joins_the_global_feature_and_the_local_ones_divided_by_their_number(images):
    model = network(**FULL).eval()
    whole, *local = model.branch_features(images, CAMERAS)
    assert torch.allclose(model(images, CAMERAS), torch.cat([whole, *(part / 4 for part in local)], 1))
    assert model.feature_dim == 80


def test_features_after_the_necks_pass_each_their_own(images):
    model = network(**{**FULL, "neck_feat": "after"})
    for _ in range(3):
        model.train()(images, CAMERAS)
    model.eval()
    features = model.branch_features(images, CAMERAS)
    necks = [model.bottleneck, *model.local_bottlenecks]
    whole, *local = (neck(part) for neck, part in zip(necks, features, strict=True))
    assert torch.allclose(model(images, CAMERAS), torch.cat([whole, *(part / 4 for part in local)], 1))


def test_logits_do_not_depend_on_the_mode_of_the_call(images):
    model = network(**FULL).eval()
    assert torch.equal(model.logits(images, CAMERAS)[2], model.training_outputs(images, CAMERAS)[0][2])


def test_cameras_change_the_features_and_only_known_ones(images):
    model = network(**FULL).eval()
    plain = model(images)
    assert not torch.allclose(model(images, CAMERAS), plain, atol=1e-4)
    assert torch.allclose(model(images, torch.full((4,), 9)), plain, atol=1e-6)


def test_without_the_jigsaw_module_outputs_are_single_tensors(images):
    model = network(side_information={"cameras": 3}, loss="triplet")
    logits, features = model.train()(images, CAMERAS)
    assert (logits.shape, features.shape) == ((4, 5), (4, 16))
    assert model.eval()(images, CAMERAS).shape == (4, 16)


def test_without_side_information_it_computes_what_the_plain_network_does(images):
    model, plain = TransReID(spec_of()).eval(), ReIDModel(spec_of()).eval()
    plain.load_state_dict(model.state_dict())
    assert torch.allclose(model(images), plain(images), atol=1e-6)


def test_the_local_branch_follows_weights_loaded_into_the_backbone():
    model = network(**FULL)
    with torch.no_grad():
        model.backbone.blocks[-1].mlp.fc1.weight.fill_(0.5)
    model.backbone_loaded()
    assert (model.jigsaw.block.mlp.fc1.weight == 0.5).all()
    model.jigsaw.block.mlp.fc1.weight.data.zero_()
    assert (model.backbone.blocks[-1].mlp.fc1.weight == 0.5).all()


def test_the_last_block_is_pruned_only_without_the_jigsaw_module():
    assert prunable_blocks(network(**FULL)) == [0, 1]
    assert prunable_blocks(network(side_information={"cameras": 3})) == [0, 1, 2]


def test_a_pruned_network_survives_a_checkpoint(images, tmp_path):
    model = network(**FULL).eval()
    plan = current_plan(model).narrow(heads=[[1], [0, 1], [0, 1]], tokens=[[0, 3, 4], [1, 2], range(10)])
    apply_plan(model, plan)
    save_checkpoint(tmp_path / "model.pth", model)
    loaded = load_model(tmp_path / "model.pth")
    assert current_plan(loaded) == plan
    assert torch.equal(loaded(images, CAMERAS), model(images, CAMERAS))


def test_the_description_is_plain_data():
    spec = spec_of(**FULL, attention_scale=0.1, layer_norm_eps=1e-5)
    assert ModelSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_the_local_branch_counts_as_work_and_classifiers_do_not():
    plain, full = (complexity.count(network(**options).eval(), 64, 32) for options in ({}, FULL))
    assert full["macs"] > plain["macs"]
    block = sum(value.numel() for value in network(**FULL).jigsaw.parameters())
    assert full["params"] - plain["params"] == block + 3 * 16 + 4 * 16  # vectors of cameras, scales of necks


def test_part_classifiers_exclude_the_jigsaw_module():
    with pytest.raises(ConfigError, match="cannot be joined"):
        spec_of(head="parts", jigsaw={})


class TestTransReIDSmall:
    """768 wide, 8 blocks, 8 heads of 96, hidden width 2304, no qkv bias, scale 768^-0.5."""

    def test_its_shape(self):
        with torch.device("meta"):
            vit = build_backbone("transreid_small", image_size=(256, 128))
        block = vit.blocks[0]
        assert (len(vit.blocks), vit.embed_dim) == (8, 768)
        assert (block.attn.num_heads, block.attn.head_dim, block.attn.qkv.bias) == (8, 96, None)
        assert block.mlp.fc1.out_features == 2304
        assert block.attn.scale == pytest.approx(768**-0.5)
        assert block.norm1.eps == vit.norm.eps == 1e-6

    @pytest.mark.parametrize("kept", [None, [0, 2, 3]], ids=["dense", "pruned tokens"])
    @pytest.mark.parametrize("fused", [True, False], ids=["fused", "explicit"])
    def test_its_attention_scale_counts_on_every_path(self, kept, fused):
        torch.manual_seed(0)
        vit = build_backbone("transreid_small", image_size=(64, 32), overrides=TINY)
        attention = vit.blocks[0].attn
        vit.blocks[0].keep_tokens(kept, 9, "kv")
        attention.fused_attn = fused
        x = 20 * torch.randn(2, 9, 16)
        query, key, value = attention.qkv(x).reshape(2, 9, 3, 2, 8).permute(2, 0, 3, 1, 4)
        if kept:
            key, value = key[:, :, kept], value[:, :, kept]
        weights = (query @ key.transpose(-2, -1) * 768**-0.5).softmax(-1)
        expected = attention.proj((weights @ value).transpose(1, 2).reshape(2, 9, 16))
        assert torch.allclose(attention(x), expected, atol=1e-5)
        assert not torch.allclose(F.softmax(query @ key.transpose(-2, -1) * 8**-0.5, -1), weights, atol=1e-3)

    def test_it_has_no_pretrained_weights(self):
        with pytest.raises(InputError, match="no weights"):
            build_backbone("transreid_small", image_size=(64, 32), pretrained=True)


def test_deit_small_is_known_by_transreids_name():
    with torch.device("meta"):
        vit = build_backbone("deit_small", image_size=(256, 128), stride=12)
    assert (vit.embed_dim, len(vit.blocks), vit.blocks[0].attn.num_heads) == (384, 12, 6)


def test_layer_norms_take_the_given_eps():
    vit = build_backbone("vit_tiny_patch16_224", image_size=(64, 32), overrides=TINY, layer_norm_eps=1e-3)
    assert {module.eps for module in vit.modules() if isinstance(module, torch.nn.LayerNorm)} == {1e-3}


def test_strides_may_differ_in_both_directions():
    vit = build_backbone("vit_tiny_patch16_224", image_size=(64, 32), overrides=TINY, stride=(12, 8))
    assert vit.patch_embed.grid_size == (5, 3)
    assert vit(torch.zeros(1, 3, 64, 32)).shape == (1, 16)


def test_a_plan_that_prunes_the_block_of_the_jigsaw_module_is_refused():
    model = build_network(spec_of(jigsaw={"parts": 2}))
    plan = current_plan(model)
    last = plan.depth - 1
    for less in (
        plan.narrow(heads=[[0] if block == last else range(count) for block, count in enumerate(plan.num_heads)]),
        plan.narrow(tokens=[[0] if block == last else range(plan.num_patches) for block in range(plan.depth)]),
    ):
        with pytest.raises(PlanError, match=f"prunes block {last}, which is never pruned"):
            apply_plan(model, less)
    assert current_plan(model) == plan
