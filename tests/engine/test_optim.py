"""Optimiser and learning-rate schedule: rates of biases, warm-up, end of the cosine."""

import math

import pytest
import torch
from torch import nn

from amg_plugin.engine.optim import build_optimizer, build_scheduler

RATE = 0.01


@pytest.fixture
def model():
    return nn.ModuleDict({"backbone": nn.Linear(3, 4), "bottleneck": nn.BatchNorm1d(4), "classifier": nn.Linear(4, 2)})


@pytest.fixture
def cfg(make_cfg):
    def make(**changes):
        return make_cfg(train__lr=RATE, **changes)

    return make


def rates(optimizer, model):
    """Learning rate of each parameter by name; each must be there once."""
    names = {id(value): name for name, value in model.named_parameters()}
    found = [(names[id(value)], group["lr"]) for group in optimizer.param_groups for value in group["params"]]
    assert len(found) == len(dict(found)) == len(names)
    return dict(found)


def over_epochs(cfg, epochs, **options):
    """Learning rates of two groups, the second at a tenth, at each epoch."""
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": rate} for rate in (RATE, RATE / 10)]
    optimizer = torch.optim.SGD(groups, lr=RATE)
    scheduler = build_scheduler(cfg, optimizer, epochs, **options)
    seen = []
    for _ in range(epochs + 1):
        seen.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    return seen


@pytest.mark.parametrize("name", ["sgd", "adam", "amsgrad", "rmsprop", "radam"])
def test_biases_learn_at_their_own_rate_with_every_optimiser(cfg, model, name):
    optimizer = build_optimizer(cfg(amg__bias_lr_factor=2.0, train__optim=name), model)
    for parameter, rate in rates(optimizer, model).items():
        assert rate == pytest.approx(2 * RATE if parameter.endswith(".bias") else RATE), parameter
    assert optimizer.param_groups[-1]["lr"] == RATE  # what torchreid reports


def test_biases_of_old_layers_learn_at_a_multiple_of_the_old_layers_rate(cfg, model):
    optimizer = build_optimizer(cfg(amg__bias_lr_factor=2.0, train__staged_lr=True, train__base_lr_mult=0.1), model)
    found = rates(optimizer, model)
    assert found["backbone.weight"] == pytest.approx(0.1 * RATE)
    assert found["backbone.bias"] == pytest.approx(0.2 * RATE)
    assert found["classifier.weight"] == pytest.approx(RATE)
    assert found["classifier.bias"] == pytest.approx(2 * RATE)


def test_groups_keep_the_options_of_the_optimiser(cfg, model):
    optimizer = build_optimizer(
        cfg(amg__bias_lr_factor=2.0, train__optim="sgd", sgd__momentum=0.8, train__weight_decay=1e-4), model
    )
    assert {(group["momentum"], group["weight_decay"]) for group in optimizer.param_groups} == {(0.8, 1e-4)}


def test_without_a_factor_the_optimiser_is_torchreids(cfg, model):
    assert len(build_optimizer(cfg(), model).param_groups) == 1


def test_the_cosine_ends_at_a_share_of_each_groups_rate(cfg):
    first, last = zip(*over_epochs(cfg(train__lr_scheduler="cosine", amg__min_lr_factor=0.002), 10), strict=True)
    assert first[0] == pytest.approx(RATE)
    assert first[5] == pytest.approx(RATE * (0.002 + 0.998 * (1 + math.cos(math.pi / 2)) / 2))
    assert first[10] == pytest.approx(0.002 * RATE)
    assert last == pytest.approx([rate / 10 for rate in first])


def test_without_a_floor_the_cosine_is_torchreids_and_ends_at_nothing(cfg):
    assert over_epochs(cfg(train__lr_scheduler="cosine"), 10)[10][0] == pytest.approx(0, abs=1e-12)


def test_transreids_recipe_rises_over_five_epochs_and_falls_to_the_end(cfg):
    options = {"train__lr_scheduler": "cosine", "amg__min_lr_factor": 0.002, "amg__warmup_start": 0.01}
    found = [rate for rate, _ in over_epochs(cfg(**options), 20, warmup_epochs=5)]
    assert found[0] == pytest.approx(0.01 * RATE)
    assert found[:6] == sorted(set(found[:6]))
    assert found[5] == pytest.approx(RATE)
    assert found[5:] == sorted(set(found[5:]), reverse=True)
    assert found[20] == pytest.approx(0.002 * RATE)
