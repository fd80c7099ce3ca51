"""``amg-reid test``: evaluate a checkpoint."""

from __future__ import annotations

import argparse
import time
from typing import Any

from amg_plugin import report
from amg_plugin.checkpoint import Checkpoint, read_checkpoint
from amg_plugin.commands.common import (
    add_config_arguments,
    add_weights_argument,
    config_from_arguments,
    finish,
    logged,
    required_weights,
)
from amg_plugin.session import assemble, check_fits, check_reducer, prepare, restore_model

HELP = "evaluate a checkpoint on the targets"
DESCRIPTION = """Evaluate a checkpoint, pruned or not, with torchreid's evaluator on every target.

Without --config-file the checkpoint's own configuration counts, and result.json goes to the folder 'test' inside its
data.save_dir; -t, --root and key value pairs change it.

example: amg-reid test --weights log/vit_small_pruned/best.pth -t market1501 --root reid-data"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_weights_argument(parser, "the checkpoint to evaluate")
    add_config_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Evaluate; 0 on success."""
    checkpoint = read_checkpoint(required_weights(args))
    cfg = config_from_arguments(args, use_schedule=False, base=checkpoint.config)
    prepare(cfg)
    started = time.time()
    with logged(cfg.data.save_dir, "test"):
        finish(cfg, "test", test(cfg, checkpoint), started)
    return 0


def test(cfg: Any, checkpoint: Checkpoint) -> dict[str, Any]:
    """Evaluate ``checkpoint`` on the targets of ``cfg``; returns the result's section."""
    from amg_plugin.data.manager import build_datamanager

    check_fits(checkpoint, cfg)
    check_reducer(checkpoint, cfg)
    datamanager = build_datamanager(evaluation_config(cfg))
    model = restore_model(checkpoint, cfg)
    shape = report.structure(model, cfg.data.height, cfg.data.width)
    engine = assemble(cfg, datamanager, model, [], 1)
    engine.test(
        dist_metric=cfg.test.dist_metric,
        normalize_feature=cfg.test.normalize_feature,
        visrank=cfg.test.visrank,
        visrank_topk=cfg.test.visrank_topk,
        save_dir=cfg.data.save_dir,
        use_metric_cuhk03=cfg.cuhk03.use_metric_cuhk03,
        ranks=list(cfg.test.ranks),
        rerank=cfg.test.rerank,
    )
    return {"reduced" if model.spec.reducer else section_name(checkpoint): report.section(engine.results, shape)}


def evaluation_config(cfg: Any) -> Any:
    """``cfg`` without its training data: torchreid's data manager wants some, so something stands in."""
    from amg_plugin.data.datasets import NO_TRAINING_DATA

    cfg = cfg.clone()
    cfg.defrost()
    cfg.data.sources = [NO_TRAINING_DATA]
    cfg.data.combineall = False
    cfg.data.load_train_targets = False
    cfg.sampler.train_sampler = "RandomSampler"
    cfg.train.batch_size = 1
    cfg.freeze()
    return cfg


def section_name(checkpoint: Checkpoint) -> str:
    """Which section of a result a checkpoint's figures belong to."""
    if checkpoint.plan.is_dense:
        return "dense"
    events = [entry.get("event") for entry in checkpoint.history]
    if "cut" not in events:  # a pruned model that was trained on
        return "finetuned"
    # The evaluation right after the last cut is the pruned model's own; any later one follows fine-tuning.
    after_last_cut = events[len(events) - events[::-1].index("cut") :]
    return "finetuned" if after_last_cut.count("test") > 1 else "pruned"
