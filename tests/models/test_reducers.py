from dataclasses import replace

import pytest
import torch
from naive_reducers import naive_drop, naive_features, naive_merge

from amg_plugin.checkpoint import load_model, save_checkpoint
from amg_plugin.errors import CheckpointError, ConfigError
from amg_plugin.models import complexity
from amg_plugin.models.build import build_network
from amg_plugin.models.reducers import TokenReducer, class_attention, drop, match, merge, proportional_bias
from amg_plugin.models.solve import TOLERANCE, with_reducer
from amg_plugin.models.spec import JigsawSpec, ModelSpec, ReducerSpec
from amg_plugin.pruning import AttentionMapRecorder
from amg_plugin.registries import REDUCERS, register_reducer

HEIGHT, WIDTH = 48, 32  # 24 patches of 8
TOKENS = {"tome": (19, 15, 12, 10), "evit": (24, 16, 16, 7)}


def spec_of(method=None, **changes):
    overrides = {"depth": 4, "embed_dim": 24, "num_heads": 3, "patch_size": 8}
    reducer = ReducerSpec(method, TOKENS[method]) if method else None
    values = {"arch": "vit_tiny_patch16_224", "image_size": (HEIGHT, WIDTH), "num_classes": 5, "overrides": overrides}
    return ModelSpec(**{**values, "reducer": reducer, **changes})


def network(spec, seed=0):
    torch.manual_seed(seed)
    model = build_network(spec)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)  # far from the start, where attention is flat
    return model.double().eval()


