"""The re-ID network: torchreid's contract of outputs, and its description as data."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from amg_plugin.errors import CheckpointError, ConfigError
from amg_plugin.models.reid import ReIDModel
from amg_plugin.models.spec import ModelSpec

TINY = {"depth": 2, "embed_dim": 16, "num_heads": 2}


def spec_of(**options):
    return ModelSpec("vit_tiny_patch16_224", (64, 32), 5, overrides=TINY, **options)


@pytest.fixture
def images():
    return torch.randn(3, 3, 64, 32, generator=torch.Generator().manual_seed(0))


def used_model(images, **options):
    """A network whose neck has seen images, so that features before and after it differ."""
    torch.manual_seed(0)
    model = ReIDModel(spec_of(**options)).train()
    for _ in range(20):
        model(images)
    return model


def test_training_gives_logits_for_softmax(images):
    assert ReIDModel(spec_of()).train()(images).shape == (3, 5)


def test_training_gives_logits_and_features_before_the_neck_for_triplet(images):
    model = ReIDModel(spec_of(loss="triplet")).train()
    logits, features = model(images)
    assert logits.shape == (3, 5)
    assert torch.equal(features, model.embed(images))


@pytest.mark.parametrize("loss", ["softmax", "triplet"])
def test_evaluation_gives_features_for_both_losses(images, loss):
    assert ReIDModel(spec_of(loss=loss)).eval()(images).shape == (3, 16)


def test_features_are_taken_before_or_after_the_neck(images):
    before = used_model(images, neck_feat="before").eval()
    after = used_model(images, neck_feat="after").eval()
    after.load_state_dict(before.state_dict())
    assert torch.equal(before(images), before.embed(images))
    assert torch.equal(after(images), after.bottleneck(after.embed(images)))
    assert not torch.allclose(before(images), after(images))


@pytest.mark.parametrize("loss", ["softmax", "triplet"])
def test_logits_can_be_had_in_either_mode(images, loss):
    model = used_model(images, loss=loss).eval()
    logits = model.logits(images)
    assert logits.shape == (3, 5)
    assert torch.equal(logits, model.classifier(model.bottleneck(model.embed(images))))
    model.train()
    output = model(images)
    assert torch.equal(output[0] if loss == "triplet" else output, model.logits(images))


def test_training_outputs_can_be_had_in_eval_mode(images):
    model = used_model(images, loss="triplet").eval()
    logits, features = model.training_outputs(images)
    assert torch.equal(logits, model.logits(images)) and torch.equal(features, model.embed(images))


def test_outputs_are_float32_under_autocast(images):
    model = ReIDModel(spec_of(loss="triplet"))
    with torch.autocast("cpu", torch.bfloat16):
        outputs = [*model.train()(images), model.logits(images), model.eval()(images)]
    assert {output.dtype for output in outputs} == {torch.float32}


def test_every_parameter_takes_part_in_training(images):
    model = ReIDModel(spec_of(loss="triplet")).train()
    logits, features = model(images)
    (logits.square().sum() + features.square().sum()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_keys_under_the_backbone_are_timms():
    model = ReIDModel(spec_of())
    keys = [name for name in model.state_dict() if name.startswith("backbone.")]
    assert keys == [f"backbone.{name}" for name in model.backbone.state_dict()]
    others = {name.split(".")[0] for name in model.state_dict()} - {"backbone"}
    assert others == {"bottleneck", "classifier"}


def test_dataparallel_on_the_cpu_gives_the_same(images):
    model = used_model(images).eval()
    assert torch.equal(nn.DataParallel(model)(images), model(images))


def test_the_description_survives_json():
    spec = spec_of(stride=12, loss="triplet", neck_feat="before", drop_path=0.1)
    assert ModelSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_the_description_builds_the_same_network():
    spec = spec_of(stride=12)
    again = ReIDModel(ModelSpec.from_dict(spec.to_dict()))
    shapes = {name: value.shape for name, value in ReIDModel(spec).state_dict().items()}
    assert {name: value.shape for name, value in again.state_dict().items()} == shapes


@pytest.mark.parametrize(
    "change",
    [
        {"colour": "blue"},
        {"arch": None},
        {"jigsaw": {"pieces": 4}},
        {"side_information": {"cameras": 2, "camera_table": [0, 1]}},
    ],
    ids=["unknown", "missing", "unknown inside", "damaged inside"],
)
def test_a_description_that_cannot_be_read_is_refused(change):
    data = {**spec_of().to_dict(), **change}
    data = {name: value for name, value in data.items() if value is not None}
    with pytest.raises(CheckpointError, match="description"):
        ModelSpec.from_dict(data)


@pytest.mark.parametrize(
    ("option", "message"),
    [({"loss": "center"}, "center.*'softmax', 'triplet'"), ({"neck_feat": "middle"}, "middle.*'before', 'after'")],
    ids=["loss", "neck"],
)
def test_unknown_choices_are_refused(option, message):
    with pytest.raises(ConfigError, match=message):
        spec_of(**option)
