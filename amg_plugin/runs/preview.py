"""What a run would do and how long it would take, from a few steps that are really run; nothing is written."""

from __future__ import annotations

import contextlib
import copy
import io
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch import nn
from yacs.config import CfgNode

from amg_plugin.checkpoint import Checkpoint
from amg_plugin.config import schedule_epochs
from amg_plugin.data.labels import TrainingCameras
from amg_plugin.data.manager import build_datamanager
from amg_plugin.data.seeding import begin
from amg_plugin.engine import AMGPruningHook
from amg_plugin.engine.calibration import build_calibration, scoring_mode
from amg_plugin.engine.timeline import evaluations
from amg_plugin.errors import AMGError
from amg_plugin.evaluation.evaluator import Evaluator
from amg_plugin.evaluation.protocol import Protocol
from amg_plugin.models.build import build_network
from amg_plugin.models.vit import backbone_of, unwrap
from amg_plugin.pruning import PruningPlan, apply_plan, current_plan
from amg_plugin.pruning.budget import PlanCost
from amg_plugin.pruning.cut import plan_cut
from amg_plugin.pruning.example_plans import example_cut, example_for_budget
from amg_plugin.pruning.schedule import Cut
from amg_plugin.pruning.scorers import Calibration
from amg_plugin.pruning.streams import prune_and_repair
from amg_plugin.registries import TARGETS
from amg_plugin.runs import checks
from amg_plugin.runs.setup import assemble, build_model, check_identities, described, fitted, prepare, use_gpu
from amg_plugin.runs.train import plan_pruning
from amg_plugin.utils.environment import environment
from amg_plugin.utils.tables import duration, text_table

#: Batches of training and evaluation that are run untimed and timed; batches of scoring that are timed.
_WARM, _STEPS, _BATCHES = 1, 3, 2


@dataclass(frozen=True)
class Round:
    """A stretch of training: what is cut before it, the network then, its epochs and the evaluations that belong to it.

    Attributes:
        cuts: The cuts in front of it.
        plan: Of the network that is trained; what the scores will decide is taken from an example.
        macs: Of one image.
        epochs: Epochs of training.
        evaluations: How often all targets are evaluated, with the evaluation before the first cut.
    """

    cuts: tuple[Cut, ...]
    plan: PruningPlan
    macs: int
    epochs: int
    evaluations: int


@dataclass(frozen=True)
class Pace:
    """Seconds that a network takes, and its MACs: of a training batch, and of an evaluation of all targets."""

    macs: int
    step: float
    evaluation: float

    def at(self, macs: int, other: Pace) -> Pace:
        """The pace of a network between this one and another, by its MACs."""
        share = (self.macs - macs) / (self.macs - other.macs) if other.macs != self.macs else 0.0
        step, evaluation = (
            mine + share * (theirs - mine)
            for mine, theirs in ((self.step, other.step), (self.evaluation, other.evaluation))
        )
        return Pace(macs, max(step, 0.0), max(evaluation, 0.0))


def show(cfg: CfgNode, checkpoint: Checkpoint | None, command: str, say: Callable[[str], None]) -> None:
    """Show the checks, the schedule and the time of a run.

    Args:
        cfg: The configuration.
        checkpoint: What the run would start from.
        command: ``"train"`` or ``"prune"``.
        say: Gets each part as text.

    Raises:
        InputError: At the end, if something stands in the way of the run; data that is missing only leaves out the
            time.
        RunError: If the steps fail.
    """
    prepare(cfg, writes=False)
    found = checks.before_work(cfg, checkpoint, command)
    model = pruning = None
    teaching: list[Any] = []
    if any(check.problem for check in found if check.name in ("network", "schedule")):
        with contextlib.suppress(AMGError):  # the table of a budget is there to see what could be met
            _network(cfg, checkpoint, command, say)
    else:
        model, pruning, teaching = _network(cfg, checkpoint, command, say)
    width = max(len(check.name) for check in found)
    lines = [f"{check.name:<{width}}  {'problem: ' if check.problem else ''}{check.finding}" for check in found]
    say("Looked at before work:\n\n" + "\n".join(lines) + "\n")
    missing = [check.finding for check in found if check.problem and check.name == checks.DATA]
    if model is not None:
        rounds = schedule_rounds(cfg, model, pruning)
        if missing:
            say(f"{_table(rounds, [''] * len(rounds))}\n\nThe time is not estimated: {missing[0]}\n")
        else:
            say(_with_time(cfg, checkpoint, model, pruning, teaching, rounds))
    checks.refuse([check for check in found if check.name != checks.DATA])


def _network(
    cfg: CfgNode, checkpoint: Checkpoint | None, command: str, say: Callable[[str], None]
) -> tuple[nn.Module, AMGPruningHook | None, list[Any]]:
    """Network and hooks of the run."""
    if command == "prune":
        return plan_pruning(cfg, checkpoint, say)
    if checkpoint is not None:
        return fitted(checkpoint, cfg).build(), None, []
    return build_network(described(cfg, 1)), None, []


