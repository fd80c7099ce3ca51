"""TransReID (ICCV 2021) on a prunable ViT: side information and the jigsaw patch module."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from amg_plugin.errors import ConfigError
from amg_plugin.models.reid import FrozenBiasBatchNorm1d, ReIDModel, at_least_float32, build_classifier
from amg_plugin.models.rotary import check_not_rotary
from amg_plugin.models.spec import JigsawSpec, ModelSpec, SideInformationSpec
from amg_plugin.models.vit import pooled_features

logger = logging.getLogger(__name__)

Outputs = Tensor | list[Tensor]


class _Once:
    """Whether the warning was given; copies and DataParallel's replicas of a module share it."""

    done = False

    def __deepcopy__(self, memo: dict[int, Any]) -> _Once:
        return self


class SideInformation(nn.Module):
    """Looks up the side information of a batch (TransReID, ICCV 2021, section on SIE).

    Labels that training has not seen never fail: they get what ``spec.unseen`` says, with one warning per network.
    ``width`` is the embedding width of the tokens.
    """

    def __init__(self, spec: SideInformationSpec, width: int) -> None:
        super().__init__()
        self.spec = spec
        self.embedding = nn.Parameter(torch.empty(spec.rows, width))
        nn.init.trunc_normal_(self.embedding, std=0.02)
        self._warned = _Once()

    def forward(self, camids: Tensor | None = None, viewids: Tensor | None = None) -> Tensor | None:
        """Vectors ``[B, 1, D]`` to add to the tokens; None if there is nothing to add.

        Args:
            camids: Camera of each image, ``[B]``, counted from 0; a negative number marks an unseen one.
            viewids: View of each image, in the same form.
        """
        row = valid = None
        for labels, count in ((camids, self.spec.cameras), (viewids, self.spec.views)):
            if not count:
                continue
            if labels is None:
                self.warn("the images come without labels of cameras or views")
                return None if self.spec.unseen == "none" else self.spec.coefficient * self._fallback()[None, None]
            labels = torch.as_tensor(labels, device=self.embedding.device).long()
            known = (labels >= 0) & (labels < count)
            row = labels if row is None else row * count + labels
            valid = known if valid is None else valid & known
        # A traced program can neither look at labels nor log, nor can a CUDA graph.
        recorded = torch.compiler.is_compiling() or torch.compiler.is_exporting() or torch.jit.is_tracing()
        recorded = recorded or (self.embedding.is_cuda and torch.cuda.is_current_stream_capturing())
        if not (self._warned.done or valid.is_meta or recorded) and not bool(valid.all()):
            self.warn(f"{int((~valid).sum())} of {len(valid)} images come from cameras or views unseen in training")
        vectors = self.embedding[row.clamp(0, self.spec.rows - 1)]
        vectors = torch.where(valid[:, None], vectors, self._fallback())
        return self.spec.coefficient * vectors[:, None]

    def warn(self, what: str) -> None:
        """Say once, for this module and its copies, what is unseen and what becomes of it."""
        if not torch.compiler.is_compiling() and not self._warned.done:
            self._warned.done = True
            logger.warning(
                "%s: for them side information %s (amg.sie.unseen)",
                what,
                "is left out" if self.spec.unseen == "none" else "is averaged over all that training has seen",
            )

    def warn_with(self, other: SideInformation) -> None:
        """Share the one warning with another network of the same run."""
        self._warned = other._warned

    def _fallback(self) -> Tensor:
        mean = self.embedding.mean(0)
        return mean if self.spec.unseen == "mean" else torch.zeros_like(mean)


def jigsaw_parts(num_patches: int, spec: JigsawSpec) -> list[list[int]]:
    """Patch positions of each part (TransReID, ICCV 2021, section on JPM).

    Patches are rolled; if their number is not a multiple of the groups, the second-to-last one is repeated; they
    are dealt out over the groups and cut into ``spec.parts`` equal parts, and what is left over is dropped.

    Raises:
        ConfigError: If there are too few patches.
    """
    length = num_patches // spec.parts
    if not length or num_patches < 2:
        raise ConfigError(f"amg.jpm.parts {spec.parts} is too much for {num_patches} patches.")
    if spec.groups > num_patches:
        raise ConfigError(f"amg.jpm.groups {spec.groups} is too much for {num_patches} patches.")
    order = [(position + spec.shift - 1) % num_patches for position in range(num_patches)]
    order += [order[-2]] * (-num_patches % spec.groups)
    size = len(order) // spec.groups
    dealt = [order[group * size + place] for place in range(size) for group in range(spec.groups)]
    return [dealt[part * length : (part + 1) * length] for part in range(spec.parts)]


class JigsawBranch(nn.Module):
    """The local branch: a copy of the backbone's last block and norm that all parts share.

    Raises:
        ConfigError: If the ViT has no class token, or too few patches.
    """

    def __init__(self, backbone: VisionTransformer, spec: JigsawSpec) -> None:
        super().__init__()
        if not backbone.has_class_token:
            raise ConfigError("The jigsaw patch module needs a ViT with a class token.")
        check_not_rotary(backbone, "The jigsaw patch module (amg.jpm)")
        self.prefix = backbone.num_prefix_tokens
        self.parts = spec.parts
        positions = torch.tensor(jigsaw_parts(backbone.patch_embed.num_patches, spec)).flatten() + self.prefix
        self.register_buffer("positions", positions, persistent=False)
        self.copy_last_block(backbone)

    def copy_last_block(self, backbone: VisionTransformer) -> None:
        """Start over from the backbone's last block and norm."""
        self.block = copy.deepcopy(backbone.blocks[-1])
        self.norm = copy.deepcopy(backbone.norm)

    def forward(self, tokens: Tensor) -> Tensor:
        """Local features ``[B, parts, D]`` of what the last block receives, ``[B, prefix + patches, D]``."""
        batch, _, width = tokens.shape
        patches = tokens.index_select(1, self.positions).reshape(batch * self.parts, -1, width)
        prefix = tokens[:, : self.prefix].repeat_interleave(self.parts, dim=0)
        out = self.norm(self.block(torch.cat((prefix, patches), dim=1)))
        return out[:, 0].reshape(batch, self.parts, width)


class TransReID(ReIDModel):
    """TransReID's network; without side information and jigsaw module a plain :class:`ReIDModel`.

    In eval mode features ``[B, D]``, with the jigsaw module ``[B, (1 + parts) D]``: the global one, then the local ones
    divided by their number. In training mode logits and features before the necks, as :class:`ReIDModel`; with the
    jigsaw module lists of them, the global branch first.
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
        """Record which cameras the rows of the side information stand for, see ``SideInformationSpec.camera_table``.

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
