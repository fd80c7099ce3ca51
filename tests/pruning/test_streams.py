"""Cuts with their repair: the network comes closer to what it was, and is left alone where it cannot be repaired."""

from __future__ import annotations

import copy

import pytest
import torch
from masked_reference import MaskedViT, build_tiny, images_for, random_choice, relative_error
from naive_merging import random_merges
from networks import build

from amg_plugin.errors import InputError, PlanError, RunError
from amg_plugin.models.build import build_network
from amg_plugin.models.spec import ModelSpec
from amg_plugin.models.vit import pooled_features
from amg_plugin.pruning import apply_plan, current_plan
from amg_plugin.pruning.streams import Repair, prune_and_repair
from amg_plugin.pruning.surgery import prunable_blocks

KINDS, WAYS = ("mean", "least_squares"), ("blocks", "one")
BATCHES = 4


def features_of(model, images):
    with torch.no_grad():
        return pooled_features(model, model.forward_features(images))


def calibration_of(model, count=BATCHES, batch=40):
    return [images_for(model, batch, seed) for seed in range(count)]


def cut(model, target):
    """A plan of ``model`` without half of its heads, or without some of its tokens."""
    plan = current_plan(model)
    if target == "heads":
        return plan.narrow(heads=random_choice(plan.heads_per_block, 0.5, 0))
    if target == "neurons":
        return plan.narrow(neurons=random_choice(plan.neurons_per_block, 0.5, 2))
    plan = plan.with_variant(target)
    return plan.narrow(tokens=random_choice(plan.tokens_per_block, 0.6, 1))


def prepared(case, target):
    """A tiny network, in the variant that the cut is for, and the plan of the cut."""
    model = build_tiny(case)
    plan = cut(model, target)
    return apply_plan(model, current_plan(model).with_variant(plan.variant)), plan


def repaired(model, plan, kind="least_squares", way="blocks", images=None):
    changed = copy.deepcopy(model)
    distances = prune_and_repair(
        changed, plan, Repair(kind, 160, way), images or calibration_of(model), lambda x: features_of(changed, x)
    )
    return changed, distances


@pytest.mark.parametrize("target", ["heads", "kv", "block", "neurons"])
@pytest.mark.parametrize(
    ("case", "way"),
    [
        ("vit", "one"),
        *((case, "blocks") for case in ("vit", "distilled", "registers", "qk_norm", "scale_norm", "no_class_token")),
    ],
)
def test_a_repaired_network_is_closer_to_what_it_was(case, target, way):
    model, plan = prepared(case, target)
    _, mean = repaired(model, plan, "mean", way)
    _, both = repaired(model, plan, "least_squares", way)
    assert both["as_cut"] == pytest.approx(mean["as_cut"])
    assert mean["repaired"] < mean["as_cut"]
    assert both["repaired"] < both["as_cut"]
    if target in ("heads", "neurons"):
        assert both["repaired"] < mean["repaired"]


def test_only_what_the_cut_touched_is_fitted_anew():
    model = build_tiny()
    dense = current_plan(model)
    heads = [range(4), [0, 2], range(4)]
    tokens = [range(15), range(15), range(9)]
    changed, _ = repaired(model, dense.narrow(heads=heads, tokens=tokens))
    plain = apply_plan(copy.deepcopy(model), dense.narrow(heads=heads, tokens=tokens))
    expected = plain.state_dict()
    other = {name for name, value in changed.state_dict().items() if not torch.equal(value, expected.get(name, value))}
    fitted = {"blocks.1.attn.proj.weight", "blocks.1.attn.proj.bias"}
    assert other == fitted | {"blocks.2.attn.proj.bias", "blocks.2.mlp.fc2.bias"}
    assert set(changed.state_dict()) - set(expected) == {"blocks.2.token_update"}


def watched(model, images, block, *names):
    """What goes into modules of a block (``proj``, ``fc2``) and out of its attention and MLP."""
    seen = {}
    owner = model.blocks[block]
    modules = {"proj": owner.attn.proj, "fc2": owner.mlp.fc2}
    hooks = [
        modules[name].register_forward_hook(
            lambda module, args, out, name=name: seen.__setitem__(name, (args[0].double(), out.double()))
        )
        for name in names
    ]
    features_of(model, images)
    for hook in hooks:
        hook.remove()
    return [seen[name] for name in names]


