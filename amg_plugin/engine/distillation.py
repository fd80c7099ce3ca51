"""Distillation from a frozen dense teacher that stays outside the engine's models."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from amg_plugin.checkpoint import load_model
from amg_plugin.engine.hooked import HookedEngine
from amg_plugin.engine.hooks import Hook
from amg_plugin.engine.losses import distillation_loss, feature_loss
from amg_plugin.errors import ConfigError
from amg_plugin.models.vit import unwrap
from amg_plugin.pruning import current_plan


class DistillationHook(Hook):
    """Adds ``alpha`` times the divergence from the teacher's logits to the loss, and pulls features to the teacher's.

    The teacher is the dense model, frozen and in eval mode; torchreid puts registered models into training mode, so it
    is not registered.

    Args:
        alpha: Weight of the term.
        tau: Temperature.
        teacher: The dense network; None takes a copy of the engine's model when the run starts.
        features: Weight of the distance between the evaluation features of student and teacher, so that features of
            both can be compared (asymmetric retrieval).
    """

    def __init__(self, alpha: float, tau: float, teacher: nn.Module | None = None, features: float = 0.0) -> None:
        self.features = features
        self._shown: dict[str, Tensor] = {}
        self.alpha = alpha
        self.tau = tau
        self.teacher = teacher

    @classmethod
    def from_config(cls, cfg: CfgNode) -> DistillationHook:
        """Build from ``amg.distill``."""
        options = cfg.amg.distill
        teacher = load_model(options.teacher) if options.teacher else None
        return cls(options.alpha, options.tau, teacher, options.features)

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
        if self.features:
            self._watch_features(engine, student)
        self.teacher = self.teacher.to(engine.device).eval().requires_grad_(False)

    def _watch_features(self, engine: HookedEngine, student: nn.Module) -> None:
        if isinstance(engine.model, nn.DataParallel):
            raise ConfigError(
                "amg.distill.features works on one GPU; set CUDA_VISIBLE_DEVICES to one of them, or the weight to 0."
            )
        if self.teacher.feature_dim != student.feature_dim:
            raise ConfigError(
                f"The teacher's features have {self.teacher.feature_dim} numbers, the model's {student.feature_dim}; "
                "amg.distill.features needs the same width."
            )
        if self.teacher.spec.neck_feat != student.spec.neck_feat:
            raise ConfigError(
                f"The teacher is evaluated {self.teacher.spec.neck_feat} the neck, the model {student.spec.neck_feat} "
                "it; amg.distill.features needs the same amg.neck_feat."
            )
        for name, model in (("student", student), ("teacher", self.teacher)):
            model.feature_observer = lambda features, name=name: self._shown.__setitem__(name, features)

    def after_run(self, engine: HookedEngine) -> None:
        """Stop watching features."""
        unwrap(engine.model).feature_observer = None

    def loss(self, engine: HookedEngine, images: Tensor, logits: Any) -> dict[str, Tensor]:
        """The distillation terms: ``loss_d`` on logits, and ``loss_f`` on features if it has a weight."""
        with torch.no_grad(), engine.autocast():
            target = self.teacher.logits(images, *engine.labels_for(self.teacher))
        terms = {"loss_d": self.alpha * distillation_loss(logits, target, self.tau)}
        if self.features:
            shown = [self._shown.pop(name).float() for name in ("student", "teacher")]
            terms["loss_f"] = self.features * feature_loss(*shown)
        return terms


def _outputs(model: nn.Module) -> int:
    spec = model.spec
    if spec.head == "parts":
        return spec.parts
    return 1 + (spec.jigsaw.parts if spec.jigsaw else 0)


def _size(model: nn.Module) -> str:
    return "x".join(map(str, model.spec.image_size))
