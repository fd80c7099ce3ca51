"""Distillation on evaluation features: the student's space is pulled to the teacher's."""

from __future__ import annotations

import copy

import pytest
import torch

from amg_plugin.engine.distillation import DistillationHook, feature_loss
from amg_plugin.engine.hooked import HookedEngine
from amg_plugin.engine.hooks import Hook
from amg_plugin.errors import ConfigError
from amg_plugin.models.build import build_network
from amg_plugin.models.spec import JigsawSpec, ModelSpec

NETWORKS = {
    "plain, after the neck": {"neck_feat": "after"},
    "plain, before the neck": {"neck_feat": "before"},
    "jigsaw, after the necks": {"jigsaw": JigsawSpec(), "neck_feat": "after"},
    "jigsaw, before the necks": {"jigsaw": JigsawSpec(), "neck_feat": "before"},
    "parts": {"head": "parts", "parts": 4},
}


def network(name, loss="softmax"):
    torch.manual_seed(0)
    overrides = {"depth": 2, "embed_dim": 16, "num_heads": 2}
    model = build_network(
        ModelSpec("vit_tiny_patch16_224", (64, 64), 3, loss=loss, overrides=overrides, **NETWORKS[name])
    )
    for buffer, value in model.named_buffers():
        if "running" in buffer:
            value.uniform_(0.5, 2.0)  # statistics that make a difference
    return model


def test_equal_features_cost_nothing_and_zeros_cost_one():
    teacher = torch.randn(4, 6)
    assert feature_loss(teacher, teacher) == 0
    assert feature_loss(torch.zeros(4, 6), teacher) == pytest.approx(1)


def test_the_distance_does_not_depend_on_the_scale():
    student, teacher = torch.randn(4, 6), torch.randn(4, 6)
    torch.testing.assert_close(feature_loss(3 * student, 3 * teacher), feature_loss(student, teacher))


def test_the_distance_is_the_hand_computation():
    student, teacher = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[0.0, 0.0], [1.0, 2.0]])
    assert feature_loss(student, teacher) == pytest.approx((1 + 0 + 1 + 0) / (0 + 0 + 1 + 4))


@pytest.mark.parametrize("loss", ["softmax", "triplet"])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_features_shown_in_training_are_those_of_evaluation_by_the_statistics_of_the_batch(name, loss):
    model, seen = network(name, loss), []
    images = torch.randn(4, 3, 64, 64)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            module.momentum = 1.0  # the statistics of the last batch are kept
    model.feature_observer = seen.append
    model.train().training_outputs(images)
    model.feature_observer = None
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            module.running_var.mul_(3 / 4)  # batches are normalised without Bessel's correction, which is kept
    with torch.no_grad():
        torch.testing.assert_close(seen[0], model.eval()(images))
    assert seen[0].shape == (4, model.feature_dim)
    assert seen[0].requires_grad


def test_the_distance_behind_the_neck_does_not_fall_with_the_scale_before_it():
    model, seen = network("plain, after the neck"), []
    images, teacher = torch.randn(4, 3, 64, 64), torch.randn(4, 16)
    model.feature_observer = seen.append
    model.train()
    before = torch.randn(4, 16, requires_grad=True)
    model.branch_features = lambda images: before
    model.training_outputs(images)
    feature_loss(seen[0], teacher).backward()
    along_the_scale = (before.grad * before.detach()).sum().abs()
    assert along_the_scale < 1e-3 * before.grad.norm() * before.norm()  # not zero: the neck adds its epsilon


@pytest.mark.parametrize("name", NETWORKS)
def test_a_teacher_shows_its_features_with_its_logits(name):
    model, seen = network(name).eval(), []
    images = torch.randn(3, 3, 64, 64)
    model.feature_observer = seen.append
    with torch.no_grad():
        model.logits(images)
        torch.testing.assert_close(seen[0], model(images))
    assert len(seen) == 1


class Watch(Hook):
    def __init__(self):
        self.summaries = []

    def after_step(self, engine: HookedEngine, summary):
        self.summaries.append(summary)


def moved(model):
    """A copy with other weights."""
    torch.manual_seed(5)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return other


@pytest.mark.parametrize("loss", ["softmax", "triplet"])
def test_the_distance_is_part_of_every_step(make_engine, run, loss):
    watch = Watch()
    engine = make_engine([watch], loss__name=loss)
    teaching = DistillationHook(0.0, 1.0, moved(engine.model), features=3.0)
    engine.hooks.insert(0, teaching)
    run(engine, 1)
    assert all(summary["loss_d"] == 0 and summary["loss_f"] > 0 for summary in watch.summaries)
    assert engine.model.feature_observer is None


def test_training_brings_the_features_closer(make_engine, run):
    watch = Watch()
    engine = make_engine([watch], loss__name="softmax", train__lr=0.001)
    teacher = moved(engine.model)
    engine.hooks.insert(0, DistillationHook(0.0, 1.0, teacher, features=100.0))
    images = torch.randn(8, 3, 32, 16)
    before = feature_loss(copy.deepcopy(engine.model).eval()(images), teacher.eval()(images))
    run(engine, 6)
    after = feature_loss(engine.model.eval()(images), teacher.eval()(images))
    assert after < 0.7 * before


def test_without_a_weight_there_is_no_such_term(make_engine, run):
    watch = Watch()
    engine = make_engine([watch], epochs=1)
    engine.hooks.insert(0, DistillationHook(1.0, 1.0, moved(engine.model)))
    run(engine, 1)
    assert all("loss_f" not in summary for summary in watch.summaries)


def test_the_configuration_gives_the_weight(make_cfg):
    assert DistillationHook.from_config(make_cfg(amg__distill__features=2.5)).features == 2.5


def teacher_with(model, **changes):
    from dataclasses import replace

    overrides = {**model.spec.overrides, **changes.pop("overrides", {})}
    return build_network(replace(model.spec, overrides=overrides, **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"overrides": {"embed_dim": 16}}, "features have 16 numbers, the model's 32"),
        ({"neck_feat": "before"}, "evaluated before the neck, the model after it"),
    ],
)
def test_a_teacher_of_another_space_is_refused(make_engine, run, changes, message):
    engine = make_engine()
    engine.hooks.append(DistillationHook(1.0, 1.0, teacher_with(engine.model, **changes), features=1.0))
    with pytest.raises(ConfigError, match=message):
        run(engine, 1)


def test_a_weight_without_distillation_is_refused(make_cfg):
    with pytest.raises(ConfigError, match=r"0 while amg\.distill.enabled is False"):
        make_cfg(amg__distill__features=1.0, amg__distill__enabled=False)