@pytest.fixture
def images():
    return torch.randn(5, 3, HEIGHT, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("prefix", [1, 2, 5])
@pytest.mark.parametrize("merges", [1, 4, 6])
@pytest.mark.parametrize("count", [12, 13])
def test_merging_equals_the_naive_one_image_by_image(prefix, merges, count):
    generator = torch.Generator().manual_seed(merges)
    tokens, keys = (torch.randn(4, prefix + count, width, generator=generator) for width in (6, 3))
    sizes = torch.randint(1, 5, (4, prefix + count), generator=generator).float()
    merged, merged_sizes = merge(tokens, sizes, match(keys, merges, prefix))
    for row in range(4):
        expected, expected_sizes = naive_merge(tokens[row], sizes[row].tolist(), keys[row], merges, prefix)
        torch.testing.assert_close(merged[row], expected)
        assert merged_sizes[row].tolist() == expected_sizes


def test_merging_keeps_the_weighted_sum_and_the_prefix():
    tokens, sizes = torch.randn(3, 11, 4), torch.rand(3, 11) + 0.5
    merged, merged_sizes = merge(tokens, sizes, match(torch.randn(3, 11, 2), 4, 1))
    torch.testing.assert_close((merged * merged_sizes[..., None]).sum(1), (tokens * sizes[..., None]).sum(1))
    torch.testing.assert_close(merged[:, 0], tokens[:, 0])
    torch.testing.assert_close(merged_sizes[:, 0], sizes[:, 0])


def test_equal_tokens_merge_first():
    tokens = torch.randn(1, 9, 8)
    tokens[0, 6] = tokens[0, 3]  # first half: 2 4 6 8, second half: 1 3 5 7
    matching = match(tokens, 1, 1)
    assert matching.source.tolist() == [[6]]
    assert matching.second[matching.target].tolist() == [[3]]


def test_proportional_attention_equals_repeated_tokens():
    query, keys, values = torch.randn(1, 1, 2, 4), torch.randn(1, 1, 3, 4), torch.randn(1, 1, 3, 4)
    repeats = torch.tensor([1, 3, 2])
    weighed = (query @ keys.transpose(2, 3) + proportional_bias(repeats[None].float())).softmax(-1) @ values
    repeated = [part.repeat_interleave(repeats, dim=2) for part in (keys, values)]
    torch.testing.assert_close(weighed, (query @ repeated[0].transpose(2, 3)).softmax(-1) @ repeated[1])


@pytest.mark.parametrize("prefix", [1, 3])
@pytest.mark.parametrize("keep", [1, 5, 8])
def test_dropping_equals_the_naive_one_image_by_image(prefix, keep):
    tokens, maps = torch.randn(4, prefix + 10, 6), torch.randn(4, 2, prefix + 10, prefix + 10).softmax(-1)
    importance = class_attention(maps, prefix)
    dropped = drop(tokens, importance, keep, prefix)
    assert dropped.shape == (4, prefix + keep + 1, 6)
    for row in range(4):
        torch.testing.assert_close(
            dropped[row], naive_drop(tokens[row], maps[row, :, 0, prefix:].mean(0), keep, prefix)
        )


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("method", TOKENS)
def test_a_network_equals_the_naive_one_image_by_image(method, fused, images):
    model = network(spec_of(method))
    with torch.no_grad():
        expected = torch.stack([naive_features(model, image) for image in images])
        if fused:
            features = model.embed(images)
        else:
            with complexity.explicit_attention(model):
                features = model.embed(images)
    torch.testing.assert_close(features, expected)


@pytest.mark.parametrize("method", TOKENS)
def test_registers_are_protected_and_the_class_token_decides(method):
    overrides = {"depth": 4, "embed_dim": 24, "num_heads": 3, "patch_size": 8, "reg_tokens": 3}
    model = network(spec_of(method, overrides=overrides))
    assert model.backbone.num_prefix_tokens == 4
    image = torch.randn(1, 3, HEIGHT, WIDTH, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(model.embed(image)[0], naive_features(model, image[0]))


@pytest.mark.parametrize("method", TOKENS)
def test_nothing_taken_away_is_the_plain_network(method, images):
    reduced = network(spec_of(method, reducer=ReducerSpec(method, (24, 24, 24, 24))))
    plain = network(spec_of())
    plain.load_state_dict(reduced.state_dict())
    torch.testing.assert_close(reduced(images), plain(images))


@pytest.mark.parametrize("method", TOKENS)
def test_the_choice_depends_on_the_image_alone_and_not_on_its_batch(method, images):
    model = network(spec_of(method))
    with torch.no_grad():
        alone = torch.cat([model(image[None]) for image in images])
        torch.testing.assert_close(model(images), alone)


@pytest.mark.parametrize("method", TOKENS)
def test_training_reaches_every_weight_of_the_backbone(method, images):
    model = network(spec_of(method)).train()
    model(images).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.backbone.parameters())


@pytest.mark.parametrize("method", TOKENS)
def test_training_works_under_autocast(method):
    model = network(spec_of(method)).float().train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(torch.randn(4, 3, HEIGHT, WIDTH))
    assert logits.dtype == torch.float32
    logits.sum().backward()


@pytest.mark.parametrize("method", TOKENS)
def test_a_recorder_sees_the_maps_of_the_tokens_that_are_left(method, images):
    model = network(spec_of(method))
    with AttentionMapRecorder(model) as recorder, torch.no_grad():
        seen = model(images)
    assert [maps.shape[-1] - 1 for maps in recorder.mean()] == model.tokens_per_block
    torch.testing.assert_close(model(images), seen)


@pytest.mark.parametrize("method", TOKENS)
def test_a_checkpoint_brings_the_reducer_back(method, images, tmp_path):
    model = network(spec_of(method)).float()
    save_checkpoint(tmp_path / "model.pth", model)
    loaded = load_model(tmp_path / "model.pth")
    assert loaded.spec == model.spec
    torch.testing.assert_close(loaded(images.float()), model(images.float()))


@pytest.mark.parametrize("saving", [0.1, 0.294])
@pytest.mark.parametrize(
    ("arch", "size", "stride", "overrides"),
    [
        ("vit_tiny_patch16_224", (256, 128), 0, {}),
        ("vit_tiny_patch16_224", (128, 64), 8, {"depth": 5}),
        ("vit_small_patch14_dinov2", (168, 84), 0, {"depth": 6}),
        ("vit_tiny_patch16_224", (96, 96), 12, {"depth": 3, "reg_tokens": 4, "qk_norm": True}),
    ],
)
@pytest.mark.parametrize("method", TOKENS)
def test_the_counted_saving_is_the_target(method, arch, size, stride, overrides, saving):
    spec = ModelSpec(arch=arch, image_size=size, num_classes=3, stride=stride, overrides=overrides)
    reduced = with_reducer(spec, method, saving)
    with torch.device("meta"):
        dense, left = (complexity.count(build_network(one), *size)["macs"] for one in (spec, reduced))
    assert abs(1 - left / dense - saving) <= TOLERANCE
    assert replace(reduced, reducer=None) == spec


def test_merging_is_spread_over_all_blocks_and_dropping_over_three_stages():
    spec = ModelSpec(arch="vit_tiny_patch16_224", image_size=(256, 128), num_classes=3)
    merges = with_reducer(spec, "tome", 0.3).reducer
    steps = [a - b for a, b in zip(merges.entering(128), merges.tokens, strict=True)]
    assert max(steps) - min(steps) <= 1
    drops = with_reducer(spec, "evit", 0.3).reducer
    changed = [b for b, (x, y) in enumerate(zip(drops.entering(128), drops.tokens, strict=True)) if x != y]
    assert changed == [3, 6, 9]


@pytest.mark.parametrize("method", TOKENS)
def test_a_target_out_of_reach_is_refused_with_the_nearest(method):
    with pytest.raises(ConfigError, match=rf"0.9 cannot be met by amg.reducer '{method}'.* nearest is 0\.\d+"):
        with_reducer(spec_of(), method, 0.9)


@pytest.mark.parametrize(
    ("reducer", "message"),
    [
        (ReducerSpec("tome", (24, 24, 24)), "tokens for 3 blocks, the model has 4"),
        (ReducerSpec("tome", (11, 11, 11, 11)), "cannot leave 11 of 24 tokens in block 0; allowed: 12 to 24"),
        (ReducerSpec("evit", (24, 1, 1, 1)), "cannot leave 1 of 24 tokens in block 1; allowed: 2 to 24"),
        (ReducerSpec("evit", (20, 21, 20, 20)), "cannot leave 21 of 20"),
    ],
)
def test_an_impossible_reducer_is_refused(reducer, message):
    with pytest.raises(ConfigError, match=message):
        build_network(spec_of(reducer=reducer))


def test_an_unknown_reducer_is_refused():
    with pytest.raises(ConfigError, match="Unknown token reducer 'topk'; allowed are tome, evit"):
        ReducerSpec("topk", (1,))


@pytest.mark.parametrize("changes", [{"head": "parts"}, {"jigsaw": JigsawSpec()}])
def test_networks_that_need_tokens_in_place_refuse_a_reducer(changes):
    with pytest.raises(ConfigError, match=r"amg\.reducer 'evit' works on a plain ViT only"):
        spec_of("evit", **changes)


def test_a_vit_without_class_token_is_refused():
    spec = spec_of("tome", overrides={"depth": 4, "class_token": False, "global_pool": "avg", "patch_size": 8})
    with pytest.raises(ConfigError, match="needs a ViT with a class token"):
        build_network(spec)


def test_a_damaged_reducer_in_a_checkpoint_is_refused(tmp_path):
    model = network(spec_of("tome")).float()
    data = model.spec.to_dict()
    data["reducer"] = {"method": "tome", "left": [1]}
    with pytest.raises(CheckpointError, match="cannot be read"):
        ModelSpec.from_dict(data)


class KeepFirst(TokenReducer):
    """Keeps the first tokens of a block."""

    def reduce(self, tokens, sizes, keys, attention, leaving, prefix):
        return tokens[:, : prefix + leaving], sizes


def test_a_reducer_of_the_user_meets_a_target_and_travels_in_a_checkpoint(monkeypatch, images, tmp_path):
    monkeypatch.setattr(REDUCERS, "rows", dict(REDUCERS.rows))
    register_reducer("keep_first", KeepFirst)
    spec = with_reducer(spec_of(), "keep_first", 0.3)
    model = network(spec).float()
    with torch.device("meta"):
        dense, left = (complexity.count(build_network(one), HEIGHT, WIDTH)["macs"] for one in (spec_of(), spec))
    assert 1 - left / dense == pytest.approx(0.3, abs=TOLERANCE)
    save_checkpoint(tmp_path / "model.pth", model)
    torch.testing.assert_close(load_model(tmp_path / "model.pth")(images.float()), model(images.float()))
