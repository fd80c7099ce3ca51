"""Optimiser and learning-rate schedule: rates of biases, decoupled decay, warm-up, rates between epochs, state."""

import io
import math

import pytest
import torch
from torch import nn

from amg_plugin import compat
from amg_plugin.engine.optim import build_optimizer, build_scheduler
from amg_plugin.registries import OPTIMIZERS, register_optimizer

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


def two_groups():
    """An optimiser with two groups, the second at a tenth of the rate."""
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": rate} for rate in (RATE, RATE / 10)]
    return torch.optim.SGD(groups, lr=RATE)


def over_epochs(cfg, epochs, **options):
    """Learning rates of the two groups at each epoch."""
    optimizer = two_groups()
    scheduler = build_scheduler(cfg, optimizer, epochs, **options)
    return stepped(optimizer, scheduler, epochs)


def stepped(optimizer, scheduler, epochs):
    """Learning rates of every group at each epoch, with a scheduler that is stepped once an epoch."""
    seen = []
    for _ in range(epochs + 1):
        seen.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    return seen


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_biases_learn_at_their_own_rate_with_every_optimiser(cfg, model, name):
    optimizer = build_optimizer(cfg(amg__bias_lr_factor=2.0, train__optim=name), model)
    for parameter, rate in rates(optimizer, model).items():
        assert rate == pytest.approx(2 * RATE if parameter.endswith(".bias") else RATE), parameter
    assert optimizer.param_groups[-1]["lr"] == RATE  # what torchreid reports


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_biases_of_old_layers_learn_at_a_multiple_of_the_old_layers_rate(cfg, model, name):
    changes = {"train__optim": name, "train__staged_lr": True, "train__base_lr_mult": 0.1}
    optimizer = build_optimizer(cfg(amg__bias_lr_factor=2.0, **changes), model)
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


@pytest.mark.parametrize("staged", [False, True])
def test_adamw_shrinks_weights_apart_from_the_gradient(cfg, model, staged):
    decay, multiple = 0.1, 0.5
    changes = {"train__optim": "adamw", "train__weight_decay": decay, "adam__beta1": 0.8, "adam__beta2": 0.9}
    optimizer = build_optimizer(cfg(**changes, train__staged_lr=staged, train__base_lr_mult=multiple), model)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    for value in model.parameters():
        value.grad = torch.full_like(value, 3.0)  # the first step of Adam is the sign of the gradient
    optimizer.step()
    for name, value in model.named_parameters():
        rate = RATE * multiple if staged and not name.startswith("classifier") else RATE
        torch.testing.assert_close(value.detach(), before[name] * (1 - rate * decay) - rate)


def test_adamw_has_the_moments_of_the_configuration(cfg, model):
    optimizer = build_optimizer(cfg(train__optim="adamw", adam__beta1=0.8, adam__beta2=0.95), model)
    assert {group["betas"] for group in optimizer.param_groups} == {(0.8, 0.95)}


def test_a_registered_optimiser_gets_torchreids_groups(cfg, model, monkeypatch):
    monkeypatch.setattr(OPTIMIZERS, "rows", dict(OPTIMIZERS.rows))

    @register_optimizer("plain")
    def plain(groups, cfg):
        return torch.optim.Adadelta(groups, lr=cfg.train.lr)

    optimizer = build_optimizer(cfg(train__optim="plain", train__staged_lr=True, train__base_lr_mult=0.1), model)
    assert isinstance(optimizer, torch.optim.Adadelta)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.1 * RATE, RATE])


