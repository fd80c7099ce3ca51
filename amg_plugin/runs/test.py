"""Evaluation of a checkpoint, of two together or of an exported file, and where the figures go."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from yacs.config import CfgNode

from amg_plugin.checkpoint import Checkpoint, read_checkpoint
from amg_plugin.config import get_default_config, to_plain_dict
from amg_plugin.data.labels import Loaders
from amg_plugin.data.manager import build_test_loaders
from amg_plugin.deploy.exported_file import ExportedFile
from amg_plugin.deploy.networks import ExportedNetwork, check_unchanged
from amg_plugin.errors import CheckpointError, ConfigError, InputError
from amg_plugin.evaluation.evaluator import covered_attention, covered_section, covered_targets, draw_rankings
from amg_plugin.evaluation.protocol import Embedded, Scores
from amg_plugin.models.build import build_network
from amg_plugin.pruning import apply_plan
from amg_plugin.runs import result as report
from amg_plugin.runs.details import write_details
from amg_plugin.runs.setup import build_evaluator, check_fits, fitted, own_config
from amg_plugin.utils import processes

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
    models["reduced" if tested.spec.reducer else _section_name(checkpoint)] = tested
    covered = covered_targets(loaders, tested)
    sections: dict[str, Any] = {}
    queries: dict[str, Any] = {}
    shares: dict[str, dict[str, Any]] = {target: {} for target in covered}
    for name, model in models.items():
        evaluator = build_evaluator(cfg, model, loaders)
        scores = evaluator.evaluate(_ranking_pictures(cfg, loaders) if model is tested else None)
        sections[name], queries[name] = report.section(scores, _shape(cfg, model)), evaluator.queries
        for target, masks in covered.items():
            shares[target][name] = covered_attention(evaluator, target, masks)
    if covered:
        sections[report.ATTENTION] = {
            target: covered_section(masks, shares[target]) for target, masks in covered.items()
        }
    write_details(cfg.data.save_dir, queries)
    return sections


def evaluate_pair(cfg: CfgNode, query: Checkpoint, gallery: Checkpoint) -> dict[str, Any]:
    """Evaluate two checkpoints alone and together; returns the sections of the result.

    Args:
        cfg: The run's configuration, which fits the query's checkpoint.
        query: Embeds the queries.
        gallery: Embeds the gallery, with its own image size and preparation of images.

    Raises:
        CheckpointError: If a checkpoint does not fit, or their features cannot be compared.
        ConfigError: If pictures of rankings are asked for.
    """
    if cfg.test.visrank:
        raise ConfigError("test.visrank is True, but pictures of rankings are not drawn with --gallery-weights.")
    configs = (cfg, own_config(gallery, cfg))
    checkpoints = [fitted(each, own) for each, own in zip((query, gallery), configs, strict=True)]
    models = [checkpoint.build() for checkpoint in checkpoints]
    _check_comparable(*models)
    by_query, by_gallery = (build_evaluator(own, model) for own, model in zip(configs, models, strict=True))
    scores: dict[str, dict[str, Any]] = {"query_model": {}, "gallery_model": {}, "asymmetric": {}}

    def compare(*sides: Embedded) -> Scores:
        return processes.from_main(lambda: by_query.protocol.compare(*sides))

    for target in by_query.loaders:
        ours, theirs = by_query.embed(target, "query model"), by_gallery.embed(target, "gallery model")
        scores["asymmetric"][target] = compare(ours[0], theirs[1])
        scores["query_model"][target] = compare(*ours)
        scores["gallery_model"][target] = compare(*theirs)
    shapes = [
        {**_shape(own, model), "image_size": [own.data.height, own.data.width]}
        for own, model in zip(configs, models, strict=True)
    ]
    return {case: report.section(scores[case], shape) for case, shape in zip(scores, [*shapes, {}], strict=True)}


def evaluate_file(cfg: CfgNode, file: ExportedFile, source: Checkpoint) -> dict[str, Any]:
    """Evaluate an exported file on the targets of a configuration.

    Args:
        cfg: The configuration, with ``use_gpu`` False: the file's runtime computes, on the CPU.
        file: The file, opened.
        source: What it knows of its checkpoint.

    Returns:
        The section of the result, with what the file is and what ran it.

    Raises:
        InputError: If the configuration asks for what is fixed in the file, or the data cannot be used.
    """
    check_unchanged(file.info, cfg)
    check_fits(source, cfg)
    # Counted on a network of the same structure, which takes no memory: the file's graph has no modules to count.
    with torch.device("meta"):
        network = apply_plan(build_network(replace(source.spec, drop_path=0.0)), source.plan)
    loaders = build_test_loaders(cfg)
    evaluator = build_evaluator(cfg, ExportedNetwork(file), loaders)
    scores = evaluator.evaluate(_ranking_pictures(cfg, loaders))
    write_details(cfg.data.save_dir, {"exported": evaluator.queries})
    facts = {name: getattr(file.info, name) for name in ("file_format", "precision", "l2_normalize")}
    section = {**report.section(scores, _shape(cfg, network)), **facts}
    return {"exported": {**section, "runtime": file.runtime, "source": dict(file.info.source)}}


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


def _check_comparable(query: nn.Module, gallery: nn.Module) -> None:
    """Check that the features of two networks have the same width and are both taken before or after the neck."""
    if query.feature_dim != gallery.feature_dim:
        raise CheckpointError(
            f"The features of --weights have {query.feature_dim} numbers, those of --gallery-weights "
            f"{gallery.feature_dim}; asymmetric retrieval needs the same width."
        )
    if query.spec.neck_feat != gallery.spec.neck_feat:
        raise CheckpointError(
            f"The features of --weights are taken {query.spec.neck_feat} the neck, those of --gallery-weights "
            f"{gallery.spec.neck_feat} it (amg.neck_feat); asymmetric retrieval needs the same."
        )


def _shape(cfg: CfgNode, model: nn.Module) -> dict[str, Any]:
    return report.structure(model, cfg.data.height, cfg.data.width)


def _ranking_pictures(cfg: CfgNode, loaders: Loaders) -> Callable[[str, np.ndarray], None] | None:
    """What draws rankings while an evaluator runs, if ``test.visrank`` asks for them; else None."""
    if not cfg.test.visrank:
        return None
    size = cfg.data.height, cfg.data.width
    return partial(draw_rankings, loaders=loaders, size=size, folder=cfg.data.save_dir, longest=cfg.test.visrank_topk)


def _section_name(checkpoint: Checkpoint) -> str:
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
    return weights.with_name("_".join(words).replace(".", "_").replace("/", "-").replace(":", "-"))


def _flat(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in node.items():
        values |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return values


def _short(value: Any) -> str:
    return "-".join(map(str, value)) if isinstance(value, list | tuple) else str(value).lower()
