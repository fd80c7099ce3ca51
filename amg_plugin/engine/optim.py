"""Optimiser and learning-rate schedule of a run."""

from __future__ import annotations

import math

import torch
from torch import nn
from yacs.config import CfgNode

from amg_plugin import compat


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """torchreid's optimiser for ``cfg``; biases learn at ``amg.bias_lr_factor`` times the rate."""
    optimizer = compat.torchreid().optim.build_optimizer(
        model,
        **{key: cfg.train[key] for key in ("optim", "lr", "weight_decay", "staged_lr", "base_lr_mult")},
        new_layers=list(cfg.train.new_layers),
        momentum=cfg.sgd.momentum,
        sgd_dampening=cfg.sgd.dampening,
        sgd_nesterov=cfg.sgd.nesterov,
        rmsprop_alpha=cfg.rmsprop.alpha,
        adam_beta1=cfg.adam.beta1,
        adam_beta2=cfg.adam.beta2,
    )
    if cfg.amg.bias_lr_factor != 1:
        _split_off_biases(optimizer, model, cfg.amg.bias_lr_factor)
    return optimizer


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


def build_scheduler(
    cfg: CfgNode, optimizer: torch.optim.Optimizer, epochs: int, warmup_epochs: int = 0
) -> torch.optim.lr_scheduler.LRScheduler:
    """torchreid's schedule over ``epochs``, with a linear warm-up over the first ``warmup_epochs`` of them.

    The warm-up starts at ``amg.warmup_start`` times the rate; ``cosine`` ends at ``amg.min_lr_factor`` times the rate.
    There is always a schedule: torchreid fails without one when it saves, after the whole training.
    """
    remaining = max(epochs - warmup_epochs, 1)
    if cfg.amg.min_lr_factor:  # torchreid's cosine ends at 0
        floor = cfg.amg.min_lr_factor

        def factor(epoch: int) -> float:
            return floor + (1 - floor) * (1 + math.cos(math.pi * min(epoch, remaining) / remaining)) / 2

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    else:
        scheduler = compat.torchreid().optim.build_lr_scheduler(
            optimizer,
            lr_scheduler=cfg.train.lr_scheduler,
            stepsize=cfg.train.stepsize if isinstance(cfg.train.stepsize, int) else list(cfg.train.stepsize),
            gamma=cfg.train.gamma,
            max_epoch=remaining,
        )
    if not warmup_epochs:
        return scheduler
    start = cfg.amg.warmup_start
    warmup = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=start, total_iters=warmup_epochs)
    return torch.optim.lr_scheduler.SequentialLR(optimizer, [warmup, scheduler], milestones=[warmup_epochs])
