"""The plugin's image engines: torchreid's softmax and triplet engines with hooks."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from yacs.config import CfgNode

from amg_plugin import compat
from amg_plugin.engine.hooked import HookedEngine
from amg_plugin.engine.losses import SoftMarginTripletLoss

_stock = compat.torchreid().engine


class AMGSoftmaxEngine(HookedEngine, _stock.ImageSoftmaxEngine):
    """torchreid's ``ImageSoftmaxEngine`` with the plugin's hooks.

    Args:
        datamanager: torchreid's or the plugin's image data manager.
        model: The network.
        optimizer: Its optimiser.
        cfg: The whole configuration.
        hooks: Listeners.
        **kwargs: ``scheduler``, ``use_gpu``, ``label_smooth`` as in torchreid.
    """

    def task_losses(self, outputs: Any, pids: Tensor) -> dict[str, tuple[float, Tensor]]:
        """Cross entropy."""
        return {"loss": (1.0, self.compute_loss(self.criterion, outputs, pids))}


class AMGTripletEngine(HookedEngine, _stock.ImageTripletEngine):
    """torchreid's ``ImageTripletEngine`` with the plugin's hooks and, by ``amg.soft_margin``, a soft margin.

    Args:
        datamanager: torchreid's or the plugin's image data manager.
        model: The network.
        optimizer: Its optimiser.
        cfg: The whole configuration.
        hooks: Listeners.
        **kwargs: ``scheduler``, ``use_gpu``, ``label_smooth``, ``margin``, ``weight_t``, ``weight_x`` as in torchreid.
    """

    def __init__(self, *args: Any, cfg: CfgNode, **kwargs: Any) -> None:
        super().__init__(*args, cfg=cfg, **kwargs)
        if cfg.amg.soft_margin:
            self.criterion_t = SoftMarginTripletLoss()

    def logits_of(self, outputs: Any) -> Any:
        """The first of (logits, features)."""
        return outputs[0]

    def task_losses(self, outputs: Any, pids: Tensor) -> dict[str, tuple[float, Tensor]]:
        """Triplet loss on the features and cross entropy on the logits, each if it has a weight."""
        logits, features = outputs
        terms = {}
        if self.weight_t > 0:
            terms["loss_t"] = (self.weight_t, self.compute_loss(self.criterion_t, features, pids))
        if self.weight_x > 0:
            terms["loss_x"] = (self.weight_x, self.compute_loss(self.criterion_x, logits, pids))
        return terms
