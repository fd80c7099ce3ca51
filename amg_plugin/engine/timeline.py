"""The course of a run while it goes on: a line in the log for each epoch, how long the rest takes, and curves."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from yacs.config import CfgNode

from amg_plugin.config import get_default_config, to_plain_dict
from amg_plugin.config.rules import value_of
from amg_plugin.config.schema import KEYS
from amg_plugin.engine.curves import Curves
from amg_plugin.engine.hooks import Hook
from amg_plugin.models import complexity
from amg_plugin.models.vit import unwrap
from amg_plugin.pruning import PruningPlan, current_plan
from amg_plugin.pruning.schedule import PruningSchedule
from amg_plugin.registries import TARGETS
from amg_plugin.utils.tables import duration

if TYPE_CHECKING:
    from amg_plugin.engine.hooked import HookedEngine

logger = logging.getLogger(__name__)

#: Keys that say where a run is, not what it does.
_PLACES = ("data.root", "data.save_dir", "data.workers")


def count(number: int, what: str) -> str:
    """A number of things: ``1 cut``, ``2 cuts``."""
    return f"{number} {what}{'s' * (number != 1)}"


def evaluations(cfg: CfgNode, start: int, end: int, last: int) -> int:
    """How often torchreid's loop of ``last`` epochs evaluates behind the epochs ``start + 1`` to ``end``."""
    every, first, behind = cfg.test.eval_freq, cfg.test.start_eval, range(start + 1, end + 1)
    return sum(epoch == last or (every > 0 and epoch >= first and epoch % every == 0) for epoch in behind)


class CourseHook(Hook):
    """A line per epoch in the log, with the time that is left, and curves of the structure in TensorBoard.

    What is left is counted in epochs, evaluations and cuts over the whole run, each at the pace of the latest one. What
    has not been timed yet is named. Pruning makes epochs shorter, so estimates before a cut are too long.

    Args:
        schedule: The schedule of pruning, if there is one. Stand in front of the hook that carries it out.
    """

    def __init__(self, schedule: PruningSchedule | None = None) -> None:
        self.schedule = schedule
        self._seconds: dict[str, float] = {}
        self._began: tuple[float, int] | None = None
        self._stepping: float | None = None
        self._is_whole = False
        self._testing = self._tested = 0.0
        self._plan: PruningPlan | None = None
        self._structure: dict[str, float] = {}

    def before_epoch(self, engine: HookedEngine) -> None:
        """Start to time cuts."""
        self._began, self._tested = (time.monotonic(), self._done), 0.0

    def layers_opened(self, engine: HookedEngine) -> None:
        """Time the cuts, start to time the steps, and draw the network that is trained."""
        self._stepping, self._is_whole = time.monotonic(), self._began is not None
        if self._began is not None:  # a run that goes on within its steps has no cuts before them
            started, done = self._began
            if cuts := self._done - done:
                self._seconds["cut"] = (self._stepping - started - self._tested) / cuts
        self._began = None
        self._draw(engine)

    def before_test(self, engine: HookedEngine) -> None:
        """Start to time an evaluation."""
        self._testing = time.monotonic()

    def after_test(self, engine: HookedEngine) -> None:
        """Time it."""
        self._seconds["evaluation"] = time.monotonic() - self._testing
        self._tested += self._seconds["evaluation"]

    def after_epoch(self, engine: HookedEngine) -> None:
        """Write the line."""
        spent = "" if self._stepping is None else f", {duration(time.monotonic() - self._stepping)}"
        if self._stepping is not None and self._is_whole:
            self._seconds["epoch"] = time.monotonic() - self._stepping
        self._stepping = None
        entry = next(one for one in reversed(engine.history) if one["event"] == "epoch")
        terms = ", ".join(f"{name} {value:.4g}" for name, value in entry["loss"].items()) or "no batch"
        accuracy = "" if entry["accuracy"] is None else f", accuracy {entry['accuracy']:.1%}"
        outcome = f"{terms}{accuracy}, lr {entry['lr']:.3g}{spent}"
        logger.info("epoch %d/%d: %s; left: %s", engine.epoch + 1, engine.max_epoch, outcome, self.left(engine))

    def left(self, engine: HookedEngine) -> str:
        """The time that is left after the current epoch, and what it is counted from."""
        parts = {
            "epoch": engine.max_epoch - engine.epoch - 1,
            "evaluation": evaluations(engine.cfg, engine.epoch, engine.max_epoch, engine.max_epoch)
            + bool(self.schedule and not self.schedule.finished),  # that behind the last cut
            "cut": len(self.schedule.cuts) - self._done if self.schedule else 0,
        }
        known = sum(number * self._seconds[name] for name, number in parts.items() if name in self._seconds)
        untimed = [count(number, name) for name, number in parts.items() if number and name not in self._seconds]
        listed = ", ".join(count(number, name) for name, number in parts.items() if number)
        times = [duration(known)] if known or not untimed else []
        return f"{' and '.join([*times, *untimed])} ({listed or 'nothing'})"

    @property
    def _done(self) -> int:
        return self.schedule.done if self.schedule else 0

    def _draw(self, engine: HookedEngine) -> None:
        """Add what is left of the network, and its MACs, to the curves; once, what the run is made with."""
        model = unwrap(engine.model)
        if self._plan is None and isinstance(engine.writer, Curves):
            scores = [f"Test/{target}/{score}" for target in engine.test_loader for score in ("rank1", "mAP")]
            engine.writer.add_hyperparameters(hyperparameters(engine.cfg), scores)
        plan = current_plan(model)
        if plan != self._plan:
            self._plan, size = plan, model.spec.image_size
            self._structure = {"MACs": complexity.count(model, *size)["macs"]}
            left = {target: plan.left(target) for target in TARGETS}
            left["tokens"] = getattr(model, "tokens_per_block", None) or left["tokens"]  # those of a reducer
            self._structure |= {target: sum(blocks) for target, blocks in left.items() if blocks}
        for name, value in self._structure.items():
            engine.writer.add_scalar(f"Structure/{name}", value, engine.epoch)


def hyperparameters(cfg: CfgNode) -> dict[str, bool | float | str]:
    """What a configuration says that the defaults do not: dotted keys and plain values, lists as text."""
    values, usual = to_plain_dict(cfg), to_plain_dict(get_default_config())
    pairs = {key: (value_of(values, key), value_of(usual, key)) for key in KEYS if key not in _PLACES}
    changed = {key: value for key, (value, default) in pairs.items() if value != default}
    return {key: value if isinstance(value, bool | int | float | str) else str(value) for key, value in changed.items()}
