"""``amg-reid test``: evaluate a checkpoint or an exported file."""

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
    required_weights,
)
from amg_plugin.errors import InputError
from amg_plugin.registries.formats import file_format
from amg_plugin.runs import asymmetric, exported
from amg_plugin.runs import result as report
from amg_plugin.runs.setup import assemble, check_fits, check_reducer, prepare, restore_model
from amg_plugin.runs.targets import ATTENTION, write_markdown

HELP = "evaluate a checkpoint or an exported file on the targets"
DESCRIPTION = """Evaluate a checkpoint, pruned or not, with torchreid's evaluator on every target.

Several targets are set side by side: with '-t market1501 occluded_market1501' the table says what occlusion costs.
Where a target has masks (amg-reid occlude makes them), another table says, block by block, what share of the class
token's attention falls on covered patches; --dense adds the dense model that a pruned one was made from, for before and
after.

With --gallery-weights, --weights embeds the queries and the other checkpoint the gallery, as on cameras that run the
pruned model and a server that keeps the dense one; both models alone are set beside it. Each checkpoint brings its own
image size and preparation of images.

Without --config-file the checkpoint's own configuration counts, and result.json goes to the folder 'test' inside its
data.save_dir, beside its tables in result.md; -t, --root and key value pairs change it.

A file written by 'amg-reid export' is evaluated in its own runtime on the CPU; its result.json goes to the folder
'test' inside one named after the file, beside it.

example: amg-reid test --weights log/vit_small_pruned/best.pth -t market1501 --root reid-data
         amg-reid test --weights log/pruned/best.pth --dense log/dense/best.pth -t market1501 occluded_market1501
         amg-reid test --weights log/pruned/best.pth --gallery-weights log/dense/best.pth -t market1501
         amg-reid test --weights model_int8.onnx -t market1501 --root reid-data"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_weights_argument(parser, "the checkpoint or exported file to evaluate")
    parser.add_argument(
        "--gallery-weights", metavar="CKPT", help="another checkpoint that embeds the gallery (asymmetric retrieval)"
    )
    parser.add_argument(
        "--dense", metavar="CKPT", help="dense model to set beside a pruned one, in scores and in attention"
    )
    add_config_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Evaluate; 0 on success."""
    if file_format(required_weights(args)) is not None:
        return exported.run(args)
    checkpoint = read_checkpoint(required_weights(args))
    if args.gallery_weights is not None:
        return _run_asymmetric(args, checkpoint)
    dense = read_dense(args.dense, checkpoint) if args.dense is not None else None
    cfg = config_from_arguments(args, use_schedule=False, base=checkpoint.config)
    prepare(cfg)
    started = time.time()
    with logged(cfg.data.save_dir, "test"):
        result = finish(cfg, "test", test(cfg, checkpoint, dense), started)
        write_markdown(cfg.data.save_dir, result)
    return 0


def _run_asymmetric(args: argparse.Namespace, query: Checkpoint) -> int:
    if args.dense is not None:
        raise InputError("--dense and --gallery-weights cannot be joined; run 'amg-reid test' once with each.")
    if not args.gallery_weights:
        raise InputError("--gallery-weights is empty; give a checkpoint.")
    if file_format(args.gallery_weights) is not None:
        raise InputError(
            f"--gallery-weights '{args.gallery_weights}' is an exported file, but a checkpoint embeds the gallery: "
            "give the one that it was made from."
        )
    gallery = read_checkpoint(args.gallery_weights)
    cfg = config_from_arguments(args, use_schedule=False, base=query.config)
    if cfg.test.visrank:
        raise InputError("test.visrank is True, but pictures of rankings are not drawn with --gallery-weights.")
    prepare(cfg)
    started = time.time()
    with logged(cfg.data.save_dir, "test"):
        result = finish(cfg, "test", asymmetric.test_asymmetric(cfg, query, gallery), started, asymmetric.table)
        write_markdown(cfg.data.save_dir, result, [("", *asymmetric.rows(result))])
    return 0


def read_dense(path: str, checkpoint: Checkpoint) -> Checkpoint:
    """The dense model to set beside a pruned one.

    Raises:
        InputError: If it is pruned, or the other one is not.
    """
    dense = read_checkpoint(path)
    if checkpoint.plan.is_dense:
        raise InputError(
            "--dense is for comparison with a pruned model, but --weights holds a dense one; leave it out."
        )
    if not dense.plan.is_dense:
        raise InputError(f"--dense must be a dense model, but '{path}' is pruned.")
    return dense


def test(cfg: CfgNode, checkpoint: Checkpoint, dense: Checkpoint | None = None) -> dict[str, Any]:
    """Evaluate ``checkpoint`` on the targets of ``cfg``, and ``dense`` before it; returns the result's sections."""
    from amg_plugin.data.manager import build_datamanager
    from amg_plugin.evaluation.covered_attention import covered_attention, covered_section, covered_targets

    checkpoints = [dense, checkpoint] if dense else [checkpoint]
    for each in checkpoints:
        check_fits(each, cfg)
        check_reducer(each, cfg)
    datamanager = build_datamanager(evaluation_config(cfg))
    *before, tested = (restore_model(each, cfg) for each in checkpoints)
    models = {"dense": before[0]} if before else {}
    models["reduced" if tested.spec.reducer else section_name(checkpoint)] = tested
    covered = covered_targets(datamanager, tested)
    sections: dict[str, Any] = {}
    shares: dict[str, dict[str, Any]] = {target: {} for target in covered}
    for name, model in models.items():
        shape = report.structure(model, cfg.data.height, cfg.data.width)
        engine = assemble(cfg, datamanager, model, [], 1)
        evaluate(cfg, engine, visrank=cfg.test.visrank and model is tested)
        sections[name] = report.section(engine.results, shape)
        for target, masks in covered.items():
            shares[target][name] = covered_attention(engine, target, masks)
    if covered:
        sections[ATTENTION] = {target: covered_section(masks, shares[target]) for target, masks in covered.items()}
    return sections


def evaluate(cfg: CfgNode, engine: Any, *, visrank: bool) -> None:
    """Run torchreid's ``test`` as the configuration says; the scores are in ``engine.results``."""
    engine.test(
        dist_metric=cfg.test.dist_metric,
        normalize_feature=cfg.test.normalize_feature,
        visrank=visrank,
        visrank_topk=cfg.test.visrank_topk,
        save_dir=cfg.data.save_dir,
        use_metric_cuhk03=cfg.cuhk03.use_metric_cuhk03,
        ranks=list(cfg.test.ranks),
        rerank=cfg.test.rerank,
    )


def evaluation_config(cfg: CfgNode) -> Any:
    """``cfg`` without its training data: torchreid's data manager wants some, so something stands in."""
    from amg_plugin.data.datasets.names import NO_TRAINING_DATA

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