def schedule_rounds(cfg: CfgNode, model: nn.Module, pruning: AMGPruningHook | None) -> list[Round]:
    """The rounds of a run; each block is taken to lose what blocks usually lose, before the scores decide."""
    cost, plan = PlanCost.of(model), current_plan(model)
    if pruning is None:
        start, last = cfg.train.start_epoch, cfg.train.max_epoch
        return [Round((), plan, cost.macs(plan), last - start, evaluations(cfg, start, last, last))]
    schedule, limits, grid = pruning.schedule, pruning.rules.limits(model), backbone_of(model).patch_embed.grid_size
    plan = plan if plan.prunes_tokens else plan.with_variant(cfg.amg.token_variant)
    total, starts = schedule.total_epochs, sorted({0, *(cut.epoch for cut in schedule.cuts), schedule.final_start})
    rounds = []
    for start, end in zip(starts, [*starts[1:], total], strict=True):
        cuts = tuple(cut for cut in schedule.cuts if cut.epoch == start)
        for cut in cuts:
            if schedule.budget is not None:
                plan = example_for_budget(plan, grid, [(cut.target, schedule.goal(cut))], limits, cost)
                continue
            left, dense = limits.left(plan, cut.target), limits.dense(plan, cut.target)
            if (count := cut.removed_after(dense) - (dense - sum(left))) > 0:
                plan = example_cut(plan, grid, cut.target, limits, count)
        # Before the first cut and behind the last one there is an evaluation of its own.
        own = (start == 0) + bool(cuts and cuts[-1] == schedule.cuts[-1])
        if cuts or end > start:
            rounds.append(Round(cuts, plan, cost.macs(plan), end - start, own + evaluations(cfg, start, end, total)))
    return rounds


def _table(rounds: Sequence[Round], times: Sequence[str]) -> str:
    epoch, rows = 0, []
    for number, (one, seconds) in enumerate(zip(rounds, times, strict=True), 1):
        cut = ", ".join(f"{cut.target} {cut.iteration + 1}/{cut.iterations}" for cut in one.cuts) or "-"
        epochs = f"{epoch + 1}-{epoch + one.epochs}" if one.epochs else "-"
        left = [str(sum(one.plan.left(target))) if one.plan.left(target) else "-" for target in TARGETS]
        rows.append([str(number), cut, epochs, str(one.evaluations), *left, f"{one.macs / 1e9:.3f} G", seconds])
        epoch += one.epochs
    header = ["round", "cut before", "epochs", "evaluations", *(f"{target} left" for target in TARGETS), "MACs", "time"]
    return text_table(header, rows)


def _with_time(
    cfg: CfgNode,
    checkpoint: Checkpoint | None,
    model: nn.Module,
    pruning: AMGPruningHook | None,
    teaching: Sequence[Any],
    rounds: Sequence[Round],
) -> str:
    with contextlib.redirect_stdout(io.StringIO()):  # torchreid's own tables of the data
        trial = Trial(cfg, checkpoint, model, pruning, teaching)
    first = trial.pace()
    cutting: dict[str, float] = {}
    for cut in pruning.schedule.cuts if pruning else ():
        if cut.target not in cutting:
            cutting[cut.target] = trial.cutting(cut)
    last = first
    if rounds[-1].plan != current_plan(unwrap(trial.engine.model)):
        apply_plan(unwrap(trial.engine.model), rounds[-1].plan)
        trial.engine.rebuild_optimizer(1)
        last = trial.pace()
    batches, times = len(trial.engine.train_loader), []
    for one in rounds:
        pace = first.at(one.macs, last)
        training = one.epochs * batches * pace.step
        times.append(training + one.evaluations * pace.evaluation + sum(cutting[cut.target] for cut in one.cuts))
    where, machine = environment(use_gpu(cfg)), [f"{batches} batches an epoch"]
    machine += [f"{first.step:.3g} s a batch, {duration(first.evaluation)} an evaluation"]
    if last is not first:
        machine += [f"when pruned {last.step:.3g} s and {duration(last.evaluation)}"]
    machine += [f"{duration(seconds)} to score and cut {target}" for target, seconds in cutting.items()]
    return (
        f"{_table(rounds, list(map(duration, times)))}\n\nAbout {duration(sum(times))} in all on {where['device']}, "
        f"{where['threads']} threads: {', '.join(machine)}.\nMeasured on at most {_STEPS} batches of training and of "
        f"evaluation and {_BATCHES} of scoring, of this data, and counted up; between the first and the last network "
        "by MACs.\nReading the data before, ranking in evaluations and writing files come on top. Hooks of "
        "amg.hooks are left out.\n"
    )


