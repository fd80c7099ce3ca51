"""Losses that torchreid lacks."""

from __future__ import annotations

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
