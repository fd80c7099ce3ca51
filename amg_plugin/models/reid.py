"""The re-ID network that ``model.name=vit_amg`` stands for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from amg_plugin.errors import CheckpointError, ConfigError
from amg_plugin.models.head import FrozenBiasBatchNorm1d, build_classifier
from amg_plugin.models.jigsaw import JigsawSpec
from amg_plugin.models.reducers.spec import ReducerSpec
from amg_plugin.models.side_information import SideInformationSpec
from amg_plugin.models.vit import build_backbone, pooled_features

LOSSES = ("softmax", "triplet")
NECK_FEATURES = ("before", "after")
HEADS = ("bnneck", "parts")


@dataclass(frozen=True)
class ModelSpec:
    """Everything that is needed to build the dense network again, as plain data.

    Attributes:
        arch: timm's name of the backbone.
        image_size: (height, width) in pixels.
        num_classes: Number of training identities.
        stride: Patch stride in pixels, one number or (vertical, horizontal); 0 means the patch size.
        loss: ``"softmax"`` or ``"triplet"``; decides what the network returns in training.
        neck_feat: Evaluate features ``"before"`` or ``"after"`` the batch-norm neck.
        drop_path: Stochastic depth rate.
        overrides: Arguments that replace timm's own, for example ``{"depth": 4}``.
        attention_scale: Factor of query times key; None for the architecture's own.
        layer_norm_eps: Added to variances in layer norms; None for timm's.
        head: ``"bnneck"`` or ``"parts"`` (LA-Transformer).
        parts: Parts of the head ``"parts"``.
        part_hidden: Hidden width of its classifiers; 0 means the published one.
        part_dropout: Dropout rate of its classifiers.
        side_information: TransReID's camera and view embedding, or None.
        jigsaw: TransReID's jigsaw patch module, or None.
        reducer: Token merging or dropping to compare AMG with, or None.
    """

    arch: str
    image_size: tuple[int, int]
    num_classes: int
    stride: int | tuple[int, int] = 0
    loss: str = "softmax"
    neck_feat: str = "after"
    drop_path: float = 0.0
    overrides: dict[str, Any] = field(default_factory=dict)
    attention_scale: float | None = None
    layer_norm_eps: float | None = None
    head: str = "bnneck"
    parts: int = 14
    part_hidden: int = 0
    part_dropout: float = 0.5
    side_information: SideInformationSpec | None = None
    jigsaw: JigsawSpec | None = None
    reducer: ReducerSpec | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_size", tuple(int(side) for side in self.image_size))
        if not isinstance(self.stride, int):
            object.__setattr__(self, "stride", tuple(int(step) for step in self.stride))
        for name, kind in (
            ("side_information", SideInformationSpec),
            ("jigsaw", JigsawSpec),
            ("reducer", ReducerSpec),
        ):
            if isinstance(value := getattr(self, name), dict):
                object.__setattr__(self, name, kind(**value))
        if self.loss not in LOSSES:
            raise ConfigError(f"loss.name '{self.loss}' is unknown; allowed: {', '.join(LOSSES)}.")
        if self.neck_feat not in NECK_FEATURES:
            raise ConfigError(f"amg.neck_feat '{self.neck_feat}' is unknown; allowed: {', '.join(NECK_FEATURES)}.")
        if self.head not in HEADS:
            raise ConfigError(f"amg.head '{self.head}' is unknown; allowed: {', '.join(HEADS)}.")
        if self.head == "parts" and (self.side_information or self.jigsaw):
            raise ConfigError("amg.head 'parts' cannot be joined with side information (amg.sie) or amg.jpm.")
        if self.reducer and (self.head == "parts" or self.side_information or self.jigsaw):
            raise ConfigError(
                f"amg.reducer '{self.reducer.method}' works on a plain ViT only: parts, the jigsaw module and side "
                "information need every token in its place."
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a checkpoint."""
        data = {**asdict(self), "image_size": list(self.image_size)}
        if isinstance(self.stride, tuple):
            data["stride"] = list(self.stride)
        return data

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ModelSpec:
        """Inverse of :meth:`to_dict`.

        Raises:
            CheckpointError: If a field is missing or unknown.
        """
        try:
            return cls(**data)
        except (AttributeError, TypeError, ValueError) as error:
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

    #: Whether camera labels make a difference; then they go into ``forward`` after the images.
    uses_cameras = False
    #: Gets the features ``[B, feature_dim]`` of every batch that logits are computed for, see :meth:`show`.
    feature_observer: Callable[[Tensor], None] | None = None

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
            attention_scale=spec.attention_scale,
            layer_norm_eps=spec.layer_norm_eps,
        )
        self.build_head()

    def build_head(self) -> None:
        """Build what follows the backbone."""
        self.feature_dim = self.backbone.num_features
        self.bottleneck = FrozenBiasBatchNorm1d(self.feature_dim)
        self.classifier = build_classifier(self.feature_dim, self.spec.num_classes)

    def backbone_loaded(self) -> None:
        """Called when the backbone has got other weights; a place for networks that copy parts of it."""

    def embed(self, images: Tensor) -> Tensor:
        """Features before the neck, ``[B, D]``, of images ``[B, 3, height, width]``."""
        return at_least_float32(pooled_features(self.backbone, self.backbone.forward_features(images)))

    def show(self, features: Any, necked: Any) -> None:
        """Give the features that retrieval compares to :attr:`feature_observer`.

        In training they are behind the necks in training mode: a loss on them cannot be lowered by the scale of what
        goes into the necks, as it could with running statistics, which follow a step later.

        Args:
            features: Before the necks.
            necked: Behind them.
        """
        if self.feature_observer is not None:
            self.feature_observer(self._joined(necked if self.spec.neck_feat == "after" else features))

    def _joined(self, features: Any) -> Tensor:
        """One vector ``[B, feature_dim]`` of all that the network is evaluated with."""
        return features

    def training_outputs(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """What the network gives in training, whatever the mode: logits, or logits and features."""
        features = self.embed(images)
        logits = self._classified_and_shown(features)
        return (logits, features) if self.spec.loss == "triplet" else logits

    def logits(self, images: Tensor) -> Tensor:
        """Logits ``[B, num_classes]`` whatever the mode; the teacher of distillation needs them in eval mode."""
        return self._classified_and_shown(self.embed(images))

    def _classified_and_shown(self, features: Tensor) -> Tensor:
        necked = self.bottleneck(features)
        self.show(features, necked)
        return at_least_float32(self.classifier(necked))

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Features in eval mode, :meth:`training_outputs` in training mode."""
        if self.training:
            return self.training_outputs(images)
        features = self.embed(images)
        return self.bottleneck(features) if self.spec.neck_feat == "after" else features


def at_least_float32(values: Tensor) -> Tensor:
    """Undo what autocast did to outputs: losses and distances need the precision."""
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values


def unwrap(model: nn.Module) -> nn.Module:
    """The network inside DataParallel, or the network itself."""
    return model.module if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel) else model
