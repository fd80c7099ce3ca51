"""Keeps the best model of a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from amg_plugin.checkpoint import BEST_CHECKPOINT
from amg_plugin.engine.hooked import HookedEngine
from amg_plugin.engine.hooks import Hook


class BestModelHook(Hook):
    """Writes the model with the best mAP of the first target.

    Args:
        save_dir: Folder of the checkpoint.
        eligible: Says whether an evaluation counts; for pruning, whether the structure is final.

    Attributes:
        best: ``{"epoch", "mAP"}`` of the kept model, empty before the first.
    """

    def __init__(self, save_dir: str | Path, eligible: Callable[[], bool] = lambda: True) -> None:
        self.path = Path(save_dir) / BEST_CHECKPOINT
        self.eligible = eligible
        self.best: dict[str, float] = {}

    def after_test(self, engine: HookedEngine) -> None:
        """Compare and write."""
        score = engine.first_result["mAP"]
        if self.eligible() and score > self.best.get("mAP", -1.0):
            self.best = {"epoch": engine.epoch, "mAP": score}
            engine.write_checkpoint(self.path)
