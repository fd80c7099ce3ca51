"""LA-Transformer (2021): one classifier per horizontal part of the patch tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amg_plugin.errors import ConfigError
from amg_plugin.models.reid import GlobalBatchNorm1d, ReIDModel, at_least_float32

#: Width of the hidden layer of a part classifier.
HIDDEN = 256
#: Weight of a part, where the class token has 1, in training.
PART_WEIGHT = 8.0


def part_averages(tokens: Tensor, num_prefix_tokens: int, parts: int) -> Tensor:
    """Averages ``[B, parts, D]`` over consecutive groups of the patches among tokens ``[B, prefix + patches, D]``."""
    patches = tokens[:, num_prefix_tokens:].transpose(1, 2)
    return F.adaptive_avg_pool1d(patches, parts).transpose(1, 2)


class PartClassifier(nn.Module):
    """Linear layer to a hidden width, batch norm, dropout, linear layer to the identities."""

    def __init__(self, num_features: int, num_classes: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.reduce = nn.Linear(num_features, hidden)
        self.norm = GlobalBatchNorm1d(hidden)
        self.dropout = nn.Dropout(dropout)
        self.classify = nn.Linear(hidden, num_classes)
        nn.init.kaiming_normal_(self.reduce.weight, mode="fan_out")
        nn.init.normal_(self.classify.weight, std=0.001)
        for layer in (self.reduce, self.classify):
            nn.init.zeros_(layer.bias)

    def forward(self, part: Tensor) -> Tensor:
        """Logits ``[B, num_classes]`` of one part ``[B, D]``."""
        return self.classify(self.dropout(self.norm(self.reduce(part))))


class LATransformer(ReIDModel):
    """LA-Transformer's network on a prunable ViT.

    In eval mode features ``[B, parts * D]``: the part averages, each of length 1 / sqrt(parts). In training mode a list
    of logits, one per part, of the part mixed with the class token; with the loss ``triplet`` also the features.

    Raises:
        ConfigError: If there are fewer patches than parts, or the ViT has no class token.
    """

    def build_head(self) -> None:
        """Build the part classifiers."""
        parts, patches = self.spec.parts, self.backbone.patch_embed.num_patches
        if not 1 <= parts <= patches:
            raise ConfigError(
                f"amg.parts.number {parts} is impossible; allowed: 1 to {patches}, the number of patches."
            )
        if not self.backbone.has_class_token:
            raise ConfigError("amg.head 'parts' needs a ViT with a class token.")
        width, classes = self.backbone.num_features, self.spec.num_classes
        self.classifiers = nn.ModuleList(
            PartClassifier(width, classes, self.spec.part_hidden or HIDDEN, self.spec.part_dropout)
            for _ in range(parts)
        )
        self.feature_dim = parts * width

    @property
    def tokens_read(self) -> range:
        """As :attr:`ReIDModel.tokens_read`: all."""
        return range(self.backbone.num_prefix_tokens + self.backbone.patch_embed.num_patches)

    def branch_features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Class token ``[B, D]`` and part averages ``[B, parts, D]`` of images ``[B, 3, height, width]``."""
        tokens = at_least_float32(self.backbone.forward_features(images))
        return tokens[:, 0], part_averages(tokens, self.backbone.num_prefix_tokens, self.spec.parts)

    def training_outputs(self, images: Tensor) -> list[Tensor] | tuple[list[Tensor], Tensor]:
        """Logits per part, and the features with the loss ``triplet``, whatever the mode."""
        features = self.branch_features(images)
        logits = self._classified(features)
        return (logits, self._joined(features)) if self.spec.loss == "triplet" else logits

    def _joined(self, features: tuple[Tensor, Tensor]) -> Tensor:
        return torch.flatten(F.normalize(features[1], dim=2) / self.spec.parts**0.5, 1)

    def _necked(self, features: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return features  # the part classifiers have norms of their own

    def _classified(self, features: tuple[Tensor, Tensor]) -> list[Tensor]:
        self.notify_observer(features, features)
        token, parts = features
        mixed = (token[:, None] + PART_WEIGHT * parts) / (1 + PART_WEIGHT)
        return [
            at_least_float32(classify(part)) for classify, part in zip(self.classifiers, mixed.unbind(1), strict=True)
        ]
