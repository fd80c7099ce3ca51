"""The only door from a description to a network."""

from __future__ import annotations

from pathlib import Path

from amg_plugin.errors import InputError
from amg_plugin.models.la_transformer import LATransformer
from amg_plugin.models.reducers.network import ReducedReIDModel
from amg_plugin.models.reid import ReIDModel
from amg_plugin.models.spec import ModelSpec
from amg_plugin.models.transreid import TransReID
from amg_plugin.models.weights import load_backbone_weights


def build_network(spec: ModelSpec, pretrained: bool = False, weights: str | Path = "") -> ReIDModel:
    """Build the network of a description, on the CPU.

    Args:
        spec: What to build.
        pretrained: Take timm's weights for the backbone, unless ``weights`` names a file.
        weights: Local file with weights for the backbone.

    Raises:
        ConfigError: If the description is impossible.
        InputError: If timm has no such weights or they cannot be downloaded, or the file does not fit.
    """
    if pretrained and not weights and (spec.overrides or spec.attention_scale):
        raise InputError(
            "timm has no pretrained weights for a changed architecture (amg.override); "
            "set model.pretrained to False or give amg.weights."
        )
    model = _network_class(spec)(spec, pretrained and not weights)
    if weights:
        load_backbone_weights(model.backbone, weights)
        model.backbone_loaded()
    return model


def _network_class(spec: ModelSpec) -> type[ReIDModel]:
    if spec.reducer:
        return ReducedReIDModel
    if spec.head == "parts":
        return LATransformer
    return TransReID if spec.side_information or spec.jigsaw else ReIDModel
