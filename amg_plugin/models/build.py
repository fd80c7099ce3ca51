"""Which network a description stands for."""

from __future__ import annotations

from amg_plugin.models.la_transformer import LATransformer
from amg_plugin.models.reducers.network import ReducedReIDModel
from amg_plugin.models.reid import ModelSpec, ReIDModel
from amg_plugin.models.transreid import TransReID


def build_network(spec: ModelSpec, pretrained: bool = False) -> ReIDModel:
    """Build the network of a description.

    Args:
        spec: What to build.
        pretrained: Take timm's weights for the backbone.

    Raises:
        ConfigError: If the description is impossible.
        InputError: If the weights cannot be had.
    """
    if spec.reducer:
        return ReducedReIDModel(spec, pretrained)
    if spec.head == "parts":
        return LATransformer(spec, pretrained)
    if spec.side_information or spec.jigsaw:
        return TransReID(spec, pretrained)
    return ReIDModel(spec, pretrained)
