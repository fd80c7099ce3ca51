"""A checkpoint behind the interface of exported files: the reference that those are compared with."""

from __future__ import annotations

import copy
from pathlib import Path, PurePath

import numpy as np
import torch

from amg_plugin.checkpoint import Checkpoint, read_checkpoint
from amg_plugin.deploy.exported_file import ExportedFile
from amg_plugin.deploy.graph import label_inputs
from amg_plugin.deploy.info import ExportInfo
from amg_plugin.deploy.runtimes import torch_device
from amg_plugin.errors import CheckpointError
from amg_plugin.utils.files import sha256
from amg_plugin.utils.preprocessing import not_recorded
from amg_plugin.version import __version__

#: Folders of the machine that trained, which are left out of the configuration.
_FOLDERS = ("root", "save_dir")


class CheckpointFile(ExportedFile):
    """A checkpoint in PyTorch.

    Args:
        path: The file.
        checkpoint: What was read from it.
        device: Device of torch.
    """

    def __init__(self, path: Path, checkpoint: Checkpoint, device: str = "cpu") -> None:
        self.device = torch_device(device)
        network = checkpoint.build()
        super().__init__(path, describe(path, checkpoint, network.feature_dim, label_inputs(network)))
        self.network = network.to(self.device)
        self.runtime = f"torch {torch.__version__}"

    def run(self, columns: list[np.ndarray]) -> np.ndarray:
        """As :meth:`ExportedFile.run`."""
        images, *labels = (torch.from_numpy(column).to(self.device) for column in columns)
        with torch.no_grad():
            features = self.network(images, **dict(zip(self.info.label_inputs, labels, strict=True)))
        return features.float().cpu().numpy()


def open_checkpoint(path: str | Path, device: str = "cpu") -> CheckpointFile:
    """Open a checkpoint.

    Raises:
        CheckpointError: If it cannot be read, or does not record how images are prepared.
        InputError: If torch lacks the device.
    """
    return CheckpointFile(Path(path), read_checkpoint(path), device)


def describe(path: Path, checkpoint: Checkpoint, feature_dim: int, labels: tuple[str, ...]) -> ExportInfo:
    """What there is to say about a checkpoint's network; ``file_format`` is ``checkpoint``.

    Raises:
        CheckpointError: If the checkpoint does not record how images are prepared, or for another size.
    """
    if checkpoint.preprocessing is None:
        raise not_recorded(path)
    info = ExportInfo(
        file_format="checkpoint",
        precision="fp32",
        batch=None,
        inputs=("images", *labels),
        normalize_input=False,
        l2_normalize=False,
        feature_dim=feature_dim,
        preprocessing=checkpoint.preprocessing,
        spec=checkpoint.spec.to_dict(),
        plan=checkpoint.plan.to_dict(),
        source={"name": path.name, "sha256": sha256(path)},
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
    nodes = {name: config[name] if isinstance(config.get(name), dict) else {} for name in ("data", "amg")}
    for key in _FOLDERS:
        nodes["data"].pop(key, None)
    distill = nodes["amg"].get("distill")
    for node, key in ((nodes["amg"], "weights"), (distill if isinstance(distill, dict) else {}, "teacher")):
        if isinstance(node.get(key), str):
            node[key] = PurePath(node[key].replace("\\", "/")).name
    return config
