"""The deployed form: the plain network's features, less work."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from networks import KINDS, PRUNINGS, ROTARY, STRUCTURES, build, inputs, relative_error
from torch import nn

from amg_plugin.deploy.fast import fast, has_fast_form
from amg_plugin.deploy.fast.layers import FastLinear, can_pack
from amg_plugin.errors import InputError
from amg_plugin.models import complexity
from amg_plugin.models.build import build_network
from amg_plugin.models.spec import ReducerSpec
from amg_plugin.pruning import apply_plan, current_plan

LIMIT = 1e-5
needs_packing = pytest.mark.skipif(not can_pack(), reason="this torch has no oneDNN")
FORMS = [False, pytest.param(True, marks=needs_packing)]


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


@pytest.mark.parametrize("pack", FORMS)
@pytest.mark.parametrize("pruning", PRUNINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_features_are_those_of_the_plain_network(kind, pruning, pack):
    model = build(kind, pruning)
    form = fast(model, pack=pack)
    for batch in (3, 1):
        arguments = inputs(model, batch)
        expected = model(*arguments)
        assert relative_error(form(*arguments), expected) < LIMIT
    assert form.feature_dim == expected.shape[1]


@pytest.mark.parametrize("pruning", ["heads_block_neurons", "heads_kv", "heads_merge_neurons"])
@pytest.mark.parametrize("structure", STRUCTURES)
def test_features_are_those_of_the_plain_network_in_every_structure_of_timm(structure, pruning):
    model = build(structure, pruning)
    images = inputs(model)[0]
    assert relative_error(fast(model)(images), model(images)) < LIMIT


@pytest.mark.parametrize("pack", FORMS)
@pytest.mark.parametrize("pruning", ["dense", "heads_block_neurons", "heads_kv", "block_with_updates"])
@pytest.mark.parametrize("kind", ROTARY)
def test_rotary_positions_follow_the_tokens(kind, pruning, pack):
    model = build(kind, pruning)
    images = inputs(model)[0]
    assert relative_error(fast(model, pack=pack)(images), model(images)) < LIMIT


@pytest.mark.parametrize("variant", ["block", "kv"])
def test_features_are_the_same_whatever_the_order_in_which_tokens_come_back(variant):
    model = build()
    plan = current_plan(model).with_variant(variant)
    tokens = [[0, 1, 2], [2, 3, 9, 14], list(range(15)), [1, 3, 4]]
    apply_plan(model, plan.narrow(tokens=tokens))
    images = inputs(model)[0]
    assert relative_error(fast(model)(images), model(images)) < LIMIT


@pytest.mark.parametrize("labels", [None, torch.tensor([0, 1, 9])])
def test_missing_and_unseen_camera_labels_do_what_they_do_in_the_plain_network(labels):
    model = build("transreid_cameras", "block")
    images = inputs(model)[0]
    form = fast(model)
    assert form.uses_cameras
    assert relative_error(form(images, labels), model(images, labels)) < LIMIT


def test_the_form_does_not_follow_the_network_and_leaves_it_as_it_was():
    model = build("vit", "heads_block")
    images = inputs(model)[0]
    before, state = model(images), copy.deepcopy(model.state_dict())
    form = fast(model, pack=False)
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name])
        value.zero_()
    assert relative_error(form(images), before) < LIMIT


@pytest.mark.parametrize("kind", ["vit", "transreid_jigsaw", "la_transformer"])
def test_a_network_in_training_stays_in_training(kind):
    model = build(kind, "heads_block")
    arguments = inputs(model)
    expected = model(*arguments)
    form = fast(model.train())
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert relative_error(form(*arguments), expected) < LIMIT


@pytest.mark.parametrize("pruning", PRUNINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_everything_in_it_lies_where_the_network_lies(kind, pruning):
    form = fast(build(kind, pruning).to("meta"))
    assert {tensor.device.type for tensor in (*form.parameters(), *form.buffers())} == {"meta"}


@pytest.mark.parametrize("kind", KINDS)
def test_networks_in_half_precision_run_in_either_form(kind):
    model = build(kind, "heads_block")
    images, *labels = inputs(model)
    expected, model = model(images, *labels), model.bfloat16()
    for network in (model, fast(model)):
        features = network(images.bfloat16(), *labels)
        assert features.dtype == torch.float32
        assert torch.nn.functional.cosine_similarity(features, expected).min() > 0.99


def test_it_evaluates_only():
    form = fast(build())
    assert not form.training
    assert form.eval() is form
    with pytest.raises(RuntimeError, match="only evaluates"):
        form.train()


@pytest.mark.parametrize("kind", ["vit", "transreid_jigsaw", "la_transformer"])
@pytest.mark.parametrize("pruning", ["heads_block", "heads_kv"])
def test_no_more_is_computed_than_in_the_plain_network(kind, pruning):
    model = build(kind, pruning)
    size = model.spec.image_size
    assert complexity.count(fast(model, pack=False), *size)["macs"] <= complexity.count(model, *size)["macs"]


def test_the_last_block_works_for_the_class_token_alone():
    model = build()
    form = fast(model, pack=False)
    rows = {}
    for name, module in form.named_modules():
        if isinstance(module, FastLinear):
            module.register_forward_hook(lambda m, args, out, name=name: rows.__setitem__(name, len(args[0])))
    form(inputs(model, 1)[0])
    last = {name.rsplit(".")[-1]: count for name, count in rows.items() if name.startswith("blocks.3.")}
    assert last == {"query": 1, "key_value": 16, "proj": 1, "fc1": 1, "fc2": 1}
    assert {count for name, count in rows.items() if name.startswith("blocks.0.")} == {16}


@pytest.mark.parametrize("kind", ["vit", "transreid_jigsaw", "la_transformer"])
def test_it_compiles_and_exports_in_one_graph_for_any_batch(kind):
    model = build(kind, "heads_block")
    form = fast(model, pack=False)
    images = inputs(model)[0]
    compiled = torch.compile(form, fullgraph=True, backend="aot_eager")
    assert relative_error(compiled(images), model(images)) < LIMIT
    batch = {"images": {0: torch.export.Dim("batch", min=1, max=64)}}
    program = torch.export.export(form, (images,), dynamic_shapes=batch).module()
    more = torch.randn(7, *images.shape[1:])
    assert relative_error(program(more), model(more)) < LIMIT


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions_run_unpacked(dtype):
    model = build("vit", "heads_block").to(dtype)
    images = inputs(model)[0].to(dtype)
    form = fast(model)
    assert not form.packed
    if dtype == torch.float64:
        assert relative_error(form(images), model(images)) < 1e-12
    else:
        assert form(images).dtype == torch.float32
    with pytest.raises(InputError, match=str(dtype).removeprefix("torch.")):
        fast(model, pack=True)


def test_images_of_another_size_are_refused():
    form = fast(build())
    with pytest.raises(ValueError, match="built for"):
        form(torch.zeros(1, 3, 32, 32))


def test_wrapped_networks_are_taken_and_foreign_ones_refused():
    model = build()
    images = inputs(model)[0]
    assert relative_error(fast(nn.DataParallel(model))(images), model(images)) < LIMIT
    with pytest.raises(InputError, match="Linear has no fast form"):
        fast(nn.Linear(1, 1))


def test_token_reducers_which_choose_anew_for_each_image_have_no_fast_form():
    spec = replace(build().spec, reducer=ReducerSpec("tome", (12, 10, 8, 6)))
    model = build_network(spec)
    assert not has_fast_form(model)
    with pytest.raises(InputError, match="no fast form"):
        fast(model)
