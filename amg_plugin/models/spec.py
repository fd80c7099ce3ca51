"""Descriptions of networks as plain data, and how they follow from a configuration."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from yacs.config import CfgNode

from amg_plugin.config.schema import check_value
from amg_plugin.errors import AMGError, CheckpointError, ConfigError, shown
from amg_plugin.registries import REDUCERS
from amg_plugin.utils.preprocessing import LARGEST_INPUT

#: Names that ``model.name`` takes, and what timm calls the ViT that each stands for.
ARCHITECTURES = {
    "vit_amg": "vit_base_patch16_224",
    "vit_amg_small": "vit_small_patch16_224",
    "vit_amg_tiny": "vit_tiny_patch16_224",
}
_IMAGE_SIZE = (256, 128)
#: Most modules of a kind that are built one by one.
_MOST = {"depth": 256, "parts": 1024}


@dataclass(frozen=True)
class SideInformationSpec:
    """Size and use of TransReID's side information embedding.

    Attributes:
        cameras: Training cameras; 0 means that cameras do not count.
        views: Training views; 0 means that views do not count.
        coefficient: Factor of the embedding.
        unseen: What an image of an unknown camera or view gets: ``"none"`` (nothing) or ``"mean"`` (the mean vector).
        camera_table: Which cameras the rows stand for: camera numbers by training data set, in the order of the rows;
            empty if unknown (imported networks).
    """

    cameras: int = 0
    views: int = 0
    coefficient: float = 3.0
    unseen: str = "none"
    camera_table: dict[str, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.cameras < 0 or self.views < 0 or self.cameras + self.views == 0:
            raise ConfigError(
                f"Side information of {self.cameras} cameras and {self.views} views is impossible; "
                "at least one of them is needed."
            )
        check_value("amg.sie.unseen", self.unseen)
        table = {str(name): [int(number) for number in numbers] for name, numbers in self.camera_table.items()}
        object.__setattr__(self, "camera_table", table)  # plain data, for checkpoints
        named = sum(map(len, table.values()))
        if table and named != self.cameras:
            raise ConfigError(f"Side information of {self.cameras} cameras cannot name {named} of them.")

    @property
    def rows(self) -> int:
        """Number of learned vectors."""
        return max(self.cameras, 1) * max(self.views, 1)


@dataclass(frozen=True)
class JigsawSpec:
    """TransReID's jigsaw module: patches are rolled by ``shift - 1`` places, dealt out over groups, cut into parts."""

    parts: int = 4
    shift: int = 5
    groups: int = 2

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 1 <= value <= _MOST["parts"]:
                raise ConfigError(f"amg.jpm.{name} {shown(value)} is impossible; allowed: 1 to {_MOST['parts']}.")


@dataclass(frozen=True)
class ReducerSpec:
    """A token reducer and the number of tokens that it leaves, prefix tokens not counted.

    Attributes:
        method: A name of :data:`amg_plugin.registries.REDUCERS`.
        tokens: Per block, the tokens that leave it. For ``evit`` the token that the dropped ones are fused into counts.
        saving: Share of the dense network's MACs that was asked for.
    """

    method: str
    tokens: tuple[int, ...]
    saving: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "tokens", tuple(int(count) for count in self.tokens))
        REDUCERS.row(self.method)

    def entering(self, num_patches: int) -> list[int]:
        """Per block, the tokens that enter it."""
        return [num_patches, *self.tokens[:-1]]

    def check(self, depth: int, num_patches: int) -> None:
        """Check that a ViT can do it.

        Raises:
            ConfigError: If the blocks are not as many, or a block cannot leave as few tokens or leaves more than enter.
        """
        if len(self.tokens) != depth:
            raise ConfigError(f"The reducer lists tokens for {len(self.tokens)} blocks, the model has {depth}.")
        fewest = REDUCERS.load(self.method)().fewest
        for block, (before, after) in enumerate(zip(self.entering(num_patches), self.tokens, strict=True)):
            if not fewest(before) <= after <= before:
                raise ConfigError(
                    f"The reducer '{self.method}' cannot leave {after} of {before} tokens in block {block}; allowed: "
                    f"{fewest(before)} to {before}."
                )


