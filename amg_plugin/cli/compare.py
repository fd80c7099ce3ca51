"""``amg-reid compare``: torchreid's backbones and checkpoints of the plugin by one protocol, in one table."""

from __future__ import annotations

import argparse
import contextlib
import logging
import shlex
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from tqdm import tqdm
from yacs.config import CfgNode

from amg_plugin import compat
from amg_plugin.checkpoint import Checkpoint, read_checkpoint
from amg_plugin.cli.arguments import add_config_arguments, config_from_arguments, names_and_pairs
from amg_plugin.cli.test import evaluate, evaluation_config
from amg_plugin.config.load import load_config
from amg_plugin.errors import ConfigError, InputError
from amg_plugin.plugin import backbones
from amg_plugin.plugin.models import MODELS
from amg_plugin.runs import result as report
from amg_plugin.runs.comparison_table import FORMATS, Row, render
from amg_plugin.runs.setup import assemble, check_precision, restore_model, use_gpu
from amg_plugin.utils.environment import environment

HELP = "evaluate and count torchreid's backbones and own checkpoints in one table"
DESCRIPTION = """Put any of torchreid's networks and any checkpoint of amg-reid side by side: input size, mAP, Rank-1,
parameters, counted MACs and size. All rows are evaluated alike: the same targets, distance, normalisation and
re-ranking.

--no-eval builds and counts without data and without weights; with nothing else, all of torchreid's networks.
A torchreid network is evaluated with the weights of a file (--weights NAME=FILE, read as data, never as code;
everything but the classifier must fit). Networks named by --models have none: they are counted and marked 'no weights',
since random features are no result. Nothing is downloaded.

example: amg-reid compare --no-eval
         amg-reid compare --weights osnet_x1_0=log/osnet/model.pth.tar-60 --checkpoint log/pruned/best.pth \\
                          --root reid-data -t market1501
         amg-reid compare --no-eval --models resnet50 hacnn vit_amg_small --output table.csv"""

logger = logging.getLogger(__name__)

