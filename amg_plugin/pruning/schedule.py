"""The pruning schedule: a state machine with plain-data state.

Stages follow each other; each removes heads, tokens or neurons in ``iterations`` cuts with ``epochs`` of fine-tuning
after every cut; then comes the final fine-tuning. Rates are relative to the dense model and add up per target.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from amg_plugin.errors import ConfigError
from amg_plugin.pruning.budget import Budget
from amg_plugin.pruning.merging import MergeRange
from amg_plugin.pruning.plan import Limits, PruningPlan
from amg_plugin.pruning.selection import removal_count
from amg_plugin.registries import TARGETS


@dataclass(frozen=True)
class Stage:
    """A run of equal cuts, with epochs of fine-tuning after each.

    The rate is the share of the dense model's heads, (block, position) pairs or neurons that the stage removes; None if
    a budget decides.
    """

    target: str
    rate: float | None = None
    iterations: int = 1
    epochs: int = 0

    def __post_init__(self) -> None:
        if self.target not in TARGETS:
            raise ConfigError(f"amg.schedule target '{self.target}' is unknown; allowed: {', '.join(TARGETS)}.")
        if self.rate is not None and not 0 <= self.rate < 1:
            raise ConfigError(f"amg.schedule rate {self.rate} is outside [0, 1).")
        if self.iterations < 1 or self.epochs < 0:
            raise ConfigError("amg.schedule needs iterations of at least 1 and epochs of at least 0.")


@dataclass(frozen=True)
class Cut:
    """One removal.

    Attributes:
        epoch: Epoch before which it happens, from 0.
        stage, iteration: Number of its stage, and within the stage, from 0.
        share_before, share_after: Sum of the rates of earlier stages for the same target, without and with this one's.
        iterations: Cuts of the stage.
        progress: With a budget, the share of its saving that is reached once this cut is done; else None.
    """

    epoch: int
    stage: int
    iteration: int
    target: str
    share_before: float
    share_after: float
    iterations: int
    progress: float | None = None

    def removed_after(self, total: int) -> int:
        """How many of ``total`` are gone, counted from the dense model, once this cut is done.

        The remainder is spread over the iterations, so that the last one meets the stage's total exactly.
        """
        start, end = removal_count(self.share_before, total), removal_count(self.share_after, total)
        return start + (end - start) * (self.iteration + 1) // self.iterations


class PruningSchedule:
    """Cuts in order, and how far they have been carried out.

    Args:
        stages: The stages in order.
        final_epochs: Epochs of the final fine-tuning.
        budget: What to save, if that is given in place of rates. Stages of one target save equal parts of what the
            budget expects of the target, and so do the iterations of a stage.

    Attributes:
        cuts: Every cut.
        done: Number of cuts carried out.
        start_saving: With a budget, the share of MACs that the model saved before the first cut.
    """

    def __init__(self, stages: Sequence[Stage], final_epochs: int, budget: Budget | None = None) -> None:
        if final_epochs < 0:
            raise ConfigError(f"amg.final_epochs {final_epochs} is negative; 0 or more is allowed.")
        self.stages = tuple(stages)
        self.final_epochs = final_epochs
        self.budget = budget
        self.cuts: list[Cut] = []
        self.done = 0
        self.start_saving = 0.0
        if any((stage.rate is None) == (budget is None) for stage in self.stages):
            raise ConfigError("The stages of amg.schedule give rates, or amg.target_macs_saving decides: one of both.")
        progress = 0.0
        epoch, shares = 0, dict.fromkeys(TARGETS, 0.0)
        for number, stage in enumerate(self.stages):
            before = shares[stage.target]
            shares[stage.target] = before + (stage.rate or 0.0)
            if shares[stage.target] >= 1:
                raise ConfigError(
                    f"amg.schedule removes {shares[stage.target]:.0%} of the {stage.target}; below 100 % is needed."
                )
            alike = sum(other.target == stage.target for other in self.stages)
            for iteration in range(stage.iterations):
                if budget is not None:
                    progress += budget.weight(stage.target) / alike / stage.iterations
                share, reached = shares[stage.target], None if budget is None else progress
                self.cuts.append(Cut(epoch, number, iteration, stage.target, before, share, stage.iterations, reached))
                epoch += stage.epochs
        self.final_start = epoch
        self.total_epochs = epoch + final_epochs
        self.shares = shares
        self.targets = {stage.target for stage in self.stages if stage.rate != 0}
        if budget is not None and self.cuts and abs(progress - 1) > 1e-9:
            missing = next(target for target in TARGETS if budget.weight(target) and target not in self.targets)
            raise ConfigError(
                f"amg.balance {budget.shares} expects a part of the saving from the {missing}, but amg.schedule has no "
                "stage for them."
            )

    @classmethod
    def from_config(
        cls, stages: Sequence[Mapping[str, Any]], final_epochs: int, budget: Budget | None = None
    ) -> PruningSchedule:
        """Build from ``amg.schedule`` (a list of mappings), ``amg.final_epochs`` and the budget, if there is one."""
        return cls([Stage(**stage) for stage in stages], final_epochs, budget)

    def goal(self, cut: Cut) -> float:
        """With a budget, the share of the dense model's MACs that is to be saved once ``cut`` is done."""
        return self.start_saving + (self.budget.saving - self.start_saving) * cut.progress

    def goals(self) -> list[tuple[str, float]]:
        """With a budget, target and :meth:`goal` of every cut."""
        return [(cut.target, self.goal(cut)) for cut in self.cuts]

    @property
    def finished(self) -> bool:
        """Whether every cut is done and the structure is final."""
        return self.done == len(self.cuts)

    def due(self, epoch: int) -> Cut | None:
        """The next cut if it belongs before ``epoch`` (or should have happened earlier), else None."""
        if self.finished or self.cuts[self.done].epoch > epoch:
            return None
        return self.cuts[self.done]

    def has_cut(self, epoch: int) -> bool:
        """Whether a cut before ``epoch`` has been carried out."""
        return any(cut.epoch == epoch for cut in self.cuts[: self.done])

    def advance(self) -> None:
        """Note that the next cut has been carried out."""
        if self.finished:
            raise RuntimeError("the schedule is finished")
        self.done += 1

    def phase(self, epoch: int) -> tuple[int, int]:
        """First epoch and length of the stretch of fine-tuning between two cuts that ``epoch`` belongs to."""
        starts = sorted({0, self.final_start, *(cut.epoch for cut in self.cuts)})
        start = max(value for value in starts if value <= epoch)
        end = min((value for value in starts if value > epoch), default=self.total_epochs)
        return start, max(end - start, 0)

    def check_feasible(self, plan: PruningPlan, limits: Limits) -> None:
        """Check before any work starts that the limits leave enough of a plan to remove.

        Raises:
            ConfigError: If a rate cannot be met, the message says what is feasible; if the model has lost more than the
                rates ask for, which count from the dense model; if a rate above 0 stands for less than one head, token
                or group of neurons; if a fresh schedule would remove nothing from a pruned model.
        """
        removes = plan.is_dense or self.done > 0
        for target, share in self.shares.items():
            if not share:
                continue
            dense, left, floor = limits.dense(plan, target), limits.left(plan, target), limits.floor(target)
            wanted, gone = removal_count(share, dense), dense - sum(left)
            # A block may be below the floor already, if earlier cuts had a lower one.
            feasible = dense - sum(min(count, floor) for count in left)
            rule = f"amg.min_{target}_per_block {getattr(limits, target)}"
            if (step := limits.step(target)) > 1:
                rule = f"{rule} with amg.neuron_multiple {step}"
            if share and target == "tokens" and plan.variant == "merge":
                room = MergeRange(plan, limits)
                feasible = room.removed(room.most)
                rule = f"merging (behind the first block, at most half at once) with {rule}"
            if wanted > feasible:
                rate = math.ceil(1000 * feasible / dense) / 1000
                if removal_count(rate, dense) > feasible:
                    rate = math.floor(1000 * feasible / dense) / 1000
                raise ConfigError(
                    f"amg.schedule asks for {wanted} of {dense} {target} to go, but {rule} allows "
                    f"{feasible}, a rate of {rate:.3f} at most."
                )
            if wanted < gone:
                raise ConfigError(
                    f"amg.schedule asks for {wanted} of {dense} {target} to go, counted from the dense model, but "
                    f"the model has lost {gone} already; more than {gone / dense:.3f} is needed, or no such stage."
                )
            if wanted < step:
                least = "one" if step == 1 else f"amg.neuron_multiple {step}"
                raise ConfigError(f"amg.schedule removes nothing: {share:g} of {dense} {target} is less than {least}.")
            removes |= wanted > gone
        if not removes:
            raise ConfigError(
                "amg.schedule asks for nothing that the model has not lost already: rates count from the dense model."
            )

    def state_dict(self) -> dict[str, int | float]:
        """The state as plain data."""
        return {"done": self.done} if self.budget is None else {"done": self.done, "start_saving": self.start_saving}

    def load_state_dict(self, state: Mapping[str, int | float]) -> None:
        """Take up the state of :meth:`state_dict`.

        Raises:
            ConfigError: If the state belongs to a longer schedule.
        """
        done = int(state["done"])
        if not 0 <= done <= len(self.cuts):
            raise ConfigError(f"The saved schedule has {done} cuts done, but amg.schedule has only {len(self.cuts)}.")
        self.done = done
        self.start_saving = float(state.get("start_saving", 0.0))
