"""Training of the dense model or of what a checkpoint holds, and pruning by the schedule with fine-tuning."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import nn
from yacs.config import CfgNode

from amg_plugin.checkpoint import Checkpoint
from amg_plugin.config import schedule_epochs
from amg_plugin.data.labels import TrainingCameras
from amg_plugin.data.manager import build_datamanager
from amg_plugin.engine import AMGPruningHook, BestModelHook, CourseHook, DistillationHook, ProgressHook, UnfreezingHook
from amg_plugin.errors import ConfigError
from amg_plugin.models import complexity
from amg_plugin.models.reid import ReIDModel
from amg_plugin.pruning import PruningPlan, current_plan
from amg_plugin.registries import TARGETS
from amg_plugin.runs import result as report
from amg_plugin.runs.details import write_details
from amg_plugin.runs.resuming import Start
from amg_plugin.runs.setup import assemble, build_model, check_buildable, check_identities, fitted, run_arguments
from amg_plugin.utils.tables import shares, text_table


def train(cfg: CfgNode, checkpoint: Checkpoint | None = None, start: Start | None = None) -> dict[str, Any]:
    """Train the dense model of ``cfg``, or go on from ``checkpoint``, with a new classifier for other identities.

    Args:
        cfg: The configuration.
        checkpoint: What to start from.
        start: Saves states, and has the one that an interrupted run goes on from; None saves nothing.

    Returns:
        Sections of the result; the checkpoints are in ``data.save_dir``.

    Raises:
        InputError: If the network, the data or the checkpoint cannot be used.
        RunError: If the loss is not finite.
    """
    arguments = run_arguments(cfg, cfg.train.max_epoch)
    if state := start and start.state:
        checkpoint = state.checkpoint()
    if checkpoint is None:
        check_buildable(cfg)
    else:
        checkpoint = fitted(checkpoint, cfg)
    datamanager = build_datamanager(cfg)
    if start:
        start.check_data(datamanager)
    number = datamanager.num_train_pids
    if state:
        model = checkpoint.build()
    elif checkpoint is None:
        model = build_model(cfg, number, TrainingCameras.of(datamanager), datamanager.identities)
    elif checkpoint.knows(number, datamanager.identities):
        model = checkpoint.build()
    else:
        model = checkpoint.start(replace(checkpoint.spec, num_classes=number))
    model.identities = datamanager.identities
    shape = report.structure(model, cfg.data.height, cfg.data.width)
    best = BestModelHook(cfg.data.save_dir)
    freezing = [UnfreezingHook(cfg.amg.unfreeze.every)] if cfg.amg.unfreeze.every else []
    engine = assemble(cfg, datamanager, model, [*freezing, ProgressHook(), CourseHook(), best], cfg.train.max_epoch)
    engine.keeper = start and start.keeper
    engine.run(**arguments)
    # Going on from a pruned checkpoint is fine-tuning; its figures must not pass for those of a dense model.
    name = "reduced" if model.spec.reducer else "dense" if current_plan(model).is_dense else "finetuned"
    write_details(cfg.data.save_dir, {name: engine.queries})
    return {name: report.section(engine.results, shape), "best": best.best, "history": engine.history}


def check_reducer(cfg: CfgNode, checkpoint: Checkpoint) -> None:
    """Check that neither the configuration nor the checkpoint has a reducer, which takes no schedule.

    Raises:
        ConfigError: If one has.
    """
    held = checkpoint.spec.reducer.method if checkpoint.spec.reducer else "amg"
    for where, name in (("", cfg.amg.reducer), (" in the checkpoint", held)):
        if name != "amg":
            raise ConfigError(
                f"amg.reducer is '{name}'{where}, but amg.schedule prunes only with amg.reducer amg; 'amg-reid test' "
                "and 'amg-reid train --weights' work with the others."
            )


def prune(
    cfg: CfgNode,
    checkpoint: Checkpoint | None,
    say: Callable[[str], None] = lambda text: None,
    datamanager: Any = None,
    start: Start | None = None,
) -> dict[str, Any]:
    """Carry out the schedule of ``cfg`` on the model of ``checkpoint``.

    Args:
        cfg: The configuration.
        checkpoint: The dense or already pruned model; not needed by a run that goes on.
        say: Gets the preview of a budget.
        datamanager: The data, if it was read already.
        start: Saves states, and has the one that an interrupted run goes on from; None saves nothing.

    Returns:
        Sections of the result; the checkpoints are in ``data.save_dir``.

    Raises:
        InputError: If schedule, checkpoint or data cannot be used.
        RunError: If the loss is not finite.
    """
    epochs = schedule_epochs(cfg)
    # Everything is fine-tuned from the first epoch on; a frozen start belongs to dense training.
    arguments = {**run_arguments(cfg, epochs), "fixbase_epoch": 0}
    if state := start and start.state:
        checkpoint = state.checkpoint()
        model, pruning, teaching = fitted(checkpoint, cfg).build(), *_pruning_hooks(cfg)
    else:
        model, pruning, teaching = plan_pruning(cfg, checkpoint, say)
    datamanager = datamanager or build_datamanager(cfg)
    check_identities(checkpoint, datamanager)
    model.identities = datamanager.identities
    height, width = cfg.data.height, cfg.data.width
    first = report.structure(model, height, width)
    if start:
        start.check_data(datamanager)
        first = start.kept.setdefault("structure", first)
    shapes = dict.fromkeys(("dense", "start"), first)
    best = BestModelHook(cfg.data.save_dir, eligible=lambda: pruning.schedule.finished)
    engine = assemble(
        cfg, datamanager, model, [*teaching, ProgressHook(), CourseHook(pruning.schedule), pruning, best], epochs
    )
    engine.keeper = start and start.keeper
    engine.run(**arguments)
    if not epochs:  # torchreid saves nothing then
        engine.save_model(0, engine.first_result["rank1"], cfg.data.save_dir)
    shapes["pruned"] = shapes["finetuned"] = report.structure(engine.model, height, width)
    scores, queries = dict(pruning.snapshots), dict(pruning.queries)
    if epochs:
        scores["finetuned"], queries["finetuned"] = engine.results, engine.queries
    write_details(cfg.data.save_dir, queries)
    sections = {name: report.section(scores[name], shapes[name]) for name in report.SECTIONS if name in scores}
    return {**sections, "best": best.best, "history": engine.history}


def plan_pruning(
    cfg: CfgNode, checkpoint: Checkpoint, say: Callable[[str], None] = lambda text: None
) -> tuple[ReIDModel, AMGPruningHook, list[DistillationHook]]:
    """The network and the hooks of :func:`prune`; what is not feasible fails here, before the data is looked at.

    Raises:
        InputError: If schedule, checkpoint or teacher cannot be used.
    """
    check_reducer(cfg, checkpoint)
    model = fitted(checkpoint, cfg).build()
    pruning, teaching = _pruning_hooks(cfg)
    if pruning.schedule.budget is not None:
        say(_preview_table(cfg, pruning, model))
    pruning.check(model)
    for hook in teaching:
        hook.check(model)
    return model, pruning, teaching


def _pruning_hooks(cfg: CfgNode) -> tuple[AMGPruningHook, list[DistillationHook]]:
    return AMGPruningHook.from_config(cfg), [DistillationHook.from_config(cfg)] if cfg.amg.distill.enabled else []


def _preview_table(cfg: CfgNode, pruning: AMGPruningHook, model: nn.Module) -> str:
    budget = pruning.schedule.budget
    rows = [
        [
            f"{shares(choice.balance)}{' (chosen)' if choice.balance == budget.balance else ''}",
            *(_left(choice.plan, target) for target in TARGETS),
            f"-{choice.params / 1e6:.2f} M",
            f"-{100 * choice.saving:.1f} %",
            "yes" if choice.meets else "no",
        ]
        for choice in pruning.preview(model)
    ]
    macs = complexity.count(model, *model.spec.image_size)["macs"]
    head = (
        f"amg.target_macs_saving {budget.saving:g} with token variant {cfg.amg.token_variant}; the model has "
        f"{macs / 1e9:.3f} G MACs now.\nExpected if every block lost the same share; the scores decide where, and "
        "every cut is sized so that the counted MACs meet the target."
    )
    header = ["amg.balance", *(f"{target} left" for target in TARGETS), "params", "MACs", "meets target"]
    return f"{head}\n\n{text_table(header, rows)}\n"


def _left(plan: PruningPlan, target: str) -> str:
    kept, dense = sum(plan.left(target)), sum(plan.dense_size(target, block) for block in range(plan.depth))
    return f"{kept}/{dense} (-{1 - kept / dense:.1%})"
