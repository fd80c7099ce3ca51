"""Networks as they are written into files, as the reference of files, and files in the place of networks."""

from __future__ import annotations

import copy
from pathlib import Path, PurePath

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from yacs.config import CfgNode

from amg_plugin.checkpoint import Checkpoint, read_checkpoint
from amg_plugin.deploy.exported_file import ExportedFile, ExportInfo
from amg_plugin.deploy.fast.layers import FastBlock, FastLinear
from amg_plugin.deploy.fast.network import FastNetwork, fast, has_fast_form
from amg_plugin.deploy.images import as_given
from amg_plugin.deploy.runtimes import torch_device
from amg_plugin.errors import CheckpointError, ConfigError, InputError
from amg_plugin.models.complexity import CLASSIFIERS
from amg_plugin.models.reid import ReIDModel
from amg_plugin.models.spec import ModelSpec
from amg_plugin.models.transreid import SideInformation
from amg_plugin.pruning import PruningPlan
from amg_plugin.utils.files import sha256
from amg_plugin.utils.preprocessing import not_recorded
from amg_plugin.version import __version__


def label_inputs(network: ReIDModel) -> tuple[str, ...]:
    """Labels that make a difference to the network, in the order of its arguments."""
    side = network.spec.side_information
    counts = {} if side is None else {"camids": side.cameras, "viewids": side.views}
    return tuple(name for name, count in counts.items() if count)


def _without_classifiers(network: ReIDModel) -> ReIDModel:
    """A copy in eval mode without what extracting features does not run."""
    network = copy.deepcopy(network).eval().requires_grad_(False)
    for name in CLASSIFIERS:
        if isinstance(getattr(network, name, None), nn.Module):
            setattr(network, name, nn.Identity())
    return network


def _in_half_precision(network: FastNetwork) -> FastNetwork:
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

    That is its fast form, without the work that pruning and pooling make needless, where it has one; ``half`` computes
    linear layers and attention in float16.

    Raises:
        InputError: If half precision is asked for and the network has no fast form.
    """
    if has_fast_form(network):
        form = fast(network, pack=False)
        return _in_half_precision(form) if half else form
    if half:
        raise InputError("--fp16 is not for networks with token reducers; leave it out.")
    return _without_classifiers(network)


class FeatureGraph(nn.Module):
    """What is exported: a network that takes labels by keyword, with what its description asks for around it."""

    def __init__(self, network: nn.Module, info: ExportInfo) -> None:
        super().__init__()
        self.network, self.labels = network, info.label_inputs
        self.l2_normalize = info.l2_normalize
        subtract, divide = info.preprocessing.left_to_do(info.input)
        self.normalizes = any(subtract) or any(value != 1 for value in divide)
        for name, numbers in (("mean", subtract), ("std", divide)):
            values = torch.tensor(numbers, dtype=torch.float32).reshape(1, 3, 1, 1)
            # A prefix of its own: ONNX puts all names into one space, and decomposed norms have a 'mean', too.
            self.register_buffer(f"input_{name}", values if self.normalizes else None, persistent=False)

    def forward(self, images: Tensor, *labels: Tensor) -> Tensor:
        """Features float32 ``[B, D]`` of images float32 ``[B, 3, height, width]`` and labels int64 ``[B]``."""
        if self.normalizes:
            images = (images - self.input_mean) / self.input_std
        features = self.network(images, **dict(zip(self.labels, labels, strict=True)))
        return F.normalize(features, dim=1) if self.l2_normalize else features


class CheckpointFile(ExportedFile):
    """A checkpoint in PyTorch behind the interface of exported files, which are compared with it.

    Raises:
        CheckpointError: If it cannot be read, or does not record how images are prepared.
        InputError: If torch lacks the device.
    """

    def __init__(self, path: str | Path, device: str = "cpu") -> None:
        path, checkpoint = Path(path), read_checkpoint(path)
        self.device = torch_device(device)
        network = checkpoint.build()
        super().__init__(path, _describe(path, checkpoint, network))
        self.network = network.to(self.device)
        self.runtime = f"torch {torch.__version__}"

    def run(self, columns: list[np.ndarray]) -> np.ndarray:
        """As :meth:`ExportedFile.run`."""
        images, *labels = (torch.from_numpy(column).to(self.device) for column in columns)
        with torch.no_grad():
            features = self.network(images, **dict(zip(self.info.label_inputs, labels, strict=True)))
        return features.float().cpu().numpy()


def _describe(path: Path, checkpoint: Checkpoint, network: ReIDModel) -> ExportInfo:
    """What there is to say about a checkpoint's network; ``file_format`` is ``checkpoint``."""
    if checkpoint.preprocessing is None:
        raise not_recorded(path)
    info = ExportInfo(
        file_format="checkpoint",
        precision="fp32",
        batch=None,
        inputs=("images", *label_inputs(network)),
        input="network",
        l2_normalize=False,
        feature_dim=network.feature_dim,
        preprocessing=checkpoint.preprocessing,
        spec=checkpoint.spec.to_dict(),
        plan=checkpoint.plan.to_dict(),
        source={"name": path.name, "sha256": sha256(path), "metrics": checkpoint.latest_scores},
        config=_without_folders(checkpoint.config),
        versions={"amg_plugin": __version__, "torch": torch.__version__},
    )
    if info.image_size != checkpoint.spec.image_size:
        raise CheckpointError(
            f"'{path}' prepares images of {info.image_size} for a network of {checkpoint.spec.image_size}."
        )
    return info


