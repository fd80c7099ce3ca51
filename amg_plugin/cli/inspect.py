"""Print a checkpoint's structure and cost per block.

This is what each block of the checkpoint keeps and costs. No data is needed.

example: amg-reid inspect log/vit_small_pruned/best.pth

more: docs/commands.md
"""

import json
from argparse import Namespace

from amg_plugin.cli.arguments import CHECKPOINT, JSON, adder

add_arguments = adder(CHECKPOINT, JSON)


def run(args: Namespace) -> int:
    """Print; 0 on success."""
    from amg_plugin.checkpoint import read_checkpoint
    from amg_plugin.runs.result import describe, description_text

    checkpoint = read_checkpoint(args.checkpoint)
    content = describe(checkpoint)
    print(json.dumps(content, indent=1) if args.json else description_text(checkpoint, content))
    return 0
