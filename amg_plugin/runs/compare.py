"""Networks side by side: torchreid's by name and checkpoints of the plugin, counted and evaluated by one protocol."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

from tqdm import tqdm
from yacs.config import CfgNode

from amg_plugin import compat
from amg_plugin.checkpoint import Checkpoint, read_checkpoint
from amg_plugin.errors import ConfigError, InputError
from amg_plugin.plugin import backbones
from amg_plugin.plugin.models import MODELS
from amg_plugin.runs.comparison_table import Row
from amg_plugin.runs.setup import build_evaluator, check_precision, fitted, own_config, use_gpu
from amg_plugin.utils.environment import environment

logger = logging.getLogger(__name__)

ALL = "all"


@dataclass
class Candidate:
    """What becomes a row.

    Attributes:
        row: Its figures so far.
        model: torchreid's name; empty for a checkpoint of the plugin.
        checkpoint: The plugin's checkpoint.
    """

    row: Row
    model: str = ""
    checkpoint: Checkpoint | None = None

    @property
    def has_weights(self) -> bool:
        """Whether its features mean anything."""
        return self.row.file_size is not None


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
    candidates = [
        _candidate(kind, value, cfg, chosen) for kind, value in tqdm(wanted, "counting", leave=False, disable=None)
    ]
    if evaluate:
        _evaluate(candidates, cfg)
    return [candidate.row for candidate in candidates]


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


def _candidate(kind: str, value: str, cfg: CfgNode, sizes: dict[str, tuple[int, int]]) -> Candidate:
    """Build, check and count one row; weights are read here so that a wrong file stops before any evaluation."""
    if kind == "checkpoint":
        return _own(value)
    name, separator, file = value.partition("=")
    if kind == "weights":
        if not separator or not file:
            raise InputError(f"--weights '{value}' must look like osnet_x1_0=model.pth.tar-60.")
        if name in MODELS:
            raise InputError(f"--weights '{value}': files of {name} are checkpoints of amg-reid, give --checkpoint.")
        backbones.check_name(name)
    height, width = sizes.get(name) or backbones.input_size(name, (cfg.data.height, cfg.data.width))
    amg = cfg.amg.clone()
    amg.defrost()
    amg.image_size = [height, width]
    model = backbones.build(name, amg, on_meta=kind == "model")
    row = Row(name, height, width, **backbones.cost(model, name, height, width))
    if kind == "weights":
        backbones.load_weights(model, name, file)
        row.weights, row.file_size = file, Path(file).stat().st_size
    return Candidate(row, model=name)


def _own(file: str) -> Candidate:
    checkpoint = read_checkpoint(file)
    model, (height, width) = checkpoint.build(), checkpoint.spec.image_size
    plan, reducer = checkpoint.plan, checkpoint.spec.reducer
    left = f"{sum(plan.heads_per_block)}/{sum(plan.num_heads)} heads, " + (
        f"{sum(plan.tokens_per_block)}/{plan.num_patches * plan.depth} tokens ({plan.variant})"
    )
    row = Row(
        checkpoint.spec.arch,
        height,
        width,
        **backbones.cost(model, file, height, width),
        weights=file,
        file_size=Path(file).stat().st_size,
        note=("dense" if plan.is_dense else left) + (f", {reducer.method}" if reducer else ""),
    )
    return Candidate(row, checkpoint=checkpoint)


def _evaluate(candidates: Sequence[Candidate], cfg: CfgNode) -> None:
    check_precision(cfg)
    cfg = cfg.clone()
    cfg.defrost()
    for candidate in candidates:
        row, checkpoint = candidate.row, candidate.checkpoint
        if not candidate.has_weights:
            continue
        logger.info("%s (%s)", row.name, row.weights)
        compat.torchreid().utils.set_random_seed(cfg.train.seed)
        if checkpoint is not None:
            own = own_config(checkpoint, cfg)
            model = fitted(checkpoint, own).build()
            row.note = "; ".join([row.note, *_departures(checkpoint, cfg)])
        else:
            own = cfg.clone()
            own.data.height, own.data.width = row.height, row.width
            model = backbones.build(candidate.model, own.amg)
            backbones.load_weights(model, candidate.model, row.weights)
        row.scores = build_evaluator(own, model).evaluate()
        cfg.amg.check_images = False  # the images are the same for every row


def _departures(checkpoint: Checkpoint, cfg: CfgNode) -> list[str]:
    """Where the common protocol is not the one of the checkpoint's own configuration."""
    own = checkpoint.config.get("test", {})
    keys = ("dist_metric", "normalize_feature", "rerank")
    return [f"own test.{key} is {own[key]}" for key in keys if key in own and own[key] != cfg.test[key]]
