"""``amg-reid test --gallery-weights``: two checkpoints, one for queries and one for the gallery."""

from __future__ import annotations

from typing import Any

from yacs.config import CfgNode

from amg_plugin.checkpoint import Checkpoint
from amg_plugin.errors import CheckpointError, ConfigError
from amg_plugin.evaluation.evaluator import Evaluator
from amg_plugin.evaluation.protocol import Scores
from amg_plugin.runs import result as report
from amg_plugin.runs.setup import build_evaluator, fitted, own_config


def evaluate_pair(cfg: CfgNode, query: Checkpoint, gallery: Checkpoint) -> dict[str, Any]:
    """Evaluate two checkpoints alone and together; returns the sections of the result.

    Args:
        cfg: The run's configuration, which fits the query's checkpoint.
        query: Embeds the queries.
        gallery: Embeds the gallery.

    Raises:
        CheckpointError: If a checkpoint does not fit, or their features cannot be compared.
        ConfigError: If pictures of rankings are asked for.
    """
    if cfg.test.visrank:
        raise ConfigError("test.visrank is True, but pictures of rankings are not drawn with --gallery-weights.")
    configs = {"query": cfg, "gallery": own_config(gallery, cfg)}
    checkpoints = {"query": fitted(query, cfg), "gallery": fitted(gallery, configs["gallery"])}
    models = {side: checkpoint.build() for side, checkpoint in checkpoints.items()}
    check_comparable(models["query"], models["gallery"])
    shapes = {}
    for side, own in configs.items():
        shapes[side] = report.structure(models[side], own.data.height, own.data.width)
        shapes[side]["image_size"] = [own.data.height, own.data.width]
    found = compare_spaces(*(build_evaluator(configs[side], models[side]) for side in ("query", "gallery")))
    result = {f"{side}_model": report.section(found[side], shapes[side]) for side in shapes}
    return {**result, "asymmetric": report.section(found["asymmetric"], {})}


def check_comparable(query: Any, gallery: Any) -> None:
    """Check that the features of two networks can be compared.

    Raises:
        CheckpointError: If their width differs, or one is taken before and one after the neck.
    """
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


def compare_spaces(by_query: Evaluator, by_gallery: Evaluator) -> dict[str, dict[str, Scores]]:
    """Evaluate two networks alone and together on every target, by the protocol of the first.

    Args:
        by_query: Has the network that embeds queries, with its own image size and preparation of images.
        by_gallery: Has the network that embeds the gallery, for the same targets.

    Returns:
        Scores per target for ``query`` (the query network embeds both), ``gallery`` (the gallery network does) and
        ``asymmetric``.
    """
    found: dict[str, dict[str, Scores]] = {"asymmetric": {}, "query": {}, "gallery": {}}
    compare = by_query.protocol.compare
    for target in by_query.loaders:
        ours, theirs = by_query.embed(target, "query model"), by_gallery.embed(target, "gallery model")
        found["asymmetric"][target] = compare(ours[0], theirs[1])
        found["query"][target] = compare(*ours)
        found["gallery"][target] = compare(*theirs)
    return found