@pytest.mark.parametrize("case", ["vit", "scale_norm", "layer_scale"])
@pytest.mark.parametrize(("target", "name"), [("heads", "proj"), ("kv", "proj"), ("neurons", "fc2")])
def test_the_first_block_is_the_direct_solve_over_all_its_tokens(case, target, name):
    # What enters the first block is the same before and after the cut, so both ways do the same there.
    def layer(network):
        return network.blocks[0].attn.proj if name == "proj" else network.blocks[0].mlp.fc2

    model, plan = prepared(case, target)
    images, as_cut = torch.cat(calibration_of(model)), apply_plan(copy.deepcopy(model), plan)
    wanted = watched(model, images, 0, name)[0][1].flatten(0, 1)
    inputs = watched(as_cut, images, 0, name)[0][0].flatten(0, 1)
    weight = layer(as_cut).weight.double()
    centred = inputs - inputs.mean(0)
    size = inputs.shape[1]
    penalty = (1e-2 * centred.square().mean() * len(inputs)).sqrt()
    rows = torch.cat((centred, penalty * torch.eye(size)))
    values = torch.cat((wanted - wanted.mean(0), penalty * weight.T))
    expected = torch.linalg.lstsq(rows, values).solution.T
    for way in WAYS:
        fitted = layer(repaired(model, plan, way=way)[0])
        assert torch.allclose(fitted.weight.double(), expected, atol=1e-4)
        assert torch.allclose(fitted.bias.double(), wanted.mean(0) - expected @ inputs.mean(0), atol=1e-4)


@pytest.mark.parametrize("target", ["heads", "kv"])
def test_no_block_is_further_from_its_target_than_unrepaired(target):
    """In one pass the inputs of a block do not depend on other blocks, so that its error can be looked at alone."""
    model, plan = prepared("vit", target)
    images = torch.cat(calibration_of(model))
    as_cut = apply_plan(copy.deepcopy(model), plan)
    networks = [repaired(model, plan, kind, "one")[0] for kind in ("least_squares", "mean")] + [as_cut]
    for block in range(len(model.blocks)):
        taken = []
        hook = model.blocks[block].register_forward_pre_hook(lambda module, args, taken=taken: taken.append(args[0]))
        wanted = watched(model, images, block, "proj")[0][1]
        hook.remove()
        errors = []
        for network in networks:
            attention, norm = network.blocks[block].attn, network.blocks[block].norm1
            with torch.no_grad():
                errors.append((attention(norm(taken[0])) - wanted).square().mean().item())
        assert errors[0] <= errors[1] * (1 + 1e-5) and errors[1] <= errors[2] * (1 + 1e-5)


def constants_of(model):
    """What every block adds to each position that passes around it, ``[N, D]`` with the prefix."""
    width, length = model.embed_dim, model.num_prefix_tokens + model.patch_embed.num_patches
    constants = [torch.zeros(length, width) for _ in model.blocks]
    for values, block in zip(constants, model.blocks, strict=True):
        if block.token_update is not None:
            values[block.carried_tokens] = block.token_update
    return constants


def in_and_out(model, images):
    """What goes into every block and comes out of it."""
    seen = []
    hooks = [
        block.register_forward_hook(lambda module, args, out: seen.append((args[0], out))) for block in model.blocks
    ]
    features_of(model, images)
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("case", ["vit", "registers", "distilled", "layer_scale"])
def test_carried_tokens_get_the_constants_of_the_masked_network(case):
    model, plan = prepared(case, "block")
    changed, _ = repaired(model, plan)
    images = images_for(model, seed=9)
    kept = [list(heads) for heads in plan.heads], [list(tokens) for tokens in plan.tokens]
    tokens, features = MaskedViT(changed)(images, *kept, "block", constants=constants_of(changed))
    assert all(constants.abs().sum() > 0 for constants in constants_of(changed))
    assert relative_error(features_of(changed, images), features) < 1e-5
    assert relative_error(in_and_out(changed, images)[-1][1], tokens) < 1e-5


