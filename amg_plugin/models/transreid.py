"""TransReID (ICCV 2021) on a prunable ViT: side information and the jigsaw patch module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from amg_plugin.models.jigsaw import JigsawBranch
from amg_plugin.models.reid import FrozenBiasBatchNorm1d, ReIDModel, at_least_float32, build_classifier
from amg_plugin.models.side_information import SideInformation
from amg_plugin.models.spec import ModelSpec
from amg_plugin.models.vit import pooled_features

Outputs = Tensor | list[Tensor]


class TransReID(ReIDModel):
    """TransReID's network; without side information and jigsaw module a plain :class:`ReIDModel`.

    In eval mode features ``[B, D]``, with the jigsaw module ``[B, (1 + parts) D]``: the global one, then the local ones
    divided by their number. In training mode logits and features before the necks, as :class:`ReIDModel`; with the
    jigsaw module lists of them, the global branch first.

    Args:
        spec: What to build.
        pretrained: Take timm's weights for the backbone.

    Attributes:
        uses_cameras: Whether labels of cameras or views make a difference.
    """

    def __init__(self, spec: ModelSpec, pretrained: bool = False) -> None:
        super().__init__(spec, pretrained)
        side, jigsaw, width = spec.side_information, spec.jigsaw, self.backbone.num_features
        self.side_information = SideInformation(side, width) if side else None
        self.jigsaw = JigsawBranch(self.backbone, jigsaw) if jigsaw else None
        self.uses_cameras = side is not None
        parts = jigsaw.parts if jigsaw else 0
        self.local_bottlenecks = nn.ModuleList(FrozenBiasBatchNorm1d(width) for _ in range(parts))
        self.local_classifiers = nn.ModuleList(build_classifier(width, spec.num_classes) for _ in range(parts))
        self.feature_dim = width * (1 + parts)

    @property
    def prunable_blocks(self) -> list[int]:
        """Blocks that may be pruned; the last one is not under the jigsaw module, which runs it twice."""
        depth = len(self.backbone.blocks)
        return list(range(depth - 1 if self.jigsaw is not None else depth))

    @property
    def output_weights(self) -> list[float] | None:
        """Weights of the branches in the task loss: half for the global one, half for the mean of the local ones."""
        if self.jigsaw is None:
            return None
        return [0.5, *[0.5 / self.jigsaw.parts] * self.jigsaw.parts]

    def name_cameras(self, table: Mapping[str, Sequence[int]]) -> None:
        """Record which cameras the rows of the side information stand for.

        Args:
            table: Camera numbers by training data set, in the order of the rows.

        Raises:
            ConfigError: If they are not as many as the rows.
        """
        side = replace(self.spec.side_information, camera_table=table)
        self.spec = replace(self.spec, side_information=side)
        self.side_information.spec = side

    def backbone_loaded(self) -> None:
        """Start the local branch from the weights that the backbone has now."""
        if self.jigsaw is not None:
            self.jigsaw.copy_last_block(self.backbone)

    def branch_features(self, images: Tensor, camids: Tensor | None = None, viewids: Tensor | None = None) -> Outputs:
        """Features of each branch before the necks, ``[B, D]``; a list with the global one first, if there are several.

        Args:
            images: ``[B, 3, height, width]``.
            camids: Camera labels ``[B]`` from 0, negative for unseen ones; None if unknown.
            viewids: View labels, in the same form.
        """
        vit = self.backbone
        tokens = vit._pos_embed(vit.patch_embed(images))
        if self.side_information is not None:
            vectors = self.side_information(camids, viewids)
            tokens = tokens if vectors is None else tokens + vectors
        tokens = vit.norm_pre(vit.patch_drop(tokens))
        for block in vit.blocks[:-1]:
            tokens = block(tokens)
        whole = at_least_float32(pooled_features(vit, vit.norm(vit.blocks[-1](tokens))))
        if self.jigsaw is None:
            return whole
        return [whole, *at_least_float32(self.jigsaw(tokens)).unbind(1)]

    def forward(
        self, images: Tensor, camids: Tensor | None = None, viewids: Tensor | None = None
    ) -> Outputs | tuple[Outputs, Outputs]:
        """Features in eval mode, training outputs in training mode; arguments as :meth:`branch_features`."""
        return self.outputs(images, camids, viewids)

    def _joined(self, features: Outputs) -> Tensor:
        if isinstance(features, Tensor):
            return features
        whole, *local = features
        return torch.cat([whole, *(part / len(local) for part in local)], dim=1)

    def _necked(self, features: Outputs) -> Outputs:
        if isinstance(features, Tensor):
            return self.bottleneck(features)
        necks = [self.bottleneck, *self.local_bottlenecks]
        return [neck(part) for neck, part in zip(necks, features, strict=True)]

    def _classified(self, features: Outputs) -> Outputs:
        necked = self._necked(features)
        self.notify_observer(features, necked)
        if isinstance(necked, Tensor):
            return at_least_float32(self.classifier(necked))
        classifiers = [self.classifier, *self.local_classifiers]
        return [at_least_float32(classify(part)) for classify, part in zip(classifiers, necked, strict=True)]
