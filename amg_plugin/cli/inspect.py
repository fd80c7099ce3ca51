"""``amg-reid inspect``: structure and cost of a checkpoint, block by block."""

from __future__ import annotations

import argparse
import json

HELP = "print a checkpoint's structure and cost per block"
DESCRIPTION = """Print what each block of a checkpoint keeps and costs. No data is needed.

example: amg-reid inspect log/vit_small_pruned/best.pth"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("checkpoint", metavar="CKPT", help="a checkpoint written by amg-reid")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(args: argparse.Namespace) -> int:
    """Print; 0 on success."""
    from amg_plugin.checkpoint import read_checkpoint
    from amg_plugin.runs.description import describe, render

    checkpoint = read_checkpoint(args.checkpoint)
    content = describe(checkpoint)
    print(json.dumps(content, indent=1) if args.json else render(checkpoint, content))
    return 0
