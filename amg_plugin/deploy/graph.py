"""The network as it is written into a file: images in, features out, nothing else."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amg_plugin.deploy.fast.layers import FastBlock, FastLinear
from amg_plugin.deploy.fast.network import FastNetwork, fast, has_fast_form
from amg_plugin.errors import InputError
from amg_plugin.models.complexity import CLASSIFIERS
from amg_plugin.models.reid import ReIDModel
from amg_plugin.utils.preprocessing import Preprocessing


def label_inputs(network: ReIDModel) -> tuple[str, ...]:
    """Labels that make a difference to the network, in the order of its arguments."""
    side = network.spec.side_information
    if side is None:
        return ()
    return tuple(name for name, count in (("camids", side.cameras), ("viewids", side.views)) if count)


def without_classifiers(network: ReIDModel) -> ReIDModel:
    """A copy in eval mode without what extracting features does not run."""
    network = copy.deepcopy(network).eval().requires_grad_(False)
    for name in CLASSIFIERS:
        if isinstance(getattr(network, name, None), nn.Module):
            setattr(network, name, nn.Identity())
    return network


def in_half_precision(network: FastNetwork) -> FastNetwork:
    """``network`` with linear layers and attention in float16, in place.

    Norms, residual sums and what the head computes stay in float32: pretrained ViTs have tokens with a few values so
    large that half precision would lose the others.
    """
    for module in network.modules():
        if isinstance(module, FastLinear):
            module.half()
        elif isinstance(module, FastBlock):
            for norm in (module.q_norm, module.k_norm, module.attention_norm, module.mlp_norm):
                if norm is not None:  # works on what linear layers give
                    norm.half()
    return network


def deployed(network: ReIDModel, *, half: bool = False) -> nn.Module:
    """A copy of a network in the form in which it is written into files.

    That is its fast form, without the work that pruning and pooling make needless, where it has one.

    Args:
        network: Any network of the plugin; it stays as it is.
        half: Linear layers and attention in float16.

    Raises:
        InputError: If half precision is asked for and the network has no fast form.
    """
    if has_fast_form(network):
        form = fast(network, pack=False)
        return in_half_precision(form) if half else form
    if half:
        raise InputError("--fp16 is not for networks with token reducers; leave it out.")
    return without_classifiers(network)


class FeatureGraph(nn.Module):
    """What is exported.

    Args:
        network: Gives features of normalised images in eval mode, and takes labels by keyword.
        labels: Names of the label inputs.
        preprocessing: Its mean and std are built in if ``normalize_input``.
        normalize_input: Take RGB from 0 to 1.
        l2_normalize: Give features of length 1.
    """

    def __init__(
        self,
        network: nn.Module,
        labels: tuple[str, ...],
        preprocessing: Preprocessing,
        *,
        normalize_input: bool = False,
        l2_normalize: bool = False,
    ) -> None:
        super().__init__()
        self.network, self.labels = network, labels
        self.normalize_input, self.l2_normalize = normalize_input, l2_normalize
        for name in ("mean", "std"):
            values = torch.tensor(getattr(preprocessing, name), dtype=torch.float32).reshape(1, 3, 1, 1)
            # A prefix of its own: ONNX puts all names into one space, and decomposed norms have a 'mean', too.
            self.register_buffer(f"input_{name}", values if normalize_input else None, persistent=False)

    def forward(self, images: Tensor, *labels: Tensor) -> Tensor:
        """Features float32 ``[B, D]`` of images float32 ``[B, 3, height, width]`` and labels int64 ``[B]``."""
        if self.normalize_input:
            images = (images - self.input_mean) / self.input_std
        features = self.network(images, **dict(zip(self.labels, labels, strict=True)))
        return F.normalize(features, dim=1) if self.l2_normalize else features
