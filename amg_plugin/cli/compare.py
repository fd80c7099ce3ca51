"""``amg-reid compare``: torchreid's backbones and checkpoints of the plugin by one protocol, in one table."""

from __future__ import annotations

import argparse
import contextlib
import logging
import shlex
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

from amg_plugin.cli.arguments import add_config_arguments, config_from_arguments

HELP = "evaluate and count torchreid's backbones and your checkpoints in one table"
DESCRIPTION = """Put any of torchreid's networks and any checkpoint of amg-reid side by side: input size, mAP, Rank-1,
parameters, counted MACs and size. All rows have the same targets, distance, normalisation and re-ranking.

--no-eval builds and counts without data and weights; alone, it counts all of torchreid's networks.
A torchreid network is evaluated with the weights of a file (--weights NAME=FILE, read as data, never as code;
everything but the classifier must fit). Networks named by --models have none: they are counted and marked 'no weights',
since random features say nothing. Nothing is downloaded.

example: amg-reid compare --no-eval
         amg-reid compare --weights osnet_x1_0=log/osnet/model.pth.tar-60 --checkpoint log/pruned/best.pth \\
                          --root reid-data -t market1501
         amg-reid compare --no-eval --models resnet50 hacnn vit_amg_small --output table.csv"""

#: Forms of the table, and the suffixes of --output that mean one.
FORMATS = ("text", "markdown", "csv", "json")
_SUFFIXES = {".md": "markdown", ".csv": "csv", ".json": "json"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("--no-eval", action="store_true", help="count only: no data, no weights needed")
    parser.add_argument("--models", nargs="+", default=[], metavar="NAME", help="networks to count, or 'all'")
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


def run(args: argparse.Namespace) -> int:
    """Compare; 0 on success."""
    from amg_plugin.runs.compare import compare, conditions
    from amg_plugin.runs.comparison_table import render
    from amg_plugin.utils.files import write_text

    cfg = config_from_arguments(args, use_schedule=False)
    form = args.format or _SUFFIXES.get(Path(args.output or "").suffix, "text")
    named = {"models": args.models, "weights": args.weights, "checkpoints": args.checkpoint, "sizes": args.size}
    with _messages_aside():
        rows = compare(cfg, **named, evaluate=not args.no_eval)
    facts = {"command": _command(args), **conditions(cfg, evaluated=not args.no_eval)}
    text = render(rows, form, facts)
    print(write_text(args.output, text) if args.output else text, end="\n" if args.output else "")
    return 0


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
