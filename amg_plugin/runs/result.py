"""Results of a run as plain data (``result.json``) and as tables."""

from __future__ import annotations

import json
import platform
import statistics
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

from amg_plugin.checkpoint import unwrap
from amg_plugin.errors import RunError
from amg_plugin.models import complexity
from amg_plugin.pruning import current_plan
from amg_plugin.version import __version__

FILE_NAME = "result.json"
#: ``start`` takes the place of ``dense`` where a run began with a model that was pruned already; ``reduced`` is a
#: network that merges or drops tokens per image (``amg.reducer``).
SECTIONS = ("dense", "start", "pruned", "finetuned", "reduced", "exported")
_PACKAGES = ("torch", "torchvision", "timm", "torchreid", "numpy")


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


def environment(use_gpu: bool = True) -> dict[str, Any]:
    """Device, threads and versions behind a measurement.

    Args:
        use_gpu: Whether the GPU was used, if there is one.
    """
    versions = {"amg_plugin": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed as a package"
    device = torch.cuda.get_device_name() if use_gpu and torch.cuda.is_available() else f"cpu ({platform.machine()})"
    return {"device": device, "threads": torch.get_num_threads(), "versions": versions}


def per_cent(fractions: Sequence[float], sign: str = "") -> str:
    """Fractions in per cent: their mean, with the standard deviation if there are several.

    Args:
        fractions: At least one.
        sign: ``"+"`` to write the sign of a positive mean, too.
    """
    text = f"{100 * statistics.fmean(fractions):{sign}.1f}"
    return text if len(fractions) == 1 else f"{text} ± {100 * statistics.stdev(fractions):.1f}"


def write_result(folder: str | Path, result: Mapping[str, Any]) -> Path:
    """Write ``result.json``; an old one is replaced only once the new one is complete.

    Raises:
        RunError: If it cannot be written.
    """
    return write_text(Path(folder) / FILE_NAME, json.dumps(result, indent=1) + "\n")


def write_text(path: str | Path, text: str) -> Path:
    """Write a text file, with its folders; an old one is replaced only once the new one is complete.

    Raises:
        RunError: If it cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise RunError(f"The file '{path}' cannot be written: {error}.") from error
    return path


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns of text, the first left and the others right aligned."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        first, *rest = (
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return "  ".join([first, *rest]).rstrip()

    return "\n".join([line(header), line(["-" * width for width in widths]), *map(line, rows)])


def comparison_table(result: Mapping[str, Any]) -> str:
    """Before/after table of a result as text."""
    return text_table(*comparison_rows(result))


def comparison_rows(result: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the before/after table: one row per section that a result has."""
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
