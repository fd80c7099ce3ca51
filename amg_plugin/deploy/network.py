"""An exported file in the place of a network, for evaluation."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from amg_plugin.checkpoint import Checkpoint
from amg_plugin.deploy.exported_file import ExportedFile
from amg_plugin.deploy.info import ExportInfo
from amg_plugin.errors import ConfigError
from amg_plugin.models.side_information import SideInformation
from amg_plugin.models.spec import ModelSpec
from amg_plugin.pruning import PruningPlan


class ExportedNetwork(nn.Module):
    """Runs an exported file on what torchreid's loaders give; evaluation only.

    Args:
        file: The file, opened.
    """

    def __init__(self, file: ExportedFile) -> None:
        super().__init__()
        self.file = file
        self.spec = ModelSpec.from_dict(file.info.spec)
        self.uses_cameras = bool(file.info.label_inputs)
        # Says which cameras are unseen; its vectors are inside the file.
        self.side_information = SideInformation(self.spec.side_information, width=1) if self.uses_cameras else None
        for name in ("mean", "std"):
            values = torch.tensor(getattr(file.info.preprocessing, name)).reshape(1, 3, 1, 1)
            self.register_buffer(name, values, persistent=False)

    def forward(self, images: Tensor, camids: Tensor | None = None, viewids: Tensor | None = None) -> Tensor:
        """Features ``[B, D]`` of normalised images ``[B, 3, height, width]``; labels as in the reference network.

        Raises:
            RuntimeError: In training mode.
        """
        if self.training:
            raise RuntimeError("an exported file cannot be trained")
        if self.file.info.normalize_input:
            images = images * self.std + self.mean
        labels = {"camids": camids, "viewids": viewids}
        given = {name: column.cpu().numpy() for name, column in labels.items() if column is not None}
        return torch.from_numpy(self.file.features(images.float().cpu().numpy(), given))


def as_checkpoint(info: ExportInfo) -> Checkpoint:
    """What an exported file knows of its checkpoint: everything but weights and history."""
    return Checkpoint(
        spec=ModelSpec.from_dict(info.spec),
        plan=PruningPlan.from_dict(info.plan),
        weights={},
        config=dict(info.config),
        preprocessing=info.preprocessing,
    )


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