@pytest.mark.parametrize("way", WAYS)
def test_a_constant_is_the_mean_of_what_a_token_lacks(way):
    model, plan = prepared("vit", "block")
    changed, _ = repaired(model, plan, "mean", way)
    images = torch.cat(calibration_of(model))
    pairs = zip(in_and_out(model, images), in_and_out(changed, images), strict=True)
    for block, ((entered, left), (enters, leaves)) in enumerate(pairs):
        carried = changed.blocks[block].carried_tokens
        expected = (left - (enters if way == "blocks" else entered)).mean(0)[carried]
        assert torch.allclose(changed.blocks[block].token_update, expected, atol=1e-5)
        if way == "blocks":
            assert torch.allclose(leaves.mean(0)[carried], left.mean(0)[carried], atol=1e-4)


@pytest.mark.parametrize("way", WAYS)
def test_constants_of_tokens_that_went_earlier_stay(way):
    model, plan = prepared("vit", "block")
    first, _ = repaired(model, plan, way=way)
    narrower = plan.with_updates(range(3)).narrow(tokens=[list(range(len(kept)))[::2] for kept in plan.tokens])
    second, distances = repaired(first, narrower, way=way)
    assert distances["repaired"] < distances["as_cut"]
    for block, (before, after) in enumerate(zip(constants_of(first), constants_of(second), strict=True)):
        carried = first.blocks[block].carried_tokens
        assert torch.equal(after[carried], before[carried])
        new = set(second.blocks[block].carried_tokens.tolist()) - set(carried.tolist())
        assert all(after[position].abs().sum() > 0 for position in new)


def test_constants_are_buffers_and_follow_the_network():
    model, plan = prepared("vit", "block")
    changed, _ = repaired(model, plan)
    assert not any("update" in name for name, _ in changed.named_parameters())
    assert changed.double().blocks[0].token_update.dtype == torch.float64
    assert current_plan(changed).updates == (0, 1, 2)


def test_a_plan_without_the_constants_of_a_network_is_refused():
    model, plan = prepared("vit", "block")
    changed, _ = repaired(model, plan)
    with pytest.raises(PlanError, match="gives up the constant updates of block 0"):
        apply_plan(changed, plan)


def test_further_pruning_without_repair_adds_no_constants():
    model, plan = prepared("vit", "block")
    changed, _ = repaired(model, plan)
    before = constants_of(changed)
    apply_plan(changed, current_plan(changed).narrow(tokens=[[0], [0], [0]]))
    for old, new in zip(before, constants_of(changed), strict=True):
        assert torch.equal(old, new)


def network(**fields):
    overrides = {"patch_size": 8, "depth": 3, "embed_dim": 32, "num_heads": 4}
    torch.manual_seed(0)
    return build_network(ModelSpec("vit_tiny_patch16_224", (32, 16), 5, overrides=overrides, **fields)).eval()


@pytest.mark.parametrize(
    ("fields", "updates"),
    [({}, (0, 1)), ({"head": "parts", "parts": 2}, (0, 1, 2)), ({"jigsaw": {}}, (0, 1))],
    ids=["class token", "parts", "jigsaw"],
)
def test_a_last_block_whose_patches_nobody_reads_has_no_constants(fields, updates):
    model = network(**fields)
    last = range(8) if "jigsaw" in fields else range(5)
    plan = current_plan(model).narrow(tokens=[range(5), range(5), last])
    prune_and_repair(model, plan, Repair("mean"), [torch.randn(16, 3, 32, 16)])
    assert current_plan(model).updates == updates


@pytest.mark.parametrize(
    "fields", [{}, {"head": "parts", "parts": 2}, {"jigsaw": {}}], ids=["class", "parts", "jigsaw"]
)
def test_heads_and_neurons_of_a_merged_network_are_repaired(fields):
    model = network(**fields)
    merged = random_merges(current_plan(model).with_variant("merge"), [1] if "jigsaw" in fields else [1, 2], 0.6)
    apply_plan(model, merged)
    free, images = range(2 if "jigsaw" in fields else 3), [torch.randn(64, 3, 32, 16)]
    heads = [[0, 2] if block in free else range(4) for block in range(3)]
    neurons = [range(0, 128, 2) if block in free else range(128) for block in range(3)]
    distances = prune_and_repair(model, current_plan(model).narrow(heads=heads, neurons=neurons), Repair(), images)
    assert distances["repaired"] < distances["as_cut"]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("fields", [{}, {"head": "parts", "parts": 2}, {"jigsaw": {}}], ids=["class", "la", "jigsaw"])
