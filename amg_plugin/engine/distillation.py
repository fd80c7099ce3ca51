"""Distillation from a frozen dense teacher that stays outside the engine's models."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from yacs.config import CfgNode

from amg_plugin.checkpoint import load_model, save_checkpoint
from amg_plugin.engine.hooked import HookedEngine
from amg_plugin.engine.hooks import Hook
from amg_plugin.engine.state_files import TEACHER_FILE
from amg_plugin.errors import CheckpointError, ConfigError
from amg_plugin.models.spec import ModelSpec
from amg_plugin.models.vit import unwrap
from amg_plugin.pruning import current_plan
from amg_plugin.utils import processes
from amg_plugin.utils.files import kind_of, sha256


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
        path: The file of ``teacher``; where states are saved, a copy of the engine's model gets one.
    """

    def __init__(
        self, alpha: float, tau: float, teacher: nn.Module | None = None, features: float = 0.0, path: str = ""
    ) -> None:
        self.alpha, self.tau, self.features = alpha, tau, features
        self.teacher, self.path = teacher, path
        self._digest = ""
        self._shown: dict[str, Tensor] = {}

    @classmethod
    def from_config(cls, cfg: CfgNode) -> DistillationHook:
        """Build from ``amg.distill``."""
        options = cfg.amg.distill
        teacher = load_model(options.teacher) if options.teacher else None
        return cls(options.alpha, options.tau, teacher, options.features, options.teacher)

    def before_run(self, engine: HookedEngine) -> None:
        """Freeze the teacher; errors as of :meth:`check`."""
        student = unwrap(engine.model)
        self.check(student)
        if self.teacher is None:
            self.teacher = copy.deepcopy(student)
            if engine.keeper is not None and processes.is_main():
                save_checkpoint(engine.keeper.folder / TEACHER_FILE, self.teacher)
        if engine.keeper is not None and processes.is_main() and not self._digest:
            self._digest = sha256(self.path or engine.keeper.folder / TEACHER_FILE)
        sides = [getattr(model, "side_information", None) for model in (self.teacher, student)]
        if all(sides):
            sides[0].warn_with(sides[1])
        if self.features:
            self._watch_features(engine, student)
        self.teacher = self.teacher.to(engine.device).eval().requires_grad_(False)

    def state(self) -> dict[str, Any]:
        """The file of the teacher; empty if it is a copy of the network that the run began with."""
        return {"path": self.path, "sha256": self._digest}

    def restore(self, engine: HookedEngine, state: dict[str, Any]) -> None:
        """Take up the same teacher.

        Raises:
            CheckpointError: If its file is gone or another one.
        """
        path = self.path or str(engine.keeper.folder / TEACHER_FILE)
        self._digest = sha256(path) if kind_of(path) == "file" else ""
        if self._digest != state["sha256"]:
            what = "is another file than" if self._digest else "is gone, but was"
            raise CheckpointError(f"The run cannot go on: '{path}' {what} the teacher that it began with.")
        if self.teacher is None:
            self.teacher = load_model(path)
        self.before_run(engine)

    def check(self, student: nn.Module) -> None:
        """Check that the teacher is one for a network.

        Raises:
            ConfigError: If the network is pruned already and no dense teacher is given, or the teacher is pruned, or of
                other identities or another image size.
        """
        if self.teacher is None:
            if not current_plan(student).is_dense:
                raise ConfigError(
                    "The model is pruned already, so it cannot be its own dense teacher: give a dense checkpoint in "
                    "amg.distill.teacher, or set amg.distill.enabled to False."
                )
            return
        if not current_plan(self.teacher).is_dense:
            raise ConfigError("The teacher is pruned; amg.distill.teacher must be a dense checkpoint.")
        self._compare(student)

    def _compare(self, student: nn.Module) -> None:
        """Check that teacher and student have what the terms of the loss compare."""
        ours, theirs = student.spec, self.teacher.spec
        if theirs.image_size != ours.image_size:
            sizes = ["x".join(map(str, spec.image_size)) for spec in (theirs, ours)]
            raise ConfigError(
                f"The teacher is for images of {sizes[0]}, the model for {sizes[1]} (height x width); "
                "amg.distill.teacher must be of the same image size."
            )
        if theirs.num_classes != ours.num_classes:
            raise ConfigError(
                f"The teacher knows {theirs.num_classes} identities, the training data has {ours.num_classes}; "
                "amg.distill.teacher must come from the same data."
            )
        if "" not in (known := {self.teacher.identities, student.identities}) and len(known) > 1:
            raise ConfigError(
                f"The teacher knows {theirs.num_classes} identities, and the training data has as many others (or the "
                "same in another order); amg.distill.teacher must come from the same data."
            )
        if _outputs(ours) != _outputs(theirs):
            raise ConfigError(
                f"The teacher has {_outputs(theirs)} classifiers, the model {_outputs(ours)}; amg.distill.teacher must "
                "have the same head (amg.head, amg.parts.number, amg.jpm)."
            )
        if self.features and self.teacher.feature_dim != student.feature_dim:
            raise ConfigError(
                f"The teacher's features have {self.teacher.feature_dim} numbers, the model's {student.feature_dim}; "
                "amg.distill.features needs the same width."
            )
        if self.features and theirs.neck_feat != ours.neck_feat:
            raise ConfigError(
                f"The teacher is evaluated {theirs.neck_feat} the neck, the model {ours.neck_feat} it; "
                "amg.distill.features needs the same amg.neck_feat."
            )

    def _watch_features(self, engine: HookedEngine, student: nn.Module) -> None:
        if isinstance(engine.model, nn.DataParallel):
            raise ConfigError(
                "amg.distill.features works on one GPU; set CUDA_VISIBLE_DEVICES to one of them, or the weight to 0."
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
            # Their distance is no mean over images, so that it takes those of all processes.
            shown = processes.gather([self._shown.pop(name).float() for name in ("student", "teacher")])
            terms["loss_f"] = self.features * feature_loss(*shown)
        return terms


def _outputs(spec: ModelSpec) -> int:
    if spec.head == "parts":
        return spec.parts
    return 1 + (spec.jigsaw.parts if spec.jigsaw else 0)


def feature_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared distance of the student's features from the teacher's, relative to the teacher's squared length.

    0 for equal features, 1 for a student that gives zeros, whatever the scale of the features.

    Args:
        student: ``[B, D]``.
        teacher: ``[B, D]``.
    """
    return (student - teacher).square().sum() / teacher.square().sum().clamp_min(torch.finfo(teacher.dtype).tiny)


def distillation_loss(student: Tensor | Sequence[Tensor], teacher: Tensor | Sequence[Tensor], tau: float) -> Tensor:
    """Divergence of the student's softened predictions from the teacher's.

    ``tau^2 KL(softmax(teacher / tau) || softmax(student / tau))``, summed over batch and classes and divided by the
    number of logits; the mean over classifiers if there are several.

    Args:
        student: Logits ``[B, C]``, or a list of them.
        teacher: As ``student``.
        tau: Temperature.
    """
    if isinstance(student, Tensor):
        student, teacher = [student], [teacher]
    terms = [
        F.kl_div(F.log_softmax(ours / tau, dim=1), F.log_softmax(theirs / tau, dim=1), reduction="sum", log_target=True)
        * tau**2
        / ours.numel()
        for ours, theirs in zip(student, teacher, strict=True)
    ]
    return torch.stack(terms).mean()
