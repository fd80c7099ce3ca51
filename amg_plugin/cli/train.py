"""``amg-reid train``: make the dense model."""

from __future__ import annotations

import argparse
import time

from amg_plugin.cli.arguments import (
    add_config_arguments,
    add_overwrite_argument,
    add_weights_argument,
    config_from_arguments,
    finish,
    logged,
    refuse_to_overwrite,
)

HELP = "train the dense model with torchreid's loop"
DESCRIPTION = """Train a dense ViT with torchreid's loaders, loop and evaluator.

The model of the last epoch goes to SAVE_DIR/last.pth, the best one (mAP of the first target at the evaluations that
test.eval_freq asks for) to SAVE_DIR/best.pth, the figures to SAVE_DIR/result.json. An amg.schedule of the
configuration is not used here: see 'amg-reid prune'. --weights continues from a checkpoint, for example to give a dense
model the epochs that a pruned one was fine-tuned for; without --config-file its own configuration counts, and SAVE_DIR
is the folder 'train' inside its data.save_dir. A SAVE_DIR that holds a result.json is refused without --overwrite.

example: amg-reid train --config-file market1501/vit_small --root reid-data data.save_dir log/vit_small"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_weights_argument(parser, "continue from this checkpoint instead of starting from scratch")
    add_overwrite_argument(parser)
    add_config_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Train; 0 on success."""
    from amg_plugin.checkpoint import read_checkpoint
    from amg_plugin.runs.setup import prepare
    from amg_plugin.runs.train import train

    checkpoint = read_checkpoint(args.weights) if args.weights else None
    cfg = config_from_arguments(args, use_schedule=False, base=checkpoint.config if checkpoint else None)
    refuse_to_overwrite(cfg, args.overwrite, args.weights)
    prepare(cfg)
    started = time.time()
    with logged(cfg.data.save_dir, "train"):
        finish(cfg, "train", train(cfg, checkpoint), started)
    return 0
