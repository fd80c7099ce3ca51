"""Phases of a run that the plugin's engines announce, and the base class of what listens to them.

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

from typing import Any, Protocol

from torch import Tensor, nn
from torch.optim import Optimizer
from yacs.config import CfgNode

from amg_plugin.errors import InputError
from amg_plugin.registries import HOOKS


class Engine(Protocol):
    """What a hook finds on the engine, besides what torchreid's engines have.

    Attributes:
        cfg: The whole configuration.
        model: The network, on its device.
        optimizer: Its optimiser; a cut replaces it.
        epoch: The current epoch, from 0.
        max_epoch: Epochs of the run.
        results: Scores per target of the latest evaluation: ``{name: {"mAP", "rank1", "cmc"}}``.
        history: Evaluations and cuts so far, plain data.
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
        """Called after the optimiser's step with the values torchreid prints."""

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
