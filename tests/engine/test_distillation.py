"""The teacher teaches and stays as it is."""

import math

import pytest
import torch
from tiny_run import PATCHES

from amg_plugin.engine import DistillationHook, Hook
from amg_plugin.engine.distillation import distillation_loss
from amg_plugin.errors import CheckpointError, ConfigError
from amg_plugin.pruning import apply_plan, current_plan


def by_hand(student, teacher, tau):
    """tau^2 KL(teacher || student), summed and divided by the number of logits, without any library function."""

    def softmax(row):
        powers = [math.exp(value / tau) for value in row]
        return [power / sum(powers) for power in powers]

    total = 0.0
    for ours, theirs in zip(student.tolist(), teacher.tolist(), strict=True):
        for p, q in zip(softmax(theirs), softmax(ours), strict=True):
            total += p * math.log(p / q)
    return tau**2 * total / student.numel()


@pytest.mark.parametrize("tau", [1.0, 10.0])
def test_the_loss_is_the_hand_computation(tau):
    torch.manual_seed(0)
    student, teacher = 5 * torch.randn(2, 4, 7, dtype=torch.float64)
    assert distillation_loss(student, teacher, tau).item() == pytest.approx(by_hand(student, teacher, tau), rel=1e-9)


def test_several_classifiers_are_averaged():
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 3, 4, 7)
    alone = [distillation_loss(a, b, 2.0).item() for a, b in zip(student, teacher, strict=True)]
    assert distillation_loss(list(student), list(teacher), 2.0).item() == pytest.approx(sum(alone) / 3)


def test_other_numbers_of_classifiers_are_a_mistake():
    with pytest.raises(ValueError, match="zip"):
        distillation_loss([torch.randn(2, 3)], [torch.randn(2, 3)] * 2, 1.0)


def test_equal_logits_cost_nothing():
    logits = torch.randn(4, 7)
    assert distillation_loss(logits, logits, 10.0).item() == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("tau", [1.0, 10.0])
def test_the_gradient_pulls_the_students_predictions_to_the_teachers(tau):
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 4, 7, dtype=torch.float64)
    student.requires_grad_()
    distillation_loss(student, teacher, tau).backward()
    expected = tau * ((student / tau).softmax(1) - (teacher / tau).softmax(1)) / student.numel()
    torch.testing.assert_close(student.grad, expected.detach())


class Spy(Hook):
    """Keeps the summary of every step, and whether the teacher was in eval mode in it."""

    def __init__(self, teaching):
        self.teaching, self.summaries, self.modes, self.expected = teaching, [], [], []

    def loss(self, engine, images, logits):
        with torch.no_grad():
            self.expected.append(by_hand(logits, self.teaching.teacher.logits(images), self.teaching.tau))
        self.modes.append(self.teaching.teacher.training)
        return {}

    def after_step(self, engine, summary):
        self.summaries.append(dict(summary))


def other_model(engine):
    """A dense teacher with other weights."""
    from amg_plugin.models.reid import ReIDModel

    torch.manual_seed(99)
    model = ReIDModel(engine.model.spec)
    torch.nn.init.normal_(model.classifier.weight)
    return model


@pytest.mark.parametrize("loss", ["softmax", "triplet"])
def test_alpha_times_the_divergence_is_part_of_every_step(make_engine, run, loss):
    teaching = DistillationHook(alpha=3.0, tau=4.0)
    spy = Spy(teaching)
    engine = make_engine([teaching, spy], loss__name=loss)
    teaching.teacher = other_model(engine)
    run(engine, 1)
    assert [summary["loss_d"] for summary in spy.summaries] == pytest.approx(
        [3.0 * value for value in spy.expected], rel=1e-4
    )
    assert max(spy.expected) > 1e-3


def test_the_teacher_is_a_frozen_copy_of_the_model_at_the_start_and_stays_so(make_engine, run):
    teaching = DistillationHook(alpha=2.0, tau=10.0)
    spy = Spy(teaching)
    engine = make_engine([teaching, spy], train__lr=0.01)
    start = {name: value.clone() for name, value in engine.model.state_dict().items()}
    run(engine, 2)
    engine.set_model_mode("train")
    teacher = teaching.teacher
    assert all(torch.equal(value, teacher.state_dict()[name]) for name, value in start.items())
    assert not torch.equal(start["classifier.weight"], engine.model.classifier.weight)
    assert set(spy.modes) == {False}
    assert not teacher.training
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert not set(map(id, teacher.parameters())) & set(map(id, engine.model.parameters()))


def test_the_teacher_is_none_of_torchreids_models(make_engine, run):
    teaching = DistillationHook(alpha=2.0, tau=10.0)
    engine = run(make_engine([teaching]), 1)
    assert engine.get_model_names() == ["model"]
    assert engine.model is not teaching.teacher


def prune(model):
    plan = current_plan(model)
    return apply_plan(model, plan.narrow(heads=[[0, 1]] * plan.depth, tokens=[range(PATCHES - 2)] * plan.depth))


def test_a_pruned_start_without_a_teacher_is_refused(make_engine, run):
    engine = make_engine([DistillationHook(2.0, 10.0)])
    prune(engine.model)
    with pytest.raises(ConfigError, match=r"amg\.distill\.teacher"):
        run(engine, 1)


def test_a_pruned_start_with_a_dense_teacher_trains(make_engine, run):
    teaching = DistillationHook(2.0, 10.0)
    engine = make_engine([teaching])
    teaching.teacher = other_model(engine)
    prune(engine.model)
    run(engine, 1)
    assert current_plan(teaching.teacher).is_dense


def replaced(**changes):
    from dataclasses import replace

    from amg_plugin.models.reid import ReIDModel

    return lambda model: ReIDModel(replace(model.spec, **changes))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model: prune(other_model_of(model)), "dense checkpoint"),
        (replaced(num_classes=5), "5 identities"),
        (replaced(image_size=(48, 16)), "48x16"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused_before_training(make_engine, run, change, message):
    teaching = DistillationHook(2.0, 10.0)
    engine = make_engine([teaching])
    teaching.teacher = change(engine.model)
    before = engine.model.classifier.weight.detach().clone()
    with pytest.raises(ConfigError, match=message):
        run(engine, 1)
    assert torch.equal(before, engine.model.classifier.weight)


def other_model_of(model):
    return replaced()(model)


def test_the_configuration_names_the_teachers_file(make_engine, make_cfg, tmp_path):
    engine = make_engine()
    path = tmp_path / "teacher.pth"
    engine.write_checkpoint(path)
    hook = DistillationHook.from_config(make_cfg(amg__distill__teacher=str(path), amg__distill__alpha=0.5))
    assert hook.alpha == 0.5
    assert torch.equal(hook.teacher.classifier.weight, engine.model.classifier.weight)


def test_a_missing_teacher_file_is_named(make_cfg, tmp_path):
    with pytest.raises(CheckpointError, match=r"nowhere\.pth"):
        DistillationHook.from_config(make_cfg(amg__distill__teacher=str(tmp_path / "nowhere.pth")))
