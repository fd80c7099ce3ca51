"""``amg-reid train``: make the dense model."""

from __future__ import annotations

import argparse
import time
from typing import Any

from yacs.config import CfgNode

from amg_plugin.checkpoint import Checkpoint, read_checkpoint
from amg_plugin.cli.arguments import (
    add_config_arguments,
    add_weights_argument,
    config_from_arguments,
    finish,
    logged,
    refuse_to_overwrite,
)
from amg_plugin.data.cameras import TrainingCameras
from amg_plugin.models.reid import unwrap
from amg_plugin.pruning import current_plan
from amg_plugin.runs import result as report
from amg_plugin.runs.setup import (
    assemble,
    build_model,
    check_buildable,
    check_fits,
    check_reducer,
    prepare,
    restore_model,
    run_arguments,
)

HELP = "train the dense model with torchreid's loop"
DESCRIPTION = """Train a dense ViT with torchreid's loaders, loop and evaluator.

The model of the last epoch goes to SAVE_DIR/last.pth, the best one (mAP of the first target at the evaluations that
test.eval_freq asks for) to SAVE_DIR/best.pth, the figures to SAVE_DIR/result.json. An amg.schedule of the
configuration is not used here: see 'amg-reid prune'. --weights goes on from a checkpoint, for example to give a dense
model the epochs that a pruned one was fine-tuned for; without --config-file its own configuration counts, and SAVE_DIR
is the folder 'train' inside its data.save_dir.

example: amg-reid train --config-file market1501/vit_small --root reid-data data.save_dir log/vit_small"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_weights_argument(parser, "go on from this checkpoint instead of starting anew")
    add_config_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Train; 0 on success."""
    checkpoint = read_checkpoint(args.weights) if args.weights else None
    cfg = config_from_arguments(args, use_schedule=False, base=checkpoint.config if checkpoint else None)
    if checkpoint:
        refuse_to_overwrite(cfg, args.weights)
    prepare(cfg)
    started = time.time()
    with logged(cfg.data.save_dir, "train"):
        finish(cfg, "train", train(cfg, checkpoint), started)
    return 0


def train(cfg: CfgNode, checkpoint: Checkpoint | None = None) -> dict[str, Any]:
    """Train the dense model of ``cfg``, from ``checkpoint`` if given; returns the result's sections."""
    from amg_plugin.data.manager import build_datamanager
    from amg_plugin.engine import BestModelHook, ProgressHook, UnfreezingHook

    arguments = run_arguments(cfg, cfg.train.max_epoch)
    if checkpoint is None:
        check_buildable(cfg)
    else:
        check_fits(checkpoint, cfg)
        check_reducer(checkpoint, cfg)
    datamanager = build_datamanager(cfg)
    classes = datamanager.num_train_pids
    if checkpoint is None:
        model = build_model(cfg, classes, TrainingCameras.of(datamanager))
    else:
        model = restore_model(checkpoint, cfg, classes)
    shape = report.structure(model, cfg.data.height, cfg.data.width)
    best = BestModelHook(cfg.data.save_dir)
    freezing = [UnfreezingHook(cfg.amg.unfreeze.every)] if cfg.amg.unfreeze.every else []
    engine = assemble(cfg, datamanager, model, [*freezing, ProgressHook(), best], cfg.train.max_epoch)
    engine.run(**arguments)
    # Going on from a pruned checkpoint is fine-tuning; its figures must not pass for those of a dense model.
    name = "reduced" if unwrap(model).spec.reducer else "dense" if current_plan(model).is_dense else "finetuned"
    return {name: report.section(engine.results, shape), "best": best.best, "history": engine.history}