_PARTS = {"side_information": SideInformationSpec, "jigsaw": JigsawSpec, "reducer": ReducerSpec}


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
        part_hidden, part_dropout: Hidden width (0 means the published one) and dropout rate of its classifiers.
        side_information, jigsaw: TransReID's camera and view embedding and jigsaw patch module, or None.
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
        for name, count in (("depth", self.overrides.get("depth", 0)), ("parts", self.parts)):
            if count > _MOST[name]:
                raise ConfigError(f"A network of {name} {shown(count)} is impossible; at most {_MOST[name]}.")
        if math.prod(self.image_size) > LARGEST_INPUT:
            raise ConfigError(f"Images of {shown(self.image_size)} are too large; at most {LARGEST_INPUT} pixels.")
        for name, kind in _PARTS.items():
            if isinstance(value := getattr(self, name), dict):
                object.__setattr__(self, name, kind(**value))
        for key, value in (("loss.name", self.loss), ("amg.neck_feat", self.neck_feat), ("amg.head", self.head)):
            check_value(key, value)
        if self.head == "parts" and (self.side_information or self.jigsaw):
            raise ConfigError("amg.head 'parts' cannot be joined with side information (amg.sie) or amg.jpm.")
        if self.reducer and (self.head == "parts" or self.side_information or self.jigsaw):
            raise ConfigError(
                f"amg.reducer '{self.reducer.method}' works on a plain ViT only: parts, the jigsaw module and side "
                "information need every token in its place."
            )

    def backbone(self) -> dict[str, Any]:
        """What describes the structure of the ViT: arguments of :func:`amg_plugin.models.vit.build_backbone`."""
        names = ("arch", "image_size", "stride", "overrides", "attention_scale", "layer_norm_eps")
        return {name: getattr(self, name) for name in names}

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
        except AMGError:
            raise
        except Exception as error:  # values of any type fail anywhere
            raise CheckpointError(f"The model description of the checkpoint cannot be read: {error}.") from error


def spec_from_config(amg: CfgNode, *, num_classes: int, loss: str, default_arch: str = "") -> ModelSpec:
    """Describe the network that an ``amg`` configuration node stands for.

    Args:
        amg: The node; ``amg.sie.cameras`` -1 counts as 1, see :func:`amg_plugin.runs.setup.build_model`.
        num_classes: Number of training identities.
        loss: ``"softmax"`` or ``"triplet"``.
        default_arch: timm's name that counts where ``amg.arch`` is empty.
    """
    overrides = {key: value for key, value in dict(amg.override).items() if value}
    attention_scale = overrides.pop("attention_scale", None)
    if overrides.pop("qkv_bias", False) is False:
        overrides["qkv_bias"] = False
    side = jigsaw = None
    if amg.sie.enabled:
        # torchreid's build_model does not say how many cameras there are, and its engines pass none: one row will do.
        cameras = 1 if amg.sie.cameras < 0 else amg.sie.cameras
        side = SideInformationSpec(cameras, amg.sie.views, amg.sie.coefficient, amg.sie.unseen)
    if amg.jpm.enabled:
        jigsaw = JigsawSpec(amg.jpm.parts, amg.jpm.shift, amg.jpm.groups)
    return ModelSpec(
        arch=amg.arch or default_arch,
        image_size=tuple(amg.image_size) or _IMAGE_SIZE,
        num_classes=num_classes,
        stride=amg.stride,
        loss=loss,
        neck_feat=amg.neck_feat,
        drop_path=amg.drop_path,
        overrides=overrides,
        attention_scale=attention_scale,
        head=amg.head,
        parts=amg.parts.number,
        part_hidden=amg.parts.hidden,
        part_dropout=amg.parts.dropout,
        side_information=side,
        jigsaw=jigsaw,
    )
