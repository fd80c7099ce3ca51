"""Evaluation of a file of ``amg-reid export``."""

from __future__ import annotations

from typing import Any

from yacs.config import CfgNode

from amg_plugin.checkpoint import Checkpoint
from amg_plugin.data.manager import build_test_loaders
from amg_plugin.deploy.exported_file import ExportedFile, open_exported
from amg_plugin.deploy.networks import ExportedNetwork, as_checkpoint, check_unchanged
from amg_plugin.models.build import build_network
from amg_plugin.pruning import apply_plan
from amg_plugin.runs import result as report
from amg_plugin.runs.setup import build_evaluator, check_fits
from amg_plugin.runs.test import ranking_pictures


def read(path: str) -> tuple[ExportedFile, Checkpoint]:
    """An exported file, opened, and what it knows of its checkpoint.

    Raises:
        InputError: If it cannot be used.
    """
    file = open_exported(path)
    return file, as_checkpoint(file.info)


def evaluate_file(cfg: CfgNode, file: ExportedFile, source: Checkpoint) -> dict[str, Any]:
    """Evaluate an exported file on the targets of a configuration.

    Args:
        cfg: The configuration, with ``use_gpu`` False: the file's runtime computes, on the CPU.
        file: As :func:`read` gave it.
        source: Likewise.

    Returns:
        The section of the result, with what the file is and what ran it.

    Raises:
        InputError: If the configuration asks for what is fixed in the file, or the data cannot be used.
    """
    check_unchanged(file.info, cfg)
    check_fits(source, cfg)
    # Counted on a network of the same structure: the file's graph has no modules to count.
    network = apply_plan(build_network(source.spec), source.plan)
    loaders = build_test_loaders(cfg)
    evaluator = build_evaluator(cfg, ExportedNetwork(file), loaders)
    scores = evaluator.evaluate(ranking_pictures(cfg, loaders))
    section = {
        **report.section(scores, report.structure(network, cfg.data.height, cfg.data.width)),
        "file_format": file.info.file_format,
        "precision": file.info.precision,
        "l2_normalize": file.info.l2_normalize,
        "runtime": file.runtime,
        "source": dict(file.info.source),
    }
    return {"exported": section}
