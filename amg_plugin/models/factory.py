"""``vit_amg``, ``vit_amg_small`` and ``vit_amg_tiny``: the constructors that torchreid's ``build_model`` calls."""

from __future__ import annotations

from typing import Any

from amg_plugin.errors import CheckpointError, InputError
from amg_plugin.models.build import build_network
from amg_plugin.models.jigsaw import JigsawSpec
from amg_plugin.models.reducers import METHODS as REDUCERS
from amg_plugin.models.reducers.solve import with_reducer
from amg_plugin.models.reid import ModelSpec, ReIDModel
from amg_plugin.models.side_information import SideInformationSpec
from amg_plugin.models.weights import load_backbone_weights
from amg_plugin.plugin.active import active_amg_config

ARCHITECTURES = {
    "vit_amg": "vit_base_patch16_224",
    "vit_amg_small": "vit_small_patch16_224",
    "vit_amg_tiny": "vit_tiny_patch16_224",
}
DEFAULT_IMAGE_SIZE = (256, 128)


def spec_from_config(amg: Any, *, num_classes: int, loss: str, default_arch: str = "") -> ModelSpec:
    """Describe the network that an ``amg`` configuration node stands for.

    Args:
        amg: The node, see :mod:`amg_plugin.config.load`; ``amg.sie.cameras`` -1 counts as 1, see
            :func:`amg_plugin.runs.setup.build_model`.
        num_classes: Number of training identities.
        loss: ``"softmax"`` or ``"triplet"``.
        default_arch: timm's name that counts where ``amg.arch`` is empty.

    Returns:
        The description; nothing is built.
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
        image_size=tuple(amg.image_size) or DEFAULT_IMAGE_SIZE,
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


def fit_reducer(spec: ModelSpec, amg: Any) -> ModelSpec:
    """Give a network the reducer that the configuration asks for.

    Args:
        spec: The network, of a configuration or of a checkpoint.
        amg: The node; ``amg.reducer`` and ``amg.target_macs_saving`` count.

    Raises:
        CheckpointError: If the network has another reducer.
        ConfigError: If the target cannot be met.
    """
    wanted = amg.reducer if amg.reducer in REDUCERS else None
    if spec.reducer is None:
        return spec if wanted is None else with_reducer(spec, wanted, amg.target_macs_saving)
    if (spec.reducer.method, spec.reducer.saving) != (wanted, amg.target_macs_saving):
        raise CheckpointError(
            f"The checkpoint's network has amg.reducer '{spec.reducer.method}' with amg.target_macs_saving "
            f"{spec.reducer.saving:g}, the configuration says '{amg.reducer}' with {amg.target_macs_saving:g}; use the "
            "checkpoint's values."
        )
    return spec


def _build(name: str, num_classes: int, loss: str, pretrained: bool) -> ReIDModel:
    amg = active_amg_config()
    spec = spec_from_config(amg, num_classes=num_classes, loss=loss, default_arch=ARCHITECTURES[name])
    if (spec.overrides or spec.attention_scale) and pretrained and not amg.weights:
        raise InputError(
            "timm has no pretrained weights for a changed architecture (amg.override); "
            "set model.pretrained to False or give amg.weights."
        )
    spec = fit_reducer(spec, amg)
    model = build_network(spec, pretrained=pretrained and not amg.weights)
    if amg.weights:
        load_backbone_weights(model.backbone, amg.weights)
        model.backbone_loaded()
    return model


def vit_amg(num_classes: int, loss: str = "softmax", pretrained: bool = True, use_gpu: bool = True) -> ReIDModel:
    """ViT-B/16, or whatever ``amg.arch`` names.

    Args:
        num_classes: Number of training identities.
        loss: ``"softmax"`` or ``"triplet"``.
        pretrained: Start from timm's weights, unless ``amg.weights`` names a local file, which always counts.
        use_gpu: Part of torchreid's call; the model is built on the CPU and moved by the caller.

    Raises:
        InputError: If the configuration is impossible or the weights cannot be had.
    """
    return _build("vit_amg", num_classes, loss, pretrained)


def vit_amg_small(num_classes: int, loss: str = "softmax", pretrained: bool = True, use_gpu: bool = True) -> ReIDModel:
    """ViT-S/16; arguments as :func:`vit_amg`."""
    return _build("vit_amg_small", num_classes, loss, pretrained)


def vit_amg_tiny(num_classes: int, loss: str = "softmax", pretrained: bool = True, use_gpu: bool = True) -> ReIDModel:
    """ViT-Ti/16; arguments as :func:`vit_amg`."""
    return _build("vit_amg_tiny", num_classes, loss, pretrained)
