"""Phases of a run that the plugin's engines announce, the base class of what listens to them, and small listeners.

Order inside one ``engine.run(...)``::

    before_run
      before_epoch                    once per epoch
        layers_opened                 torchreid has said what this epoch trains
        before_step, loss, after_step   once per training batch
      after_epoch
      before_test, after_test         at each evaluation torchreid asks for
    after_run
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn
from torch.optim import Optimizer
from tqdm import tqdm
from yacs.config import CfgNode

from amg_plugin.checkpoint import BEST_CHECKPOINT
from amg_plugin.errors import InputError
from amg_plugin.models.vit import backbone_of
from amg_plugin.registries import HOOKS

logger = logging.getLogger(__name__)


class Engine(Protocol):
    """What a hook finds on the engine, besides what torchreid's engines have.

    Attributes:
        cfg: The whole configuration.
        model: The network, on its device.
        optimizer: Its optimiser; a cut replaces it.
        epoch: The current epoch, from 0.
        max_epoch: Epochs of the run.
        results: Scores per target of the latest evaluation: ``{name: {"mAP", "rank1", "cmc"}}``.
        history: Epochs, evaluations and cuts so far, plain data.
    """

    cfg: CfgNode
    model: nn.Module
    optimizer: Optimizer
    epoch: int
    max_epoch: int
    results: dict[str, dict[str, Any]]
    history: list[dict[str, Any]]


class Hook:
    """Does nothing in every phase; override those that matter."""

    def state(self) -> dict[str, Any]:
        """What a run that goes on has to give back: tensors, numbers, texts and containers of them."""
        return {}

    def restore(self, engine: Engine, state: dict[str, Any]) -> None:
        """Called in place of :meth:`before_run` in a run that goes on, with what :meth:`state` gave.

        Does what :meth:`before_run` does, unless it is overridden. Random numbers are given back afterwards.
        """
        self.before_run(engine)

    def before_run(self, engine: Engine) -> None:
        """Called once, before the first epoch; not for a run that only tests."""

    def after_run(self, engine: Engine) -> None:
        """Called once, after the final test."""

    def before_epoch(self, engine: Engine) -> None:
        """Called before each training epoch; ``engine.epoch`` counts from 0."""

    def after_epoch(self, engine: Engine) -> None:
        """Called after each training epoch, its learning-rate step included."""

    def layers_opened(self, engine: Engine) -> None:
        """Called once per epoch when torchreid has opened all layers for training, or those of a fixed-base epoch."""

    def before_step(self, engine: Engine, images: Tensor) -> None:
        """Called before the forward pass of a training batch ``[B, 3, height, width]``."""

    def loss(self, engine: Engine, images: Tensor, logits: Any) -> dict[str, Tensor]:
        """Further terms of the training loss, by name; they are added with weight 1.

        Args:
            engine: The engine.
            images: The training batch.
            logits: Logits of the model, a tensor or a list of them.
        """
        return {}

    def after_step(self, engine: Engine, summary: dict[str, float]) -> None:
        """Called after each batch with the values torchreid prints, and after the optimiser's step if one was due."""

    def before_test(self, engine: Engine) -> None:
        """Called before each evaluation."""

    def after_test(self, engine: Engine) -> None:
        """Called after each evaluation; ``engine.results`` holds what every target scored."""


def registered_hooks(cfg: CfgNode) -> list[Hook]:
    """Build the hooks that ``amg.hooks`` names, in its order.

    What is registered is a class with ``from_config(cfg)``, or anything that makes a hook when called with ``cfg``.

    Raises:
        ConfigError: A name is not registered.
        InputError: What was made is not a hook.
    """
    hooks = []
    for name in cfg.amg.hooks:
        entry = HOOKS.load(name)
        hook = getattr(entry, "from_config", entry)(cfg)
        if not isinstance(hook, Hook):
            raise InputError(f"The hook '{name}' must be an amg_plugin.engine.Hook, not {type(hook).__name__}.")
        hooks.append(hook)
    return hooks


class BestModelHook(Hook):
    """Writes the model with the best mAP of the first target.

    Args:
        save_dir: Folder of the checkpoint.
        eligible: Says whether an evaluation counts; for pruning, whether the structure is final.

    Attributes:
        best: ``{"epoch", "mAP"}`` of the kept model, empty before the first.
    """

    def __init__(self, save_dir: str | Path, eligible: Callable[[], bool] = lambda: True) -> None:
        self.path = Path(save_dir) / BEST_CHECKPOINT
        self.eligible = eligible
        self.best: dict[str, float] = {}

    def after_test(self, engine: Engine) -> None:
        """Compare and write."""
        score = engine.first_result["mAP"]
        if self.eligible() and score > self.best.get("mAP", -1.0) and engine.write_checkpoint(self.path):
            self.best = {"epoch": engine.epoch, "mAP": score}

    def state(self) -> dict[str, Any]:
        """The best so far."""
        return self.best

    def restore(self, engine: Engine, state: dict[str, Any]) -> None:
        """Go on comparing; without its file, the best so far does not count."""
        self.best = dict(state)
        if self.best and not self.path.exists():
            logger.warning("'%s' is gone; the best of the evaluations to come takes its place", self.path)
            self.best = {}


class ProgressHook(Hook):
    """A bar per epoch with the current loss terms; silent when not on a terminal."""

    def __init__(self) -> None:
        self._bar: tqdm | None = None

    def layers_opened(self, engine: Engine) -> None:
        """Open the bar."""
        label = f"epoch {engine.epoch + 1}/{engine.max_epoch}"
        self._bar = tqdm(total=len(engine.train_loader), desc=label, leave=False, disable=None)

    def after_step(self, engine: Engine, summary: dict[str, float]) -> None:
        """Move it on."""
        self._bar.set_postfix({name: f"{value:.3f}" for name, value in summary.items()}, refresh=False)
        self._bar.update()

    def after_epoch(self, engine: Engine) -> None:
        """Close it."""
        if self._bar is not None:  # the epoch may have been trained before the run was interrupted
            self._bar.close()


class UnfreezingHook(Hook):
    """Trains the top block in the first epochs and one more, downwards, every ``every`` epochs.

    What is outside the blocks is trained from the start. Frozen blocks keep their weights exactly: they have no
    gradient, so no optimiser touches them, weight decay included.

    Args:
        every: Epochs after which one more block is trained, at least 1.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self._trained = 0

    def layers_opened(self, engine: Engine) -> None:
        """Freeze the lower blocks again, which torchreid opens at every epoch."""
        blocks = backbone_of(engine.model).blocks
        trained = min(1 + engine.epoch // self.every, len(blocks))
        for block in blocks[: len(blocks) - trained]:
            block.requires_grad_(False)
        if trained != self._trained:
            logger.info("epoch %d: the top %d of %d blocks are trained", engine.epoch + 1, trained, len(blocks))
        self._trained = trained
