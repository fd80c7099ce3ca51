"""The plain re-ID network: prunable ViT, batch-norm neck and classifier."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from amg_plugin.models.spec import ModelSpec
from amg_plugin.models.vit import build_backbone, pooled_features, read_by_pooling
from amg_plugin.utils import processes
from amg_plugin.utils.preprocessing import Preprocessing


class GlobalBatchNorm1d(nn.BatchNorm1d):
    """Batch normalisation by the statistics of the global batch, where several processes share it.

    torch's SyncBatchNorm takes no tensors on the CPU.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise ``[B, D]``."""
        if not self.training or processes.world() == 1:
            return super().forward(input)
        return processes.own(super().forward(processes.gather(input)))


class FrozenBiasBatchNorm1d(GlobalBatchNorm1d):
    """Batch normalisation whose bias stays zero, the neck of re-ID models (BNNeck, CVPRW 2019).

    torchreid opens every parameter for training at each epoch, so the bias is a buffer and not a frozen parameter.
    Its state-dict key is the same.
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
    #: Gets the features ``[B, feature_dim]`` of every batch that logits are computed for, see :meth:`notify_observer`.
    feature_observer: Callable[[Tensor], None] | None = None

    #: How images become its inputs; checkpoints and exported files say so too. None where nobody has said it.
    preprocessing: Preprocessing | None = None
    #: Digest of the identities that its classifier knows; empty if unknown.
    identities: str = ""

    def __init__(self, spec: ModelSpec, pretrained: bool = False) -> None:
        super().__init__()
        self.spec = spec
        self.backbone = build_backbone(**spec.backbone(), pretrained=pretrained, drop_path=spec.drop_path)
        self.build_head()

    def build_head(self) -> None:
        """Build what follows the backbone."""
        self.feature_dim = self.backbone.num_features
        self.bottleneck = FrozenBiasBatchNorm1d(self.feature_dim)
        self.classifier = build_classifier(self.feature_dim, self.spec.num_classes)

    def backbone_loaded(self) -> None:
        """Called when the backbone has got other weights; a place for networks that copy parts of it."""

    @property
    def tokens_read(self) -> range:
        """Positions that are read behind the last block, in training or in evaluation."""
        return read_by_pooling(self.backbone)

    def branch_features(self, images: Tensor, *labels: Tensor | None) -> Any:
        """Features before the neck, of each branch where a network has several, of images ``[B, 3, height, width]``.

        ``labels`` are cameras and views, for networks that use them.
        """
        return at_least_float32(pooled_features(self.backbone, self.backbone.forward_features(images)))

    def embed(self, images: Tensor, *labels: Tensor | None) -> Tensor:
        """Evaluation features before the neck, ``[B, feature_dim]``; arguments as :meth:`branch_features`."""
        return self._joined(self.branch_features(images, *labels))

    def training_outputs(self, images: Tensor, *labels: Tensor | None) -> Any:
        """What the network gives in training, whatever the mode: logits, or logits and features."""
        features = self.branch_features(images, *labels)
        logits = self._classified(features)
        return (logits, features) if self.spec.loss == "triplet" else logits

    def logits(self, images: Tensor, *labels: Tensor | None) -> Any:
        """Logits whatever the mode; the teacher of distillation needs them in eval mode."""
        return self._classified(self.branch_features(images, *labels))

    def outputs(self, images: Tensor, *labels: Tensor | None) -> Any:
        """Features in eval mode, :meth:`training_outputs` in training mode."""
        if self.training:
            return self.training_outputs(images, *labels)
        features = self.branch_features(images, *labels)
        return self._joined(self._necked(features) if self.spec.neck_feat == "after" else features)

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """As :meth:`outputs`."""
        return self.outputs(images)

    def notify_observer(self, features: Any, necked: Any) -> None:
        """Give the features that retrieval compares to :attr:`feature_observer`.

        In training they are behind the necks in training mode: a loss on them cannot be lowered by the scale of what
        goes into the necks, as it could with running statistics, which follow a step later.
        """
        if self.feature_observer is not None:
            self.feature_observer(self._joined(necked if self.spec.neck_feat == "after" else features))

    def _joined(self, features: Any) -> Tensor:
        """One vector ``[B, feature_dim]`` of all that the network is evaluated with."""
        return features

    def _necked(self, features: Any) -> Any:
        return self.bottleneck(features)

    def _classified(self, features: Any) -> Any:
        """Logits of features before the necks; the observer gets the features."""
        necked = self._necked(features)
        self.notify_observer(features, necked)
        return at_least_float32(self.classifier(necked))


def at_least_float32(values: Tensor) -> Tensor:
    """Undo what autocast did to outputs: losses and distances need the precision."""
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values
