"""Checkpoints of torchreid's own scripts (``model.pth.tar-N``): weights and an epoch, no description of the network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from yacs.config import CfgNode

from amg_plugin.config import get_default_config, to_plain_dict
from amg_plugin.config.active import active_amg_config
from amg_plugin.errors import AMGError, CheckpointError
from amg_plugin.models.build import build_network
from amg_plugin.models.complexity import is_classifier
from amg_plugin.models.spec import ARCHITECTURES, ModelSpec, spec_from_config
from amg_plugin.models.weights import check_fit, check_held

#: Width of the embedding of each of the plugin's names.
_NAMES = {768: "vit_amg", 384: "vit_amg_small", 192: "vit_amg_tiny"}


@dataclass(frozen=True)
class TorchreidState:
    """A network of the plugin that torchreid's script trained.

    Attributes:
        spec: The network, as the ``amg`` node in force describes it.
        weights: Its state dict, neck and classifier included.
        config: A configuration with that node, as plain data.
        epoch: Epochs that the script had trained for.
    """

    spec: ModelSpec
    weights: Mapping[str, Tensor]
    config: dict[str, Any]
    epoch: int


def is_torchreids(content: Any) -> bool:
    """Whether the content of a file has the form of torchreid's checkpoints."""
    return isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping) and "epoch" in content


def torchreid_state(content: Mapping[str, Any], path: str | Path) -> TorchreidState:
    """Describe a checkpoint of torchreid's by the ``amg`` node in force.

    Raises:
        CheckpointError: If it holds no network of the plugin, or one of another structure.
    """
    weights = {str(name).removeprefix("module."): value for name, value in content["state_dict"].items()}
    check_held(weights, f"The checkpoint '{path}' is refused")
    classes = [len(value) for name, value in weights.items() if is_classifier(name) and value.ndim == 2]
    if not classes or "backbone.patch_embed.proj.weight" not in weights:
        raise CheckpointError(
            f"'{path}' is a checkpoint of torchreid's, but not of {', '.join(ARCHITECTURES)}; only 'amg-reid compare "
            "--weights NAME=FILE' takes those of other networks."
        )
    amg = active_amg_config()
    name = _NAMES.get(len(weights["backbone.patch_embed.proj.weight"]), "vit_amg")
    try:
        spec = spec_from_config(amg, num_classes=classes[-1], loss="softmax", default_arch=ARCHITECTURES[name])
        with torch.device("meta"):  # where timm may fail to read the rates of drop path
            check_fit(build_network(ModelSpec.from_dict(spec.to_dict() | {"drop_path": 0.0})).state_dict(), weights)
    except AMGError as error:
        raise CheckpointError(
            f"'{path}' is a checkpoint of torchreid's, which does not say its structure, and the amg node in force "
            f"describes another network ({str(error).rstrip('.')}); give the node that it was trained with: "
            "'--amg-config FILE' in front of the command, or --config-file."
        ) from error
    return TorchreidState(spec, weights, _config(amg, name, spec), int(content["epoch"]))


def _config(amg: CfgNode, name: str, spec: ModelSpec) -> dict[str, Any]:
    cfg = get_default_config()
    cfg.amg, cfg.model.name, cfg.model.pretrained = amg, name, False
    cfg.data.height, cfg.data.width = spec.image_size
    return to_plain_dict(cfg)
