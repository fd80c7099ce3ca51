"""The re-ID network that ``model.name=vit_amg`` stands for."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from amg_plugin.errors import CheckpointError, ConfigError
from amg_plugin.modeling.backbone import build_backbone, pooled_features
from amg_plugin.modeling.head import FrozenBiasBatchNorm1d, build_classifier

LOSSES = ("softmax", "triplet")
NECK_FEATURES = ("before", "after")


@dataclass(frozen=True)
class ModelSpec:
    """Everything that is needed to build the dense network again, as plain data.

    Attributes:
        arch: timm's name of the backbone.
        image_size: (height, width) in pixels.
        num_classes: Number of training identities.
        stride: Patch stride in pixels; 0 means the patch size.
        loss: ``"softmax"`` or ``"triplet"``; decides what the network returns in training.
        neck_feat: Evaluate features ``"before"`` or ``"after"`` the batch-norm neck.
        drop_path: Stochastic depth rate.
        overrides: Arguments that replace timm's own, for example ``{"depth": 4}``.
    """

    arch: str
    image_size: tuple[int, int]
    num_classes: int
    stride: int = 0
    loss: str = "softmax"
    neck_feat: str = "after"
    drop_path: float = 0.0
    overrides: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_size", tuple(int(side) for side in self.image_size))
        if self.loss not in LOSSES:
            raise ConfigError(f"loss.name '{self.loss}' is unknown; allowed: {', '.join(LOSSES)}.")
        if self.neck_feat not in NECK_FEATURES:
            raise ConfigError(f"amg.neck_feat '{self.neck_feat}' is unknown; allowed: {', '.join(NECK_FEATURES)}.")

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a checkpoint."""
        return {**asdict(self), "image_size": list(self.image_size)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ModelSpec:
        """Inverse of :meth:`to_dict`.

        Raises:
            CheckpointError: If a field is missing or unknown.
        """
        try:
            return cls(**data)
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"The model description of the checkpoint cannot be read: {error}.") from error

    def with_classes(self, num_classes: int) -> ModelSpec:
        """The same network for another number of identities."""
        return replace(self, num_classes=num_classes)


class ReIDModel(nn.Module):
    """Prunable ViT, batch-norm neck and classifier.

    torchreid's contract: in eval mode features ``[B, D]``; in training mode logits ``[B, num_classes]`` for the
    loss ``softmax`` and ``(logits, features)`` for ``triplet``. Outputs are float32 at least, whatever autocast does.

    Args:
        spec: What to build.
        pretrained: Take timm's weights for the backbone.
    """

    def __init__(self, spec: ModelSpec, pretrained: bool = False) -> None:
        super().__init__()
        self.spec = spec
        self.backbone = build_backbone(
            spec.arch,
            image_size=spec.image_size,
            stride=spec.stride,
            pretrained=pretrained,
            drop_path=spec.drop_path,
            overrides=spec.overrides,
        )
        self.feature_dim = self.backbone.num_features
        self.bottleneck = FrozenBiasBatchNorm1d(self.feature_dim)
        self.classifier = build_classifier(self.feature_dim, spec.num_classes)

    def embed(self, images: Tensor) -> Tensor:
        """Features before the neck, ``[B, D]``, of images ``[B, 3, height, width]``."""
        return _at_least_float32(pooled_features(self.backbone, self.backbone.forward_features(images)))

    def training_outputs(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """What the network gives in training, whatever the mode: logits, or logits and features."""
        features = self.embed(images)
        logits = _at_least_float32(self.classifier(self.bottleneck(features)))
        return (logits, features) if self.spec.loss == "triplet" else logits

    def logits(self, images: Tensor) -> Tensor:
        """Logits ``[B, num_classes]`` whatever the mode; the teacher of distillation needs them in eval mode."""
        return _at_least_float32(self.classifier(self.bottleneck(self.embed(images))))

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Features in eval mode, :meth:`training_outputs` in training mode."""
        if self.training:
            return self.training_outputs(images)
        features = self.embed(images)
        return self.bottleneck(features) if self.spec.neck_feat == "after" else features


def _at_least_float32(values: Tensor) -> Tensor:
    """Undo what autocast did to outputs: losses and distances need the precision."""
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values
