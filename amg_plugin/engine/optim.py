"""Optimiser and learning-rate schedule from a configuration, by torchreid's own builders."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from amg_plugin import compat

#: Where the linear warm-up starts, as a share of the learning rate (TransReID's recipe).
WARMUP_START = 0.01


def build_optimizer(cfg: Any, model: nn.Module) -> torch.optim.Optimizer:
    """torchreid's optimiser for ``cfg``."""
    return compat.torchreid().optim.build_optimizer(
        model,
        optim=cfg.train.optim,
        lr=cfg.train.lr,
        weight_decay=cfg.train.weight_decay,
        momentum=cfg.sgd.momentum,
        sgd_dampening=cfg.sgd.dampening,
        sgd_nesterov=cfg.sgd.nesterov,
        rmsprop_alpha=cfg.rmsprop.alpha,
        adam_beta1=cfg.adam.beta1,
        adam_beta2=cfg.adam.beta2,
        staged_lr=cfg.train.staged_lr,
        new_layers=list(cfg.train.new_layers),
        base_lr_mult=cfg.train.base_lr_mult,
    )


def build_scheduler(
    cfg: Any, optimizer: torch.optim.Optimizer, epochs: int, warmup_epochs: int = 0
) -> torch.optim.lr_scheduler.LRScheduler:
    """torchreid's schedule over ``epochs``, with a linear warm-up in front if asked for.

    There is always a schedule: torchreid fails without one when it saves, after the whole training.

    Args:
        cfg: The configuration.
        optimizer: What to schedule.
        epochs: Length of the phase.
        warmup_epochs: Epochs of it that the learning rate rises over.
    """
    scheduler = compat.torchreid().optim.build_lr_scheduler(
        optimizer,
        lr_scheduler=cfg.train.lr_scheduler,
        stepsize=cfg.train.stepsize if isinstance(cfg.train.stepsize, int) else list(cfg.train.stepsize),
        gamma=cfg.train.gamma,
        max_epoch=max(epochs - warmup_epochs, 1),
    )
    if not warmup_epochs:
        return scheduler
    warmup = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=WARMUP_START, total_iters=warmup_epochs)
    return torch.optim.lr_scheduler.SequentialLR(optimizer, [warmup, scheduler], milestones=[warmup_epochs])