class Trial:
    """The engine of a run, of which a few steps are timed.

    Args:
        cfg: The configuration.
        checkpoint: What the run would start from.
        model: Its network.
        pruning: Its pruning hook.
        teaching: Its hooks of distillation.

    Raises:
        InputError: If the data cannot be used.
    """

    def __init__(
        self,
        cfg: CfgNode,
        checkpoint: Checkpoint | None,
        model: nn.Module,
        pruning: AMGPruningHook | None,
        teaching: Sequence[Any],
    ) -> None:
        cfg = cfg.clone()
        cfg.defrost()
        cfg.amg.hooks = []
        cfg.freeze()
        self.pruning, datamanager = pruning, build_datamanager(cfg)
        number = datamanager.num_train_pids
        if pruning is not None:
            check_identities(checkpoint, datamanager)
        elif checkpoint is None:
            model = build_model(cfg, number, TrainingCameras.of(datamanager), datamanager.identities)
        elif not checkpoint.knows(number, datamanager.identities):
            start = fitted(checkpoint, cfg)
            model = start.start(replace(start.spec, num_classes=number))
        model.identities = datamanager.identities
        epochs = cfg.train.max_epoch if pruning is None else schedule_epochs(cfg)
        self.engine = assemble(cfg, datamanager, model, teaching, epochs)
        self.engine.max_epoch = max(epochs, 1)
        for hook in teaching:
            hook.before_run(self.engine)

    def pace(self) -> Pace:
        """Time a few training batches, and an evaluation batch of every target."""
        network = unwrap(self.engine.model)
        return Pace(PlanCost.of(network).macs(current_plan(network)), self._step(), self._evaluation())

    def _step(self) -> float:
        engine = self.engine
        engine.set_model_mode("train")
        begin(engine.train_loader, engine.epoch)
        engine.num_batches = len(engine.train_loader)

        def step(numbered: tuple[int, Any]) -> None:
            engine.batch_idx, data = numbered
            engine.forward_backward(data)

        return _seconds_each(enumerate(islice(engine.train_loader, _WARM + _STEPS)), step)

    @torch.no_grad()
    def _evaluation(self) -> float:
        engine, seconds = self.engine, 0.0
        engine.set_model_mode("eval")
        loaders, protocol = engine.test_loader, Protocol.from_config(engine.cfg)
        evaluator = Evaluator(engine.model, loaders, protocol, list(engine.cfg.data.sources))
        for target, parts in loaders.items():

            def extract(batch: Any, target: str = target) -> None:
                evaluator.extract(*evaluator.inputs(target, batch)).cpu()

            each = _seconds_each(islice(parts["gallery"], _WARM + _STEPS), extract)
            seconds += each * sum(len(loader) for loader in parts.values())
        return seconds

    def cutting(self, cut: Cut) -> float:
        """Time scoring and repair of a cut on a few batches, counted up; the network stays as it is."""
        engine, pruning = self.engine, self.pruning
        model, loader, options = unwrap(engine.model), engine.train_loader, engine.cfg.amg.calibration
        plan = current_plan(model)
        apply_plan(model, plan if plan.prunes_tokens else plan.with_variant(pruning.token_variant))
        with scoring_mode(model, options.mode):
            calibration = build_calibration(engine, f"score {cut.target}")
            chosen, seconds = _timed_pass(
                lambda few: plan_cut(model, cut, pruning.rules, few, pruning.goal(cut)),
                calibration,
                min(options.batches or len(loader), len(loader)),
            )
        if pruning.repair.kind == "none" or chosen == current_plan(model):
            return seconds
        network = copy.deepcopy(model)
        with scoring_mode(network, options.mode):
            plain = build_calibration(engine, f"repair {cut.target}", pruning.repair.images, network)
            batches = min(math.ceil(pruning.repair.images / loader.batch_size), len(loader))
            _, repairing = _timed_pass(
                lambda few: prune_and_repair(network, chosen, pruning.repair, few.batches(), few.forward),
                plain,
                batches,
            )
        return seconds + repairing


def _seconds_each(items: Iterable[Any], work: Callable[[Any], None]) -> float:
    """Seconds of an item, with getting the next one; the first items warm up, if there are others."""
    stamps = []
    for item in items:
        stamps.append(time.monotonic())
        work(item)
    stamps.append(time.monotonic())
    timed = stamps[min(_WARM, len(stamps) - 2) :]
    return (timed[-1] - timed[0]) / (len(timed) - 1)


def _timed_pass(run: Callable[[Calibration], Any], calibration: Calibration, batches: int) -> tuple[Any, float]:
    """What ``run`` gives on a few calibration batches, and the seconds that it would take on all of them."""
    waits = []

    def few() -> Iterator[Any]:
        started = time.monotonic()
        for number, batch in enumerate(islice(calibration.batches(), _BATCHES)):
            if number == 0:  # processes that read images start once, however many batches follow
                waits.append(time.monotonic() - started)
            yield batch

    started = time.monotonic()
    outcome = run(replace(calibration, batches=few))
    working = time.monotonic() - started - sum(waits)
    return outcome, sum(waits) + working * batches / min(_BATCHES, batches)