SCHEDULES = {
    "cosine": {},
    "single_step": {"train__stepsize": [3], "train__gamma": 0.5},
    "multi_step": {"train__stepsize": [2, 5], "train__gamma": 0.5},
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_rates_of_epochs_are_torchreids(cfg, name):
    cfg, optimizer = cfg(train__lr_scheduler=name, **SCHEDULES[name]), two_groups()
    options = {"lr_scheduler": name, "stepsize": list(cfg.train.stepsize), "gamma": cfg.train.gamma, "max_epoch": 8}
    # torchreid's cosine rises again in a run that goes on after the end of its schedule.
    expected = stepped(optimizer, compat.torchreid().optim.build_lr_scheduler(optimizer, **options), 12)
    optimizer = two_groups()
    for ours, theirs in zip(stepped(optimizer, build_scheduler(cfg, optimizer, 8), 12), expected, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-9, abs=1e-15)


AFTER_WARMUP = {
    "cosine": lambda time, epochs: (1 + math.cos(math.pi * time / epochs)) / 2,
    "single_step": lambda time, epochs: 0.5 ** int(time // 3),
    "multi_step": lambda time, epochs: 0.5 ** sum(time >= drop for drop in (2, 5)),
}


@pytest.mark.parametrize("warmup", [0, 0.5, 2, 2.25])
@pytest.mark.parametrize("name", SCHEDULES)
def test_the_rate_of_every_step_is_its_closed_form(cfg, name, warmup):
    epochs, steps, optimizer = 8, 4, two_groups()
    cfg = cfg(train__lr_scheduler=name, amg__warmup_start=0.1, **SCHEDULES[name])
    scheduler = build_scheduler(cfg, optimizer, epochs, warmup)
    for epoch in range(epochs):
        for step in range(steps):
            scheduler.within_epoch(step / steps)
            time = epoch + step / steps
            rising = 0.1 + 0.9 * time / warmup if time < warmup else None
            share = AFTER_WARMUP[name](time - warmup, epochs - warmup) if rising is None else rising
            found = [group["lr"] for group in optimizer.param_groups]
            assert found == pytest.approx([RATE * share, RATE / 10 * share]), (epoch, step)
            optimizer.step()
        scheduler.step()


def test_a_step_of_torchreids_loop_ends_where_the_next_epoch_begins(cfg):
    optimizer = two_groups()
    scheduler = build_scheduler(cfg(train__lr_scheduler="cosine"), optimizer, 5, 1.5)
    optimizer.step()
    for _ in range(5):
        scheduler.within_epoch(0.9)
        scheduler.step()
        ended = [group["lr"] for group in optimizer.param_groups]
        scheduler.within_epoch(0)
        assert [group["lr"] for group in optimizer.param_groups] == ended


def test_a_drop_is_not_late_where_fractions_of_epochs_do_not_add_up(cfg):
    optimizer = two_groups()
    settings = {"train__lr_scheduler": "multi_step", "train__stepsize": [1], "train__gamma": 0.5}
    scheduler = build_scheduler(cfg(**settings), optimizer, 3, 0.1 + 0.2)
    optimizer.step()
    scheduler.step()
    scheduler.within_epoch(0.3)  # 1.3 - (0.1 + 0.2) is less than 1 in floating point
    assert optimizer.param_groups[0]["lr"] == pytest.approx(RATE / 2)


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_state_is_plain_and_continues_where_it_was(cfg, name):
    cfg = cfg(train__lr_scheduler=name, **SCHEDULES[name])
    whole, resumed = two_groups(), two_groups()
    schedulers = [build_scheduler(cfg, optimizer, 6, 1.5) for optimizer in (whole, resumed)]
    whole.step()
    for _ in range(4):
        schedulers[0].step()
    file = io.BytesIO()
    torch.save(schedulers[0].state_dict(), file)
    file.seek(0)
    schedulers[1].load_state_dict(torch.load(file, weights_only=True))
    resumed.step()
    for share in (0, 0.25, 0.75):
        rates = []
        for optimizer, scheduler in zip((whole, resumed), schedulers, strict=True):
            scheduler.within_epoch(share)
            rates.append([group["lr"] for group in optimizer.param_groups])
        assert rates[0] == rates[1]


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
