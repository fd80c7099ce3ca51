"""The re-ID head: batch-norm neck and bias-free classifier."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class FrozenBiasBatchNorm1d(nn.BatchNorm1d):
    """Batch normalisation whose bias stays zero, the neck of re-ID models (BNNeck, CVPRW 2019).

    torchreid opens every parameter for training at each epoch, so the bias is a buffer and not a frozen parameter.
    Its state-dict key is the same.

    Args:
        num_features: Width of the features.
    """

    def __init__(self, num_features: int) -> None:
        super().__init__(num_features)
        del self.bias
        self.register_buffer("bias", torch.zeros(num_features))

    def forward(self, input: Tensor) -> Tensor:
        """Normalise ``[B, D]``; in a network in half precision by its own weights, which features are not in."""
        if input.dtype == self.weight.dtype:
            return super().forward(input)
        return super().forward(input.to(self.weight.dtype)).to(input.dtype)

    def reset_parameters(self) -> None:
        """Reset statistics and scale."""
        self.reset_running_stats()
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)


def build_classifier(num_features: int, num_classes: int) -> nn.Linear:
    """Bias-free linear classifier with small initial weights."""
    classifier = nn.Linear(num_features, num_classes, bias=False)
    nn.init.normal_(classifier.weight, std=0.001)
    return classifier
