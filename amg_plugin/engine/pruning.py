"""The pruning schedule inside one ``engine.run(...)``."""

from __future__ import annotations

import logging
import math
from typing import Any

from torch import nn
from yacs.config import CfgNode

from amg_plugin.engine.calibration import build_calibration, scoring_mode
from amg_plugin.engine.hooked import HookedEngine
from amg_plugin.engine.hooks import Hook
from amg_plugin.errors import ConfigError
from amg_plugin.models import complexity
from amg_plugin.models.rotary import check_not_rotary
from amg_plugin.models.vit import backbone_of, unwrap
from amg_plugin.pruning import PruningPlan, apply_plan, current_plan
from amg_plugin.pruning.budget import TOLERANCE, Budget, Choice, Goal, PlanCost, check_budget, choices
from amg_plugin.pruning.cut import PruningRules, carry_out
from amg_plugin.pruning.merging import MergeRange
from amg_plugin.pruning.schedule import Cut, PruningSchedule
from amg_plugin.pruning.streams import Repair
from amg_plugin.registries import TARGETS
from amg_plugin.utils import processes

logger = logging.getLogger(__name__)


class AMGPruningHook(Hook):
    """Scores, prunes, rebuilds optimiser and schedule, lets torchreid fine-tune, and repeats.

    Args:
        schedule: Stages and final epochs.
        rules: Scorers, weights per block and floors.
        token_variant: ``"kv"``, ``"block"`` or ``"merge"``.
        repair: How each cut is repaired; None: not at all.

    Attributes:
        snapshots: Scores per target of ``dense`` (before the first cut; ``start`` if the model was pruned already) and
            ``pruned`` (after the last cut, before the final fine-tuning).
        queries: What the queries contributed to them, by the same names.
    """

    def __init__(
        self, schedule: PruningSchedule, rules: PruningRules, token_variant: str, repair: Repair | None = None
    ) -> None:
        self.schedule = schedule
        self.rules = rules
        self.token_variant = token_variant
        self.repair = repair or Repair("none")
        self.snapshots: dict[str, dict[str, Any]] = {}
        self.queries: dict[str, dict[str, Any]] = {}
        self.cost: PlanCost | None = None

    @classmethod
    def from_config(cls, cfg: CfgNode) -> AMGPruningHook:
        """Build from the ``amg`` node.

        Raises:
            ConfigError: If the target is a latency that nobody has measured yet, or the balance is to be found.
        """
        if cfg.amg.target_latency_saving:
            raise ConfigError(
                f"amg.target_latency_saving {cfg.amg.target_latency_saving:g} has to be measured: 'amg-reid prune' "
                "does that, and with --preview it prints the amg.target_macs_saving to give elsewhere."
            )
        if cfg.amg.target_macs_saving and cfg.amg.balance == "auto":
            raise ConfigError(
                "amg.balance 'auto' has to be found on training images: 'amg-reid prune' without --preview does that."
            )
        budget = Budget(cfg.amg.target_macs_saving, cfg.amg.balance) if cfg.amg.target_macs_saving else None
        schedule = PruningSchedule.from_config(cfg.amg.schedule, cfg.amg.final_epochs, budget)
        return cls(schedule, PruningRules.from_config(cfg.amg), cfg.amg.token_variant, Repair.from_config(cfg.amg))

    def check(self, model: nn.Module) -> None:
        """Check the schedule against a model before any work starts.

        Raises:
            ConfigError: If nothing is scheduled, no block is prunable, the floors forbid the rates, or the decay takes
                all weight from the token scores of the last block.
        """
        if not self.schedule.cuts:
            raise ConfigError("amg.schedule is empty, so there is nothing to prune; list at least one stage.")
        plan = current_plan(model).with_variant(self.token_variant)
        limits = self.rules.limits(model)
        blocks = limits.blocks
        if not blocks:
            raise ConfigError(
                "No block can be pruned: the network has a single one, which the jigsaw patch module (amg.jpm) copies."
            )
        merges = self.token_variant == "merge"
        if merges and "tokens" in self.schedule.targets and not self.schedule.done:
            check_not_rotary(backbone_of(model), "amg.token_variant 'merge'")
            MergeRange(plan, limits).check()
        if self.schedule.budget is None:
            self.schedule.check_feasible(plan, limits)
        else:
            self._check_budget(model, plan)
        decay = self.rules.weight("tokens") if "tokens" in self.schedule.targets and not merges else 0.0
        if decay * (len(blocks) - 1) >= 1:
            raise ConfigError(
                f"amg.layer_decay is {decay:g}, but must be below 1/{len(blocks) - 1} for "
                f"{len(blocks)} prunable blocks: the token scores of every block need a weight above 0."
            )

    def _check_budget(self, model: nn.Module, plan: PruningPlan) -> None:
        self.cost = PlanCost.of(model)
        if not self.schedule.done:
            check_budget(*self._start(model, plan, self.cost))

    def _start(self, model: nn.Module, plan: PruningPlan, cost: PlanCost) -> tuple[Any, ...]:
        """What checks and previews of a budget take, once the schedule knows what the model saves already."""
        plan = plan if plan.prunes_tokens else plan.with_variant(self.token_variant)
        self.schedule.start_saving = cost.saving(plan)
        return plan, self.schedule.budget, self.schedule.goals(), self.rules.limits(model), cost

    def preview(self, model: nn.Module) -> list[Choice]:
        """What the budget would take away at several balances; see :func:`amg_plugin.pruning.budget.choices`."""
        return choices(*self._start(model, current_plan(model), PlanCost.of(model)))

    def before_run(self, engine: HookedEngine) -> None:
        """Check everything, then evaluate the model as it is before the first cut.

        Raises:
            ConfigError: If the schedule does not fit the model or the run's number of epochs.
            InputError: If a repair is impossible, see :meth:`Repair.check`.
        """
        if not self.snapshots:  # else the run goes on within this phase
            self._begin(engine, unwrap(engine.model))
        if not engine.max_epoch:
            self._cut(engine, 0)

    def _begin(self, engine: HookedEngine, model: nn.Module) -> None:
        self.check(model)
        if engine.max_epoch != self.schedule.total_epochs:
            raise ConfigError(
                f"The schedule needs {self.schedule.total_epochs} epochs, but the run has {engine.max_epoch}: "
                "leave train.max_epoch out when amg.schedule is given."
            )
        if engine.epoch and not self.schedule.done:
            raise ConfigError(f"train.start_epoch is {engine.epoch}, but a pruning schedule starts at epoch 0.")
        plan = current_plan(model)
        apply_plan(model, plan if plan.prunes_tokens else plan.with_variant(self.token_variant))
        loader = engine.train_loader
        size = loader.batch_size * processes.world()
        batches = min(len(loader), math.ceil(self.repair.images / size))
        self.repair.check(model, self.schedule.targets, batches * size)
        self._keep("dense" if plan.is_dense else "start", engine)

    def state(self) -> dict[str, Any]:
        """How far the schedule is, and the scores so far."""
        return {"schedule": self.schedule.state_dict(), "snapshots": self.snapshots, "queries": self.queries}

    def restore(self, engine: HookedEngine, state: dict[str, Any]) -> None:
        """Take up the schedule; nothing is evaluated again."""
        self.schedule.load_state_dict(state["schedule"])
        self.snapshots, self.queries = dict(state["snapshots"]), dict(state["queries"])
        if self.schedule.budget is not None:
            self.cost = PlanCost.of(unwrap(engine.model))

    def before_epoch(self, engine: HookedEngine) -> None:
        """Carry out the cuts that belong before this epoch."""
        self._cut(engine, engine.epoch)

    def after_epoch(self, engine: HookedEngine) -> None:
        """Carry out cuts that no epoch follows."""
        if engine.epoch + 1 == engine.max_epoch:
            self._cut(engine, engine.max_epoch)

    def goal(self, cut: Cut) -> Goal | None:
        """What a cut has to save, with a budget."""
        return None if self.cost is None else Goal(self.cost, self.schedule.goal(cut))

    def carry_out(self, engine: HookedEngine, cut: Cut) -> PruningPlan:
        """Score the engine's model, prune it by one cut and repair it; gives the new plan."""
        model = unwrap(engine.model)
        with scoring_mode(model, engine.cfg.amg.calibration.mode):
            plain = build_calibration(engine, f"repair, {_label(cut)}", self.repair.images)
            scoring = build_calibration(engine, _label(cut))
            return carry_out(model, cut, self.rules, scoring, self.goal(cut), self.repair, plain)

    def _note_saving(self, engine: HookedEngine, model: nn.Module) -> None:
        counted = complexity.count(model, *model.spec.image_size)["macs"]
        saving = engine.history[-1]["macs_saving"] = 1 - counted / self.cost.dense
        logger.info("counted MACs saved: %.1f %%", 100 * saving)
        wanted = self.schedule.budget.saving
        if self.schedule.finished and abs(saving - wanted) > TOLERANCE:
            logger.warning(
                "amg.target_macs_saving %.3f was missed: %.3f of the MACs are saved, since the scores left too little "
                "to remove in the last cuts; another amg.balance will come closer",
                wanted,
                saving,
            )

    def _cut(self, engine: HookedEngine, epoch: int) -> None:
        model = unwrap(engine.model)
        while (cut := self.schedule.due(epoch)) is not None:
            plan = self.carry_out(engine, cut)
            processes.same_on_all(plan.digest, "pruning plan")
            self.schedule.advance()
            entry = {"event": "cut", "epoch": epoch, "target": cut.target, "stage": cut.stage}
            left = {f"{target}_per_block": plan.left(target) for target in TARGETS}
            engine.history.append({**entry, "iteration": cut.iteration, **left})
            logger.info("%s: %s", _label(cut), ", ".join(f"{target} {plan.left(target)}" for target in TARGETS))
            if self.cost is not None:
                self._note_saving(engine, model)
            engine.save_state(optimizer=False)
        # Those made before the run was interrupted count, too.
        cuts = self.schedule.has_cut(epoch)
        # The final fine-tuning has a learning-rate schedule of its own, whether a cut opens it or not.
        opens_final = epoch == self.schedule.final_start and self.schedule.final_epochs > 0
        if cuts or opens_final:
            engine.rebuild_optimizer(self.schedule.phase(epoch)[1])
        if cuts and self.schedule.finished:
            self._keep("pruned", engine)

    def _keep(self, name: str, engine: HookedEngine) -> None:
        """Evaluate, and keep what came of it."""
        self.snapshots[name] = engine.evaluate()
        self.queries[name] = engine.queries


def _label(cut: Cut) -> str:
    return f"score {cut.target}, stage {cut.stage + 1}, cut {cut.iteration + 1}/{cut.iterations}"
