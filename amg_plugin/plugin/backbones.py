"""torchreid's networks by name: input size, building without downloads, weight files, cost."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from amg_plugin import compat
from amg_plugin.config.active import using_amg_config
from amg_plugin.errors import CheckpointError, InputError
from amg_plugin.models import complexity
from amg_plugin.models.weights import load_strictly, read_state_dict
from amg_plugin.plugin.registry import MODELS, register

#: Height and width in pixels that a network is built for; all others take any size.
FIXED_SIZES = {"hacnn": (160, 64)}


def model_names() -> list[str]:
    """Every name that torchreid's ``build_model`` takes, the plugin's included, in alphabetical order."""
    register()
    return sorted(compat.model_factory())


def torchreid_names() -> list[str]:
    """torchreid's own names."""
    return [name for name in model_names() if name not in MODELS]


def check_name(name: str) -> str:
    """Give ``name`` back.

    Raises:
        InputError: If torchreid has no such network; the message lists those it has.
    """
    if name not in model_names():
        raise InputError(f"torchreid has no network '{name}'; it has {', '.join(model_names())}.")
    return name


def input_size(name: str, wanted: tuple[int, int]) -> tuple[int, int]:
    """Height and width that a network gets where ``wanted`` is asked for."""
    return FIXED_SIZES.get(name, wanted)


def build(name: str, amg: CfgNode, *, on_meta: bool = False) -> nn.Module:
    """Build a network with random weights; nothing is downloaded.

    Args:
        name: One of :func:`model_names`.
        amg: The ``amg`` node, for the plugin's own.
        on_meta: Without memory for weights, to be counted only.

    Returns:
        The network in eval mode, with a classifier for one identity.
    """
    with torch.device("meta" if on_meta else "cpu"), using_amg_config(amg):
        model = compat.torchreid().models.build_model(
            name=name, num_classes=1, loss="softmax", pretrained=False, use_gpu=False
        )
    return model.eval()


def cost(model: nn.Module, name: str, height: int, width: int) -> dict[str, int]:
    """What a network costs, by one definition for all of them.

    Args:
        model: The network, on any device.
        name: Its name, for messages.
        height: Image height in pixels.
        width: Image width in pixels.

    Returns:
        ``params``, ``macs`` (one image) and ``size`` (bytes of parameters and buffers), all without classifier.

    Raises:
        InputError: If it does not take images of that size.
    """
    try:
        with next(model.parameters()).device:  # some make tensors while images pass through
            counted = complexity.count(model, height, width)
    except (RuntimeError, AssertionError, ValueError, IndexError, NotImplementedError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{name} does not take images of {height}x{width} (height x width): {reason}.") from error
    size = sum(value.numel() * value.element_size() for value in without_classifier(model.state_dict()).values())
    return {"params": counted["params"], "macs": counted["macs"], "size": size}


def without_classifier(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The entries of a state dict that feature extraction needs."""
    return {name: value for name, value in state.items() if not complexity.is_classifier(name.rpartition(".")[0])}


def load_weights(model: nn.Module, name: str, file: str | Path) -> None:
    """Load torchreid's checkpoint, or a bare state dict, as data only.

    The classifier may be for any number of identities and is left out; everything else must be there and fit, since a
    network that is half random gives features that look like results.

    Args:
        model: The network, changed in place.
        name: Its name, for messages.
        file: ``.pth``, ``.pth.tar`` or ``.safetensors``.

    Raises:
        CheckpointError: If the file cannot be read as data, or does not fit.
    """
    try:
        state = {key.removeprefix("module."): value for key, value in read_state_dict(file).items()}
    except CheckpointError as error:
        raise CheckpointError(f"{error} (A checkpoint of amg-reid is given with --checkpoint.)") from error
    features = without_classifier(model.state_dict())
    # Counters of batches, which files of old torch releases lack, take no part in the features.
    optional = {key for key in model.state_dict() if key not in features or key.endswith(".num_batches_tracked")}
    load_strictly(model, without_classifier(state), f"The weights in '{file}' are not those of {name}", optional)