def test_merged_tokens_come_close_to_the_means_of_what_they_stand_for(fields, way):
    blocks = [1] if "jigsaw" in fields else [1, 2]
    model, images = network(**fields), [torch.randn(64, 3, 32, 16)]
    apply_plan(model, current_plan(model).with_variant("merge"))
    distances = prune_and_repair(model, random_merges(current_plan(model), blocks, 0.5), Repair(way=way), images)
    assert distances["repaired"] < distances["as_cut"]


@pytest.mark.parametrize("way", WAYS)
def test_in_a_last_block_only_what_is_read_behind_it_counts(way):
    model = network()
    images = torch.randn(48, 3, 32, 16)
    wanted = watched(model.backbone, images, 2, "proj")[0][1]
    prune_and_repair(
        model, current_plan(model).narrow(heads=[range(4), range(4), [1]]), Repair("mean", way=way), [images]
    )
    off = (watched(model.backbone, images, 2, "proj")[0][1] - wanted).mean(0).abs().amax(1)
    assert 10 * off[0] < off[1:].min()


@pytest.mark.parametrize(("images", "said"), [(20, True), (48, False)])
def test_all_tokens_of_a_last_block_count_where_those_that_are_read_are_too_few(images, said, caplog):
    model = network()
    caplog.set_level("INFO")
    prune_and_repair(
        model, current_plan(model).narrow(heads=[range(3)] * 3), Repair(), [torch.randn(images, 3, 32, 16)]
    )
    assert ("proj of block 2 has more columns than there are tokens that are read behind it" in caplog.text) == said


@pytest.mark.parametrize("way", ["blocks", "one"])
@pytest.mark.parametrize("kind", ["vit", "la_transformer", "transreid_jigsaw_before", "mean_of_patches"])
def test_merged_tokens_are_brought_to_the_means_of_those_before(kind, way):
    model = build(kind)
    images = [torch.randn(160, 3, *model.spec.image_size)]
    plan = random_merges(current_plan(model).with_variant("merge"), prunable_blocks(model)[1:], 0.7)
    last, everything = max(prunable_blocks(model)), range(plan.num_patches)
    tokens, groups = list(plan.tokens), list(plan.groups)
    tokens[last], groups[last] = tokens[last][:1], [everything]
    again = plan.merge(tokens, groups)
    for one in (plan, again):
        distances = prune_and_repair(model, one, Repair(way=way), images)
        assert distances["repaired"] < distances["as_cut"]


def test_the_fit_after_merging_equals_a_direct_solve():
    model, images = network().double(), torch.randn(64, 3, 32, 16, dtype=torch.float64)
    plan = random_merges(current_plan(model).with_variant("merge"), [2], 0.5)
    last, seen = model.backbone.blocks[2], {}
    hooks = [last.norm2.register_forward_pre_hook(lambda module, given: seen.update(behind=given[0]))]
    with torch.no_grad():
        model(images)
        wanted = seen["behind"][:, 0]
        apply_plan(cut := copy.deepcopy(model), plan)
        attention = cut.backbone.blocks[2].attn
        hooks.append(attention.proj.register_forward_pre_hook(lambda module, given: seen.update(z=given[0])))
        cut(images)
        z = torch.cat([seen["z"][:, 0], torch.ones(64, 1, dtype=torch.float64)], dim=1)
        missing = wanted - (seen["behind"][:, 0] - attention.proj(seen["z"])[:, 0])
        solution = torch.linalg.lstsq(z, missing).solution
    for hook in hooks:
        hook.remove()
    prune_and_repair(model, plan, Repair(ridge=0.0), [images])
    found = model.backbone.blocks[2].attn.proj
    assert torch.allclose(found.weight, solution[:-1].T, atol=1e-6)
    assert torch.allclose(found.bias, solution[-1], atol=1e-6)


