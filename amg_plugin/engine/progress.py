"""Progress bar over the batches of an epoch."""

from __future__ import annotations

from tqdm import tqdm

from amg_plugin.engine.hooked import HookedEngine
from amg_plugin.engine.hooks import Hook


class ProgressHook(Hook):
    """A bar per epoch with the current loss terms; silent when not on a terminal."""

    def __init__(self) -> None:
        self._bar: tqdm | None = None

    def before_epoch(self, engine: HookedEngine) -> None:
        """Open the bar."""
        label = f"epoch {engine.epoch + 1}/{engine.max_epoch}"
        self._bar = tqdm(total=len(engine.train_loader), desc=label, leave=False, disable=None)

    def after_step(self, engine: HookedEngine, summary: dict[str, float]) -> None:
        """Move it on."""
        self._bar.set_postfix({name: f"{value:.3f}" for name, value in summary.items()}, refresh=False)
        self._bar.update()

    def after_epoch(self, engine: HookedEngine) -> None:
        """Close it."""
        self._bar.close()
