"""Losses that torchreid lacks. Tensor functions and modules without any framework."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SoftMarginTripletLoss(nn.Module):
    """Batch-hard triplet loss with a soft margin, ``log(1 + exp(d_pos - d_neg))`` (arXiv 1703.07737)."""

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """Mean over the batch.

        Args:
            features: ``[B, D]``.
            labels: Identities ``[B]``.
        """
        squares = features.square().sum(1)
        distances = squares[:, None] + squares[None] - 2 * features @ features.T
        distances = distances.clamp_min(1e-12).sqrt()
        same = labels[:, None] == labels[None]
        hardest_positive = distances.masked_fill(~same, -torch.inf).amax(1)
        hardest_negative = distances.masked_fill(same, torch.inf).amin(1)
        return F.softplus(hardest_positive - hardest_negative).mean()


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
