"""``amg-reid prune``: run the pruning schedule on a dense model."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from amg_plugin.checkpoint import LAST_CHECKPOINT, Checkpoint, read_checkpoint
from amg_plugin.cli import latency_target
from amg_plugin.cli.arguments import (
    add_config_arguments,
    add_weights_argument,
    config_from_arguments,
    finish,
    logged,
    refuse_to_overwrite,
    required_weights,
)
from amg_plugin.config.load import schedule_epochs
from amg_plugin.errors import ConfigError
from amg_plugin.models import complexity
from amg_plugin.runs import result as report
from amg_plugin.runs.setup import assemble, check_fits, prepare, restore_model, run_arguments
from amg_plugin.utils.tables import text_table

HELP = "prune a checkpoint by the schedule, fine-tune with distillation"
DESCRIPTION = """Score, prune and fine-tune by amg.schedule, then fine-tune for amg.final_epochs.

The number of epochs follows from the schedule. Without --config-file the checkpoint's own configuration counts, so that
only the schedule is needed, and SAVE_DIR is the folder 'prune' inside its data.save_dir. The model goes to
SAVE_DIR/last.pth and best.pth (best mAP of the first target among the evaluations after the last cut), the figures of
the dense, the pruned and the fine-tuned model to SAVE_DIR/result.json.

In place of rates, amg.target_macs_saving 0.3 gives the share of the MACs to save, amg.target_latency_saving 0.3 that of
the time, which is measured first (amg.latency says how); amg.head_token_balance says how much of it heads contribute.
--preview shows what several balances would take away.

example: amg-reid prune --config-file market1501/vit_small_head25_token25 --weights log/vit_small/last.pth \\
           --root reid-data data.save_dir log/vit_small_pruned"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_weights_argument(parser, "the dense (or already pruned) checkpoint to start from")
    parser.add_argument(
        "--preview", action="store_true", help="only print what the target of amg would take away, and stop"
    )
    add_config_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Prune; 0 on success."""
    checkpoint = read_checkpoint(required_weights(args))
    cfg = config_from_arguments(args, base=checkpoint.config)
    _check_reducer(cfg, checkpoint)
    if args.preview:
        cfg, _ = latency_target.resolve(cfg, checkpoint, data=False)
        print(preview(cfg, checkpoint))
        return 0
    refuse_to_overwrite(cfg, args.weights)
    prepare(cfg)
    started = time.time()
    with logged(cfg.data.save_dir, "prune"):
        cfg, found = latency_target.resolve(cfg, checkpoint)
        sections = prune(cfg, checkpoint)
        latency = {} if found is None else {"latency": found}
        result = finish(cfg, "prune", {**sections, **latency}, started)
        if found is not None:  # the result is safe by now, whatever becomes of the measuring
            result["latency"] = latency_target.compare(found, cfg, read_checkpoint(_last(cfg)))
            report.write_result(cfg.data.save_dir, result)
    return 0


def _last(cfg: CfgNode) -> Path:
    return Path(cfg.data.save_dir) / LAST_CHECKPOINT


def prune(cfg: CfgNode, checkpoint: Checkpoint) -> dict[str, Any]:
    """Carry out the schedule of ``cfg`` on the model of ``checkpoint``; returns the result's sections."""
    from amg_plugin.data.manager import build_datamanager
    from amg_plugin.engine import AMGPruningHook, BestModelHook, DistillationHook, ProgressHook

    epochs = schedule_epochs(cfg)
    # Everything is fine-tuned from the first epoch on; a frozen start belongs to dense training.
    arguments = {**run_arguments(cfg, epochs), "fixbase_epoch": 0}
    check_fits(checkpoint, cfg)
    _check_reducer(cfg, checkpoint)
    pruning = AMGPruningHook.from_config(cfg)
    if pruning.schedule.budget is not None:
        print(preview(cfg, checkpoint))
    pruning.check(checkpoint.build())  # what is not feasible should fail before the data is looked at
    teaching = [DistillationHook.from_config(cfg)] if cfg.amg.distill.enabled else []
    datamanager = build_datamanager(cfg)
    model = restore_model(checkpoint, cfg, datamanager.num_train_pids)
    height, width = cfg.data.height, cfg.data.width
    shapes = dict.fromkeys(("dense", "start"), report.structure(model, height, width))
    best = BestModelHook(cfg.data.save_dir, eligible=lambda: pruning.schedule.finished)
    engine = assemble(cfg, datamanager, model, [*teaching, ProgressHook(), pruning, best], epochs)
    engine.run(**arguments)
    if not epochs:  # torchreid saves nothing then
        engine.save_model(0, engine.first_result["rank1"], cfg.data.save_dir)
    shapes["pruned"] = shapes["finetuned"] = report.structure(engine.model, height, width)
    scores = dict(pruning.snapshots)
    if epochs:
        scores["finetuned"] = engine.results
    sections = {name: report.section(scores[name], shapes[name]) for name in report.SECTIONS if name in scores}
    return {**sections, "best": best.best, "history": engine.history}


def preview(cfg: CfgNode, checkpoint: Checkpoint) -> str:
    """What the budget of ``cfg`` would take away from ``checkpoint`` at several balances, as a table.

    Raises:
        ConfigError: If there is no budget.
    """
    from amg_plugin.engine import AMGPruningHook

    check_fits(checkpoint, cfg)
    _check_reducer(cfg, checkpoint)
    pruning = AMGPruningHook.from_config(cfg)
    budget = pruning.schedule.budget
    if budget is None:
        raise ConfigError(
            "--preview shows what a target would take away; give amg.target_macs_saving or amg.target_latency_saving."
        )
    model = checkpoint.build()
    rows = [
        [
            f"{choice.balance:g}{' (chosen)' if choice.balance == budget.balance else ''}",
            _left(choice.plan.heads_per_block, choice.plan.num_heads),
            _left(choice.plan.tokens_per_block, [choice.plan.num_patches] * choice.plan.depth),
            f"-{choice.params / 1e6:.2f} M",
            f"-{100 * choice.saving:.1f} %",
            "yes" if choice.meets else "no",
        ]
        for choice in pruning.preview(model)
    ]
    macs = complexity.count(model, *checkpoint.spec.image_size)["macs"]
    head = (
        f"amg.target_macs_saving {budget.saving:g} with token variant {cfg.amg.token_variant}; the model has "
        f"{macs / 1e9:.3f} G MACs now.\nExpected if every block lost the same share; the scores decide where, and "
        "every cut is sized so that the counted MACs meet the target."
    )
    header = ["amg.head_token_balance", "heads left", "tokens left", "params", "MACs", "meets target"]
    return f"{head}\n\n{text_table(header, rows)}\n"


def _left(kept: list[int], dense: Sequence[int]) -> str:
    return f"{sum(kept)}/{sum(dense)} (-{1 - sum(kept) / sum(dense):.1%})"


def _check_reducer(cfg: CfgNode, checkpoint: Checkpoint) -> None:
    held = checkpoint.spec.reducer.method if checkpoint.spec.reducer else "amg"
    for where, name in (("", cfg.amg.reducer), (" in the checkpoint", held)):
        if name != "amg":
            raise ConfigError(
                f"amg.reducer is '{name}'{where}, but amg.schedule prunes only with amg.reducer amg; 'amg-reid test' "
                "and 'amg-reid train --weights' work with the others."
            )
