"""Distillation from a frozen dense teacher that stays outside the engine's models."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from amg_plugin.checkpoint import load_model, unwrap
from amg_plugin.engine.base import HookedEngine
from amg_plugin.engine.hooks import Hook
from amg_plugin.engine.losses import distillation_loss
from amg_plugin.errors import ConfigError
from amg_plugin.pruning import current_plan


class DistillationHook(Hook):
    """Adds ``alpha`` times the divergence from the teacher's logits to the loss.

    The teacher is the dense model, frozen and in eval mode; torchreid puts registered models into training mode, so it
    is not registered.

    Args:
        alpha: Weight of the term.
        tau: Temperature.
        teacher: The dense network; None takes a copy of the engine's model when the run starts.
    """

    def __init__(self, alpha: float, tau: float, teacher: nn.Module | None = None) -> None:
        self.alpha = alpha
        self.tau = tau
        self.teacher = teacher

    @classmethod
    def from_config(cls, cfg: Any) -> DistillationHook:
        """Build from ``amg.distill``."""
        options = cfg.amg.distill
        return cls(options.alpha, options.tau, load_model(options.teacher) if options.teacher else None)

    def before_run(self, engine: HookedEngine) -> None:
        """Freeze the teacher.

        Raises:
            ConfigError: If the run starts from a pruned model and no dense teacher is given, or the teacher is pruned,
                or of other identities or another image size than the run.
        """
        student = unwrap(engine.model)
        if self.teacher is None:
            if not current_plan(student).is_dense:
                raise ConfigError(
                    "The model is pruned already, so it cannot be its own dense teacher: give a dense checkpoint in "
                    "amg.distill.teacher, or set amg.distill.enabled to False."
                )
            self.teacher = copy.deepcopy(student)
        if not current_plan(self.teacher).is_dense:
            raise ConfigError("The teacher is pruned; amg.distill.teacher must be a dense checkpoint.")
        if self.teacher.spec.image_size != student.spec.image_size:
            raise ConfigError(
                f"The teacher is for images of {_size(self.teacher)}, the model for {_size(student)} (height x width); "
                "amg.distill.teacher must be of the same image size."
            )
        if self.teacher.spec.num_classes != student.spec.num_classes:
            raise ConfigError(
                f"The teacher knows {self.teacher.spec.num_classes} identities, the training data has "
                f"{student.spec.num_classes}; amg.distill.teacher must come from the same data."
            )
        if (ours := _outputs(student)) != (theirs := _outputs(self.teacher)):
            raise ConfigError(
                f"The teacher has {theirs} classifiers, the model {ours}; amg.distill.teacher must have the same head "
                "(amg.head, amg.parts.number, amg.jpm)."
            )
        sides = [getattr(model, "side_information", None) for model in (self.teacher, student)]
        if all(sides):
            sides[0].warn_with(sides[1])
        self.teacher = self.teacher.to(engine.device).eval().requires_grad_(False)

    def loss(self, engine: HookedEngine, images: Tensor, logits: Any) -> dict[str, Tensor]:
        """The distillation term, ``loss_d``."""
        with torch.no_grad(), engine.autocast():
            target = self.teacher.logits(images, *engine.labels_for(self.teacher))
        return {"loss_d": self.alpha * distillation_loss(logits, target, self.tau)}


def _outputs(model: nn.Module) -> int:
    spec = model.spec
    if spec.head == "parts":
        return spec.parts
    return 1 + (spec.jigsaw.parts if spec.jigsaw else 0)


def _size(model: nn.Module) -> str:
    return "x".join(map(str, model.spec.image_size))