ALL = "all"
_SUFFIXES = {".md": "markdown", ".csv": "csv", ".json": "json"}
#: Keys of a configuration that are the same for every row: where data lies, and how features are compared.
_PROTOCOL = (
    "use_gpu", "data.root", "data.targets", "data.workers", "data.split_id", "data.save_dir", "test.batch_size",
    "test.dist_metric", "test.normalize_feature", "test.rerank", "test.ranks", "cuhk03.labeled_images",
    "cuhk03.classic_split", "cuhk03.use_metric_cuhk03", "market1501.use_500k_distractors", "amg.check_images",
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("--no-eval", action="store_true", help="count only: no data, no weights needed")
    parser.add_argument("--models", nargs="+", default=[], metavar="NAME", help=f"networks to count, or '{ALL}'")
    parser.add_argument(
        "--weights",
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="a torchreid network with a checkpoint of torchreid's, to evaluate; may be given several times",
    )
    parser.add_argument(
        "--checkpoint",
        action="append",
        default=[],
        metavar="CKPT",
        help="a checkpoint of amg-reid, pruned or not, to evaluate; may be given several times",
    )
    parser.add_argument(
        "--size",
        action="append",
        default=[],
        metavar="NAME=HxW",
        help="another input size for a torchreid network (default: data.height x data.width; hacnn 160x64)",
    )
    parser.add_argument("--format", choices=FORMATS, help="form of the table (default: by --output's suffix, or text)")
    parser.add_argument("--output", metavar="FILE", help="write there instead of printing")
    add_config_arguments(parser)


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


def run(args: argparse.Namespace) -> int:
    """Compare; 0 on success."""
    args.models, pairs = names_and_pairs(args.models)
    args.opts = [*pairs, *args.opts]
    cfg = config_from_arguments(args, use_schedule=False)
    _refuse_keys(cfg)
    wanted = _wanted(args)
    form = args.format or _SUFFIXES.get(Path(args.output or "").suffix, "text")
    with _messages_aside():
        candidates = [
            _candidate(kind, value, cfg, _sizes(args.size))
            for kind, value in tqdm(wanted, desc="counting", leave=False, disable=None)
        ]
        if not args.no_eval:
            _evaluate_all(candidates, cfg)
    text = render([candidate.row for candidate in candidates], form, _facts(args, cfg))
    print(report.write_text(args.output, text) if args.output else text, end="\n" if args.output else "")
    return 0


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
        if _value(cfg, key):
            raise ConfigError(f"{key} is '{_value(cfg, key)}', but {instead}.")


def _wanted(args: argparse.Namespace) -> list[tuple[str, str]]:
    """Every row as (kind, value), in the order of the table.

    Raises:
        InputError: If there is nothing to compare, or nothing to evaluate.
    """
    if not args.no_eval and not args.weights and not args.checkpoint:
        raise InputError(
            "There is nothing to evaluate: give --weights NAME=FILE or --checkpoint CKPT, or --no-eval to count only."
        )
    names = list(args.models)
    if ALL in names or not (names or args.weights or args.checkpoint):
        names = [*backbones.torchreid_names(), *MODELS]
    return [
        *(("model", backbones.check_name(name)) for name in dict.fromkeys(names)),
        *(("weights", argument) for argument in args.weights),
        *(("checkpoint", file) for file in args.checkpoint),
    ]


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


def _evaluate_all(candidates: Sequence[Candidate], cfg: CfgNode) -> None:
    check_precision(cfg)
    cfg = cfg.clone()
    cfg.defrost()
    for candidate in candidates:
        if not candidate.has_weights:
            continue
        logger.info("%s (%s)", candidate.row.name, candidate.row.weights)
        compat.torchreid().utils.set_random_seed(cfg.train.seed)
        if candidate.checkpoint is not None:
            own = checkpoint_config(candidate.checkpoint, cfg)
            candidate.row.scores = _scores(own, restore_model(candidate.checkpoint, own))
            candidate.row.note = "; ".join([candidate.row.note, *_departures(candidate.checkpoint, cfg)])
        else:
            candidate.row.scores = _evaluate_torchreid(candidate, cfg)
        cfg.amg.check_images = False  # the images are the same for every row


def _departures(checkpoint: Checkpoint, cfg: CfgNode) -> list[str]:
    """Where the common protocol is not the one of the checkpoint's own configuration."""
    own = checkpoint.config.get("test", {})
    keys = ("dist_metric", "normalize_feature", "rerank")
    return [f"own test.{key} is {own[key]}" for key in keys if key in own and own[key] != cfg.test[key]]


def _evaluate_torchreid(candidate: Candidate, cfg: CfgNode) -> dict[str, dict[str, Any]]:
    row, cfg = candidate.row, cfg.clone()
    cfg.data.height, cfg.data.width = row.height, row.width
    model = backbones.build(candidate.model, cfg.amg)
    backbones.load_weights(model, candidate.model, row.weights)
    return _scores(cfg, model)


def _scores(cfg: CfgNode, model: nn.Module) -> dict[str, dict[str, Any]]:
    """mAP, Rank-1 and CMC of a network on every target of ``cfg``."""
    from amg_plugin.data.manager import build_datamanager

    engine = assemble(cfg, build_datamanager(evaluation_config(cfg)), model, [], 1)
    evaluate(cfg, engine, visrank=False)
    return engine.results


def checkpoint_config(checkpoint: Checkpoint, cfg: CfgNode) -> Any:
    """A checkpoint's own configuration (size, pixels, network) under the protocol of all rows."""
    own = {"test.visrank": False}
    if not checkpoint.config:  # saved from Python
        size, pixels = checkpoint.spec.image_size, checkpoint.preprocessing
        own |= {"data.height": size[0], "data.width": size[1], "amg.neck_feat": checkpoint.spec.neck_feat}
        if pixels:
            own |= {"data.norm_mean": list(pixels.mean), "data.norm_std": list(pixels.std)}
        if pixels and pixels.interpolation == "bicubic":
            own["data.transforms"] = ["random_flip", "bicubic"]
    own |= {key: _value(cfg, key) for key in _PROTOCOL}
    base = {**checkpoint.config} or None
    if base and isinstance(base.get("amg"), dict):
        base["amg"] = {key: value for key, value in base["amg"].items() if key != "image_size"}
    return load_config(None, [word for pair in own.items() for word in pair], use_schedule=False, base=base)


def _value(cfg: CfgNode, key: str) -> Any:
    for name in key.split("."):
        cfg = cfg[name]
    return cfg


def _facts(args: argparse.Namespace, cfg: CfgNode) -> dict[str, Any]:
    """What the figures were made with."""
    measured_on = environment(use_gpu(cfg))
    facts = {"command": _command(args), "versions": measured_on["versions"]}
    if args.no_eval:
        return facts
    protocol = {
        "targets": ", ".join(cfg.data.targets),
        "distance": cfg.test.dist_metric,
        "features normalised": "yes" if cfg.test.normalize_feature else "no",
        "re-ranking": "yes" if cfg.test.rerank else "no",
    }
    return {
        **facts,
        "protocol": protocol,
        "device": measured_on["device"],
        "threads": measured_on["threads"],
        "seed": cfg.train.seed,
    }


def _command(args: argparse.Namespace) -> str:
    """The command line that made the table."""
    words = ["amg-reid", "compare", *(["--no-eval"] if args.no_eval else [])]
    for flag in ("config_file", "root", "output"):
        if getattr(args, flag):
            words += [f"--{flag.replace('_', '-')}", getattr(args, flag)]
    for flag in ("weights", "checkpoint", "size"):
        for value in getattr(args, flag):
            words += [f"--{flag}", value]
    for flag in ("models", "sources", "targets", "transforms"):
        if getattr(args, flag):
            words += [f"--{flag}", *getattr(args, flag)]
    return shlex.join([*words, *map(str, args.opts)])


@contextlib.contextmanager
def _messages_aside() -> Iterator[None]:
    """Send torchreid's prints and the package's log to stderr: stdout is for the table."""
    logger = logging.getLogger("amg_plugin")
    level, handler = logger.level, logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
            # torchreid's use of functions that torch renamed or changed since
            warnings.filterwarnings("ignore", module=r"torchreid\.")
            warnings.filterwarnings("ignore", message="Default grid_sample")
            yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
