"""Evaluation of a checkpoint, and where its figures go."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from yacs.config import CfgNode

from amg_plugin.checkpoint import Checkpoint, read_checkpoint
from amg_plugin.config import get_default_config, to_plain_dict
from amg_plugin.data.labels import Loaders
from amg_plugin.data.manager import build_test_loaders
from amg_plugin.errors import InputError
from amg_plugin.evaluation.covered_attention import covered_attention, covered_section, covered_targets
from amg_plugin.evaluation.evaluator import draw_rankings
from amg_plugin.runs import result as report
from amg_plugin.runs.setup import build_evaluator, fitted
from amg_plugin.runs.targets import ATTENTION

#: Keys that change figures or pictures: nodes as a whole, less what only changes memory or belongs to training.
_TELLING = ("test", "cuhk03", "market1501", "data.split_id", "amg.neck_feat", "amg.sie.unseen", "amg.reducer",
            "amg.target_macs_saving", "amg.skip_unreadable")  # fmt: skip
_SILENT = ("test.batch_size", "test.evaluate", "test.eval_freq", "test.start_eval", "test.visrank_topk")


def evaluate_checkpoint(cfg: CfgNode, checkpoint: Checkpoint, dense: Checkpoint | None = None) -> dict[str, Any]:
    """Evaluate a checkpoint on the targets of a configuration.

    Args:
        cfg: The configuration.
        checkpoint: What is evaluated.
        dense: The dense model to set before it.

    Returns:
        Sections of the result; pictures of rankings, if asked for, are in ``data.save_dir``.

    Raises:
        InputError: If a checkpoint does not fit the configuration, or the data cannot be used.
    """
    checkpoints = [fitted(each, cfg) for each in ((dense, checkpoint) if dense else (checkpoint,))]
    loaders = build_test_loaders(cfg)
    *before, tested = (each.build() for each in checkpoints)
    models = {"dense": before[0]} if before else {}
    models["reduced" if tested.spec.reducer else section_name(checkpoint)] = tested
    covered = covered_targets(loaders, tested)
    sections: dict[str, Any] = {}
    shares: dict[str, dict[str, Any]] = {target: {} for target in covered}
    for name, model in models.items():
        shape = report.structure(model, cfg.data.height, cfg.data.width)
        evaluator = build_evaluator(cfg, model, loaders)
        visit = ranking_pictures(cfg, loaders) if model is tested else None
        sections[name] = report.section(evaluator.evaluate(visit), shape)
        for target, masks in covered.items():
            shares[target][name] = covered_attention(evaluator, target, masks)
    if covered:
        sections[ATTENTION] = {target: covered_section(masks, shares[target]) for target, masks in covered.items()}
    return sections


def read_dense(path: str, checkpoint: Checkpoint) -> Checkpoint:
    """The dense model to set before a pruned one.

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


def ranking_pictures(cfg: CfgNode, loaders: Loaders) -> Callable[[str, np.ndarray], None] | None:
    """What draws rankings while an evaluator runs, if ``test.visrank`` asks for them; else None."""
    if not cfg.test.visrank:
        return None
    size = cfg.data.height, cfg.data.width
    return partial(draw_rankings, loaders=loaders, size=size, folder=cfg.data.save_dir, longest=cfg.test.visrank_topk)


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


def output_folder(
    weights: str | Path, cfg: CfgNode, stored: Mapping[str, Any], others: Mapping[str, str | Path | None]
) -> Path:
    """Where the figures of an evaluation go: next to the file, named after targets and options.

    Args:
        weights: The checkpoint or exported file.
        cfg: The configuration of the evaluation.
        stored: The configuration in the file; what differs from it becomes part of the name.
        others: Further files by what they are for, for example ``{"gallery": "log/dense/best.pth"}``.

    Returns:
        For example ``log/pruned/test_best_market1501_gallery-dense-best_rerank``.
    """
    weights = Path(weights)
    stem = weights.stem if weights.suffix == ".pth" else weights.name
    words = ["test", stem, "+".join(cfg.data.targets)]
    words += [f"{use}-{Path(path).parent.name}-{Path(path).stem}" for use, path in others.items() if path]
    asked, usual = _flat(to_plain_dict(cfg)), {**_flat(to_plain_dict(get_default_config())), **_flat(stored)}
    words += [
        name if value is True else f"{name}-{_short(value)}"
        for key, value in asked.items()
        for name in [key.rpartition(".")[2]]
        if key.startswith(_TELLING) and key not in _SILENT and value != usual.get(key)
    ]
    return weights.with_name("_".join(words).replace(".", "_").replace("/", "-"))


def _flat(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in node.items():
        values |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return values


def _short(value: Any) -> str:
    return "-".join(map(str, value)) if isinstance(value, list | tuple) else str(value).lower()
