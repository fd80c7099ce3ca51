"""Networks side by side: torchreid's by name and checkpoints of the plugin, counted and evaluated by one protocol."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import reduce
from pathlib import Path
from typing import Any

from torch import nn
from tqdm import tqdm
from yacs.config import CfgNode

from amg_plugin import compat
from amg_plugin.checkpoint import read_checkpoint
from amg_plugin.errors import ConfigError, InputError
from amg_plugin.plugin import backbones
from amg_plugin.plugin.registry import MODELS
from amg_plugin.runs.setup import build_evaluator, fitted, own_config, use_gpu
from amg_plugin.utils.environment import environment
from amg_plugin.utils.tables import csv_table, markdown_table, text_table

logger = logging.getLogger(__name__)

ALL = "all"
NO_WEIGHTS = "no weights"
_MIB = 1 << 20

Restore = Callable[[CfgNode], tuple[CfgNode, nn.Module, list[str]]]
"""Out of the configuration of all rows: that of one, the network with its weights, and what a reader must know."""


@dataclass
class Row:
    """One model.

    Attributes:
        name: What the table calls it.
        height: Image height in pixels.
        width: Image width in pixels.
        params: Parameters without classifier.
        macs: Counted MACs of one image, without classifier.
        size: Bytes of parameters and buffers, without classifier.
        weights: The file that the weights come from, or :data:`NO_WEIGHTS`.
        file_size: Bytes of that file; None without one.
        scores: Per target ``mAP``, ``rank1`` (fractions) and ``cmc``; empty if not evaluated.
        note: What a reader must know.
    """

    name: str
    height: int
    width: int
    params: int
    macs: int
    size: int
    weights: str = NO_WEIGHTS
    file_size: int | None = None
    scores: dict[str, dict[str, Any]] = field(default_factory=dict)
    note: str = ""


def compare(
    cfg: CfgNode,
    *,
    models: Sequence[str] = (),
    weights: Sequence[str] = (),
    checkpoints: Sequence[str] = (),
    sizes: Sequence[str] = (),
    evaluate: bool = True,
) -> list[Row]:
    """Count every network, and evaluate those that have weights.

    Args:
        cfg: Data, protocol and device; size and ``amg`` node of networks without a configuration of their own.
        models: Names of networks to count, or :data:`ALL`.
        weights: torchreid's networks with a file, as ``NAME=FILE``.
        checkpoints: Checkpoints of the plugin.
        sizes: Input sizes of torchreid's networks, as ``NAME=HxW``.
        evaluate: Count only if False; then nothing named means :data:`ALL`.

    Returns:
        A row per network, in the order models, weights, checkpoints.

    Raises:
        InputError: If there is nothing to do, a name is unknown, a file or size does not fit, or the data cannot be
            used.
    """
    _refuse_keys(cfg)
    if evaluate and not weights and not checkpoints:
        raise InputError(
            "There is nothing to evaluate: give --weights NAME=FILE or --checkpoint CKPT, or --no-eval to count only."
        )
    names = list(models)
    if ALL in names or not (names or weights or checkpoints):
        names = [*backbones.torchreid_names(), *MODELS]
    wanted = [
        *(("model", backbones.check_name(name)) for name in dict.fromkeys(names)),
        *(("weights", argument) for argument in weights),
        *(("checkpoint", file) for file in checkpoints),
    ]
    chosen = _sizes(sizes)
    # Files are read here, so that a wrong one stops before any evaluation.
    counted = [
        _own(value, cfg) if kind == "checkpoint" else _torchreids(kind, value, cfg, chosen)
        for kind, value in tqdm(wanted, "counting", leave=False, disable=None)
    ]
    if evaluate:
        _evaluate(counted, cfg)
    return [row for row, _ in counted]


def conditions(cfg: CfgNode, *, evaluated: bool) -> dict[str, Any]:
    """What the figures were made with, for :func:`render`."""
    measured_on = environment(use_gpu(cfg))
    if not evaluated:
        return {"versions": measured_on["versions"]}
    protocol = {
        "targets": ", ".join(cfg.data.targets),
        "distance": cfg.test.dist_metric,
        "features normalised": "yes" if cfg.test.normalize_feature else "no",
        "re-ranking": "yes" if cfg.test.rerank else "no",
    }
    return {**measured_on, "protocol": protocol, "seed": cfg.train.seed}


def _refuse_keys(cfg: CfgNode) -> None:
    """Refuse keys that would have no effect."""
    for key, instead in (
        ("test.visrank", "pictures of rankings are drawn by 'amg-reid test' only"),
        ("model.load_weights", "weights are given with --weights NAME=FILE"),
        ("model.resume", "weights are given with --weights NAME=FILE"),
    ):
        if value := reduce(getattr, key.split("."), cfg):
            raise ConfigError(f"{key} is '{value}', but {instead}.")


def _sizes(arguments: Sequence[str]) -> dict[str, tuple[int, int]]:
    """``--size`` by name."""
    sizes = {}
    for argument in arguments:
        name, _, size = argument.partition("=")
        height, _, width = size.partition("x")
        if not (height.isdecimal() and width.isdecimal() and int(height) and int(width)):
            raise InputError(f"--size '{argument}' must look like pcb_p6=384x128 (height x width in pixels).")
        sizes[backbones.check_name(name)] = (int(height), int(width))
        fixed = backbones.input_size(name, sizes[name])
        if fixed != sizes[name]:
            raise InputError(f"--size '{argument}' is impossible: {name} takes {fixed[0]}x{fixed[1]} only.")
    return sizes


def _torchreids(kind: str, value: str, cfg: CfgNode, sizes: dict[str, tuple[int, int]]) -> tuple[Row, Restore | None]:
    name, separator, file = value.partition("=")
    if kind == "weights":
        if not separator or not file:
            raise InputError(f"--weights '{value}' must look like osnet_x1_0=model.pth.tar-60.")
        if name in MODELS:
            raise InputError(f"--weights '{value}': files of {name} are checkpoints of amg-reid, give --checkpoint.")
        backbones.check_name(name)
    size = sizes.get(name) or backbones.input_size(name, (cfg.data.height, cfg.data.width))

    def restore(cfg: CfgNode) -> tuple[CfgNode, nn.Module, list[str]]:
        cfg = cfg.clone()
        cfg.defrost()
        cfg.data.height, cfg.data.width = cfg.amg.image_size = list(size)
        model = backbones.build(name, cfg.amg, on_meta=not file)
        if file:
            backbones.load_weights(model, name, file)
        return cfg, model, []

    row = Row(name, *size, **backbones.cost(restore(cfg)[1], name, *size))
    if not file:
        return row, None
    row.weights, row.file_size = file, Path(file).stat().st_size
    return row, restore


def _own(file: str, cfg: CfgNode) -> tuple[Row, Restore]:
    checkpoint = read_checkpoint(file)
    plan, spec = checkpoint.plan, checkpoint.spec
    note = "dense"
    if not plan.is_dense:
        note = f"{sum(plan.heads_per_block)}/{sum(plan.num_heads)} heads, "
        note += f"{sum(plan.tokens_per_block)}/{plan.num_patches * plan.depth} tokens ({plan.variant})"
        note += f", {sum(plan.neurons_per_block)}/{sum(plan.num_neurons)} neurons" if plan.neurons else ""
    note += f", {spec.reducer.method}" if spec.reducer else ""
    stored = checkpoint.config.get("test")
    stored = stored if isinstance(stored, Mapping) else {}  # what is malformed is refused below, by name
    departures = [
        f"own test.{key} is {stored[key]}"
        for key in ("dist_metric", "normalize_feature", "rerank")
        if key in stored and stored[key] != cfg.test[key]
    ]

    def restore(cfg: CfgNode) -> tuple[CfgNode, nn.Module, list[str]]:
        own = own_config(checkpoint, cfg)
        return own, fitted(checkpoint, own).build(), departures

    cost = backbones.cost(checkpoint.build(), file, *spec.image_size)
    size = Path(file).stat().st_size
    return Row(spec.arch, *spec.image_size, **cost, weights=file, file_size=size, note=note), restore


def _evaluate(counted: Sequence[tuple[Row, Restore | None]], cfg: CfgNode) -> None:
    cfg = cfg.clone()
    cfg.defrost()
    for row, restore in counted:
        if restore is None:
            continue
        logger.info("%s (%s)", row.name, row.weights)
        compat.torchreid().utils.set_random_seed(cfg.train.seed)
        own, model, notes = restore(cfg)
        row.scores = build_evaluator(own, model).evaluate()
        row.note = "; ".join(filter(None, [row.note, *notes]))
        cfg.amg.check_images = False  # the images are the same for every row


def render(rows: Sequence[Row], form: str, facts: Mapping[str, Any]) -> str:
    """The table.

    Args:
        rows: One per model, at least one.
        form: ``"text"``, ``"markdown"``, ``"csv"`` or ``"json"``.
        facts: What the figures were made with: ``command`` and what :func:`conditions` gave.
    """
    if form == "json":
        return json.dumps({**facts, "rows": [asdict(row) for row in rows]}, indent=1) + "\n"
    if form == "csv":
        return _csv(rows)
    header, cells = _cells(rows)
    if form == "text":
        legend = "params, MACs (one image, counted) and size (parameters and buffers) are without classifier"
        return "\n".join([text_table(header, cells), "", legend, *_conditions(facts), ""])
    words = [place for place, name in enumerate(header) if name in ("model", "weights", "note")]
    return f"{_preface(facts)}\n{markdown_table(header, cells, left=words)}\n"


def _targets(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(target for row in rows for target in row.scores))


def _cells(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    targets = _targets(rows)
    columns: dict[str, list[str]] = {
        "model": [row.name for row in rows],
        "input": [f"{row.height}x{row.width}" for row in rows],
    }
    for target in targets:
        where = f" {target}" if len(targets) > 1 else ""
        for title, key in (("mAP", "mAP"), ("Rank-1", "rank1")):
            scores = [row.scores.get(target) for row in rows]
            columns[f"{title} %{where}"] = [f"{100 * each[key]:.1f}" if each else "" for each in scores]
    columns |= {
        "params M": [f"{row.params / 1e6:.2f}" for row in rows],
        "MACs G": [f"{row.macs / 1e9:.3f}" for row in rows],
        "size MiB": [f"{row.size / _MIB:.1f}" for row in rows],
        "file MiB": [f"{row.file_size / _MIB:.1f}" if row.file_size else "" for row in rows],
        "weights": [row.weights for row in rows] if targets else [""],
        "note": [row.note for row in rows],
    }
    shown = {name: values for name, values in columns.items() if any(values)}
    return list(shown), [[cell.replace("|", "/") for cell in line] for line in zip(*shown.values(), strict=True)]


def _csv(rows: Sequence[Row]) -> str:
    keys = [(target, key) for target in _targets(rows) for key in ("mAP", "rank1")]
    names = [one.name for one in fields(Row) if one.name != "scores"]
    cells = [
        [*(getattr(row, name) for name in names), *(row.scores.get(target, {}).get(key) for target, key in keys)]
        for row in rows
    ]
    return csv_table([*names, *map(".".join, keys)], cells)


def _conditions(facts: Mapping[str, Any]) -> list[str]:
    lines = [", ".join(f"{name} {version}" for name, version in facts["versions"].items())]
    if "protocol" in facts:
        lines.append("; ".join(f"{key} {value}" for key, value in facts["protocol"].items()))
        lines.append(f"{facts['device']}, {facts['threads']} threads, seed {facts['seed']}")
    return lines


def _preface(facts: Mapping[str, Any]) -> str:
    conditions = "\n".join(f"- {line}" for line in _conditions(facts))
    return f"""# Backbones side by side

Generated by `{facts["command"]}`; do not edit.

- *params*, *MACs* and *size* are those of feature extraction: without classifier, by one definition for all.
- *MACs* are counted while one image passes through the network in eval mode: matrix products, convolutions (grouped and
  depthwise ones as what they are) and attention products. The literature calls them FLOPs.
- *size* is that of parameters and buffers as they are stored; training checkpoints are larger.
- *input* is height x width in pixels; `hacnn` takes 160x64 only.
{conditions}
"""
