"""``amg-reid test`` for files of ``amg-reid export``."""

from __future__ import annotations

import argparse
import time
from typing import Any

from yacs.config import CfgNode

from amg_plugin.cli.arguments import config_from_arguments, finish, logged
from amg_plugin.deploy.exported_file import ExportedFile, open_exported
from amg_plugin.deploy.network import ExportedNetwork, as_checkpoint, check_unchanged
from amg_plugin.errors import InputError
from amg_plugin.models.build import build_network
from amg_plugin.pruning import apply_plan
from amg_plugin.runs import result as report
from amg_plugin.runs.setup import assemble, check_fits, prepare
from amg_plugin.runs.targets import write_markdown


def run(args: argparse.Namespace) -> int:
    """Evaluate the exported file in ``args.weights``; 0 on success."""
    for option, value in (("--dense", args.dense), ("--gallery-weights", args.gallery_weights)):
        if value is not None:
            raise InputError(f"{option} goes with checkpoints only, but --weights is an exported file; leave it out.")
    file = open_exported(args.weights)
    checkpoint = as_checkpoint(file.info, file.path)
    cfg = config_from_arguments(args, use_schedule=False, base=checkpoint.config).clone()
    cfg.defrost()
    cfg.use_gpu = False  # the file's runtime computes, on the CPU
    cfg.freeze()
    check_unchanged(file.info, cfg)
    check_fits(checkpoint, cfg)
    prepare(cfg)
    started = time.time()
    with logged(cfg.data.save_dir, "test"):
        result = finish(cfg, "test", {"exported": test(cfg, file)}, started)
        write_markdown(cfg.data.save_dir, result)
    return 0


def test(cfg: CfgNode, file: ExportedFile) -> dict[str, Any]:
    """Evaluate ``file`` on the targets of ``cfg``; the result's section, with what the file is and what ran it."""
    from amg_plugin.cli.test import evaluate, evaluation_config
    from amg_plugin.data.manager import build_datamanager

    checkpoint = as_checkpoint(file.info, file.path)
    datamanager = build_datamanager(evaluation_config(cfg))
    # Counted on a network of the same structure: the file's graph has no modules to count.
    shape = report.structure(
        apply_plan(build_network(checkpoint.spec), checkpoint.plan), cfg.data.height, cfg.data.width
    )
    engine = assemble(cfg, datamanager, ExportedNetwork(file), [], 1)
    evaluate(cfg, engine, visrank=cfg.test.visrank)
    return {
        **report.section(engine.results, shape),
        "file_format": file.info.file_format,
        "precision": file.info.precision,
        "l2_normalize": file.info.l2_normalize,
        "runtime": file.runtime,
        "source": dict(file.info.source),
    }
