"""Networks side by side: torchreid's by name and checkpoints of the plugin, counted and evaluated by one protocol."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
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
from amg_plugin.runs.comparison_table import Row
from amg_plugin.runs.setup import build_evaluator, check_precision, fitted, own_config, use_gpu
from amg_plugin.utils.environment import environment

logger = logging.getLogger(__name__)

ALL = "all"


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
    """What the figures were made with, for :func:`amg_plugin.runs.comparison_table.render`."""
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
    """Refuse what would have no effect.

    Raises:
        ConfigError: If a key asks for pictures or for weights.
    """
    for key, instead in (
        ("test.visrank", "pictures of rankings are drawn by 'amg-reid test' only"),
        ("model.load_weights", "weights are given with --weights NAME=FILE"),
        ("model.resume", "weights are given with --weights NAME=FILE"),
    ):
        if value := reduce(getattr, key.split("."), cfg):
            raise ConfigError(f"{key} is '{value}', but {instead}.")


def _sizes(arguments: Sequence[str]) -> dict[str, tuple[int, int]]:
    """``--size`` by name.

    Raises:
        InputError: If one is malformed, or the network takes no other size than its own.
    """
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


Restore = Callable[[CfgNode], tuple[CfgNode, nn.Module, list[str]]]
"""Out of the configuration of all rows: that of one, the network with its weights, and what a reader must know."""


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
    model, size = checkpoint.build(), checkpoint.spec.image_size
    plan, reducer = checkpoint.plan, checkpoint.spec.reducer
    note = "dense"
    if not plan.is_dense:
        note = f"{sum(plan.heads_per_block)}/{sum(plan.num_heads)} heads, "
        note += f"{sum(plan.tokens_per_block)}/{plan.num_patches * plan.depth} tokens ({plan.variant})"
    note += f", {reducer.method}" if reducer else ""
    own = checkpoint.config.get("test", {})
    departures = [
        f"own test.{key} is {own[key]}"
        for key in ("dist_metric", "normalize_feature", "rerank")
        if key in own and own[key] != cfg.test[key]
    ]

    def restore(cfg: CfgNode) -> tuple[CfgNode, nn.Module, list[str]]:
        own = own_config(checkpoint, cfg)
        return own, fitted(checkpoint, own).build(), departures

    row = Row(checkpoint.spec.arch, *size, **backbones.cost(model, file, *size), note=note)
    row.weights, row.file_size = file, Path(file).stat().st_size
    return row, restore


def _evaluate(counted: Sequence[tuple[Row, Restore | None]], cfg: CfgNode) -> None:
    check_precision(cfg)
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
