"""Results of a run as plain data (``result.json``), and what its first table shows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from amg_plugin.models import complexity
from amg_plugin.models.vit import unwrap
from amg_plugin.pruning import current_plan
from amg_plugin.utils.files import write_text

FILE_NAME = "result.json"
#: ``start`` takes the place of ``dense`` where a run began with a model that was pruned already; ``reduced`` is a
#: network that merges or drops tokens per image (``amg.reducer``).
SECTIONS = ("dense", "start", "pruned", "finetuned", "reduced", "exported")


def structure(model: nn.Module, height: int, width: int) -> dict[str, Any]:
    """What the model is and costs.

    Returns:
        ``params`` (without classifier), ``macs`` (one image, without classifier), ``heads_per_block``,
        ``tokens_per_block`` (without prefix tokens; with a reducer, those that enter the block).
    """
    model = unwrap(model)
    counted, plan = complexity.count(model, height, width), current_plan(model)
    return {
        "params": counted["params"],
        "macs": counted["macs"],
        "heads_per_block": plan.heads_per_block,
        "tokens_per_block": getattr(model, "tokens_per_block", None) or plan.tokens_per_block,
    }


def section(scores: Mapping[str, Mapping[str, Any]], shape: Mapping[str, Any]) -> dict[str, Any]:
    """One section of a result.

    Args:
        scores: Per target, ``mAP``, ``rank1`` (fractions) and ``cmc``.
        shape: What :func:`structure` gave.
    """
    first = next(iter(scores.values()))
    return {"mAP": first["mAP"], "rank1": first["rank1"], "targets": {k: dict(v) for k, v in scores.items()}, **shape}


def write_result(folder: str | Path, result: Mapping[str, Any]) -> Path:
    """Write ``result.json``; an old one is replaced only once the new one is complete.

    Raises:
        RunError: If it cannot be written.
    """
    return write_text(Path(folder) / FILE_NAME, json.dumps(result, indent=1) + "\n")


def comparison_rows(result: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the first table: a row per section that a result has, or per case of asymmetric retrieval."""
    if "asymmetric" in result:
        return _asymmetric_rows(result)
    present = [name for name in SECTIONS if name in result]
    base = result[present[0]]

    def share(value: int, reference: int) -> str:
        change = 100 * (value / reference - 1)
        return "" if value == reference else f" ({change:+.1f} %)"

    rows = [
        [
            name,
            f"{100 * data['rank1']:.1f}",
            f"{100 * data['mAP']:.1f}",
            f"{data['params'] / 1e6:.2f} M{share(data['params'], base['params'])}",
            f"{data['macs'] / 1e9:.3f} G{share(data['macs'], base['macs'])}",
            str(sum(data["heads_per_block"])),
            str(sum(data["tokens_per_block"])),
        ]
        for name in present
        for data in [result[name]]
    ]
    return ["model", "Rank-1 %", "mAP %", "params", "MACs", "heads", "tokens"], rows


def _asymmetric_rows(result: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The two models alone and together, for every target."""
    cases = {
        "query_model": ("query", "query"),
        "gallery_model": ("gallery", "gallery"),
        "asymmetric": ("query", "gallery"),
    }
    rows = [
        [
            *(f"{side} model" for side in sides),
            target,
            f"{100 * scores['rank1']:.1f}",
            f"{100 * scores['mAP']:.1f}",
            *(f"{result[f'{side}_model']['macs'] / 1e9:.3f} G" for side in sides),
        ]
        for target in result["asymmetric"]["targets"]
        for case, sides in cases.items()
        for scores in [result[case]["targets"][target]]
    ]
    header = ["queries by", "gallery by", "target", "Rank-1 %", "mAP %", "MACs per query", "MACs per gallery image"]
    return header, rows