def _without_folders(config: dict) -> dict:
    """A configuration without folders of the machine that trained; of other files the names are left."""
    config = copy.deepcopy(config)
    data, amg = (config[name] if isinstance(config.get(name), dict) else {} for name in ("data", "amg"))
    for key in ("root", "save_dir"):
        data.pop(key, None)
    distill = amg.get("distill")
    for node, key in ((amg, "weights"), (distill if isinstance(distill, dict) else {}, "teacher")):
        if isinstance(node.get(key), str):
            node[key] = PurePath(node[key].replace("\\", "/")).name
    return config


class ExportedNetwork(nn.Module):
    """Runs an exported file on what torchreid's loaders give; evaluation only."""

    def __init__(self, file: ExportedFile) -> None:
        super().__init__()
        self.file = file
        self.spec = ModelSpec.from_dict(file.info.spec)
        self.uses_cameras = bool(file.info.label_inputs)
        # Says which cameras are unseen; its vectors are inside the file.
        self.side_information = SideInformation(self.spec.side_information, width=1) if self.uses_cameras else None

    def forward(self, images: Tensor, camids: Tensor | None = None, viewids: Tensor | None = None) -> Tensor:
        """Features ``[B, D]`` of normalised images ``[B, 3, height, width]``; labels as in the reference network.

        Raises:
            RuntimeError: In training mode.
        """
        if self.training:
            raise RuntimeError("an exported file cannot be trained")
        labels = {"camids": camids, "viewids": viewids}
        given = {name: column.cpu().numpy() for name, column in labels.items() if column is not None}
        batch = as_given(images.float().cpu().numpy(), self.file.info.preprocessing, self.file.info.input)
        return torch.from_numpy(self.file.features(batch, given))


def as_checkpoint(info: ExportInfo) -> Checkpoint:
    """What an exported file knows of its checkpoint: everything but weights and history."""
    spec, plan = ModelSpec.from_dict(info.spec), PruningPlan.from_dict(info.plan)
    return Checkpoint(spec, plan, weights={}, config=dict(info.config), preprocessing=info.preprocessing)


def check_unchanged(info: ExportInfo, cfg: CfgNode) -> None:
    """Check that a configuration asks for nothing that is fixed inside the file.

    Raises:
        ConfigError: If it does.
    """
    spec = ModelSpec.from_dict(info.spec)
    fixed = [("amg.neck_feat", spec.neck_feat, cfg.amg.neck_feat)]
    if spec.side_information is not None:
        fixed.append(("amg.sie.unseen", spec.side_information.unseen, cfg.amg.sie.unseen))
    for key, inside, asked in fixed:
        if inside != asked:
            raise ConfigError(f"{key} is '{inside}' inside the exported file and cannot be made '{asked}' any more.")