def test_side_information_reaches_the_statistics():
    model = network(side_information={"cameras": 2}, jigsaw={})
    plan = current_plan(model).narrow(heads=[[0, 1], [2], range(4)], tokens=[range(5), range(5), range(8)])
    batches = [(torch.randn(16, 3, 32, 16), torch.arange(16) % 2) for _ in range(3)]
    distances = prune_and_repair(model, plan, Repair(), batches, lambda batch: model.embed(*batch))
    assert distances["repaired"] < distances["as_cut"]


def test_modes_are_those_from_before_and_parameters_are_trained_as_before():
    model = network().train()
    model.bottleneck.eval()
    model.backbone.blocks[0].attn.proj.weight.requires_grad_(False)
    plan = current_plan(model).narrow(heads=[[0, 1], [2], [3]])
    statistics = model.bottleneck.running_mean.clone()
    prune_and_repair(model, plan, Repair(), [torch.randn(48, 3, 32, 16)])
    assert model.training and model.backbone.training and not model.bottleneck.training
    assert not model.backbone.blocks[0].attn.proj.weight.requires_grad
    assert model.backbone.blocks[1].attn.proj.weight.requires_grad
    assert torch.equal(model.bottleneck.running_mean, statistics)


def test_images_are_taken_in_whole_batches_until_there_are_enough():
    model = network()
    taken = []

    def batches():
        for _ in range(9):
            taken.append(8)
            yield torch.randn(8, 3, 32, 16)

    prune_and_repair(model, current_plan(model).narrow(heads=[[0]] * 3), Repair("mean", images=20), batches())
    assert len(taken) == 3


def state_of(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("trouble", ["few tokens", "not finite"])
def test_a_network_that_cannot_be_repaired_stays_as_it_is(trouble):
    model = network()
    images = torch.randn(2 if trouble == "few tokens" else 48, 3, 32, 16)
    if trouble == "not finite":
        images[0] = float("nan")
    before, plan = state_of(model), current_plan(model)
    error, text = {
        "few tokens": (InputError, "24 columns of proj of block 0 needs as many calibration tokens, but there are 18"),
        "not finite": (RunError, "not finite"),
    }[trouble]
    with pytest.raises(error, match=text):
        prune_and_repair(model, plan.narrow(heads=[[0, 1, 2]] * 3), Repair(), [images])
    assert current_plan(model) == plan
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("targets", "images", "text"),
    [
        (["heads"], 3, "32 columns of proj of block 0 needs as many calibration tokens, but there are 27"),
        (["neurons"], 14, "128 columns of fc2 of block 0 needs as many calibration tokens, but there are 126"),
        (["heads", "tokens"], 3, "32 columns of proj of block 0"),
    ],
)
def test_too_few_images_are_refused_before_any_work(targets, images, text):
    Repair().check(network(), targets, images + 1)
    with pytest.raises(InputError, match=text):
        Repair().check(network(), targets, images)


@pytest.mark.parametrize(("words", "text"), [(["means"], "kind of a repair is 'means'"), (["mean", 8, "two"], "'two'")])
def test_another_word_for_a_repair_is_refused(words, text):
    with pytest.raises(InputError, match=text):
        Repair(*words)


def test_a_mean_needs_no_number_of_images():
    Repair().check(network(), ["tokens"], 1)  # constants and biases
    Repair("mean").check(network(), ["heads", "tokens", "neurons"], 1)
    Repair("none").check(network(), ["heads", "tokens", "neurons"], 0)


def test_a_mean_without_a_bias_to_go_into_is_refused_and_least_squares_does_without():
    model = network()
    for block in model.backbone.blocks:
        block.attn.proj.bias = None
    with pytest.raises(InputError, match="goes into biases, but proj of block 0 has none"):
        Repair("mean").check(model, ["heads"], 100)
    plan = current_plan(model).narrow(heads=[[0, 1], [1, 2], [2, 3]])
    distances = prune_and_repair(model, plan, Repair(), [torch.randn(48, 3, 32, 16)])
    assert distances["repaired"] < distances["as_cut"]


def test_the_log_says_how_far_the_features_are_off(caplog):
    model = network()
    caplog.set_level("INFO")
    distances = prune_and_repair(
        model, current_plan(model).narrow(heads=[[0]] * 3), Repair(), [torch.randn(48, 3, 32, 16)]
    )
    assert f"{distances['as_cut']:.4g} as cut, {distances['repaired']:.4g} repaired" in caplog.text
