"""Optimiser of a run, and its learning rates: once an epoch, as torchreid sets them, or at every step."""

from __future__ import annotations

import math
import warnings
from bisect import bisect_right
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from yacs.config import CfgNode

from amg_plugin import compat
from amg_plugin.registries import OPTIMIZERS


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """The optimiser that ``train.optim`` names; biases learn at ``amg.bias_lr_factor`` times the rate.

    torchreid's builder makes its own ones, and the groups of parameters (``train.staged_lr``) for every one.
    """
    row = OPTIMIZERS.row(cfg.train.optim)
    optimizer = compat.torchreid().optim.build_optimizer(
        model,
        optim=row.name if row.stock else "sgd",
        **{key: cfg.train[key] for key in ("lr", "weight_decay", "staged_lr", "base_lr_mult")},
        new_layers=list(cfg.train.new_layers),
        momentum=cfg.sgd.momentum,
        sgd_dampening=cfg.sgd.dampening,
        sgd_nesterov=cfg.sgd.nesterov,
        rmsprop_alpha=cfg.rmsprop.alpha,
        adam_beta1=cfg.adam.beta1,
        adam_beta2=cfg.adam.beta2,
    )
    if not row.stock:
        groups = [{key: group[key] for key in ("params", "lr")} for group in optimizer.param_groups]
        optimizer = OPTIMIZERS.load(row.name)(groups, cfg)
    if cfg.amg.bias_lr_factor != 1:
        _split_off_biases(optimizer, model, cfg.amg.bias_lr_factor)
    return optimizer


def adamw(groups: Iterable[dict[str, Any]], cfg: CfgNode) -> torch.optim.Optimizer:
    """Adam with decoupled weight decay (arXiv 1711.05101): weights shrink by rate times decay, apart from gradients."""
    betas = (cfg.adam.beta1, cfg.adam.beta2)
    return torch.optim.AdamW(groups, lr=cfg.train.lr, betas=betas, weight_decay=cfg.train.weight_decay)


def _split_off_biases(optimizer: torch.optim.Optimizer, model: nn.Module, factor: float) -> None:
    biases = {id(value) for name, value in model.named_parameters() if name.rpartition(".")[2] == "bias"}
    groups = list(optimizer.param_groups)
    optimizer.param_groups.clear()
    for group in groups:
        # Biases first: torchreid reports the rate of the last group.
        for wanted, rate in ((True, factor * group["lr"]), (False, group["lr"])):
            chosen = [value for value in group["params"] if (id(value) in biases) == wanted]
            if chosen:
                optimizer.add_param_group({**group, "params": chosen, "lr": rate})


class RateSchedule(torch.optim.lr_scheduler.LambdaLR):
    """Learning rates as a function of the time in epochs.

    ``step()``, which torchreid calls once an epoch, sets the rates of the next epoch's beginning. The state is plain
    data, the number of epochs done among it, and says everything at the end of an epoch.
    """

    def step(self, *args: Any) -> None:
        """Set the rates of the next epoch's beginning.

        torch would warn where the optimiser made no step before, as in a short first epoch in fp16 whose steps the
        scaler left out.
        """
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step", category=UserWarning)
            super().step(*args)

    def within_epoch(self, share: float) -> None:
        """Set the rates of the moment when ``share`` of the current epoch, 0 to 1, is over."""
        for group, base, factor in zip(self.optimizer.param_groups, self.base_lrs, self.lr_lambdas, strict=True):
            group["lr"] = base * factor(self.last_epoch + share)


def build_scheduler(
    cfg: CfgNode, optimizer: torch.optim.Optimizer, epochs: int, warmup_epochs: float = 0.0
) -> RateSchedule:
    """The schedule ``train.lr_scheduler`` over ``epochs``, of which the first ``warmup_epochs`` are a linear warm-up.

    There is always a schedule: torchreid fails without one when it saves, after the whole training.
    """
    return RateSchedule(optimizer, rate_factor(cfg, epochs, warmup_epochs))


def rate_factor(cfg: CfgNode, epochs: float, warmup_epochs: float = 0.0) -> Callable[[float], float]:
    """Share of the learning rate as a function of the time in epochs.

    The warm-up rises from ``amg.warmup_start`` to 1. torchreid's schedule follows over what is left of ``epochs``, its
    own time counted from the end of the warm-up; ``cosine`` ends at ``amg.min_lr_factor``.
    """
    start, after = cfg.amg.warmup_start, _factor_after_warmup(cfg, epochs - warmup_epochs)

    def factor(time: float) -> float:
        if time < warmup_epochs:
            return start + (1 - start) * time / warmup_epochs
        return after(time - warmup_epochs)

    return factor


def _factor_after_warmup(cfg: CfgNode, epochs: float) -> Callable[[float], float]:
    train, floor = cfg.train, cfg.amg.min_lr_factor
    if train.lr_scheduler == "cosine":
        length = epochs or 1  # a stretch without epochs has no use for rates
        return lambda time: floor + (1 - floor) * (1 + math.cos(math.pi * time / length)) / 2
    if train.lr_scheduler == "multi_step":
        return lambda time: train.gamma ** bisect_right(train.stepsize, time + _ROUNDING)
    return lambda time: train.gamma ** ((time + _ROUNDING) // train.stepsize[-1])


_ROUNDING = 1e-9
"""In epochs: a drop that is due is not put off by a step because fractions do not add up exactly."""
