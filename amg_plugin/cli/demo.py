"""``amg-reid demo``: draw a data set, train, prune, fine-tune, evaluate."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from amg_plugin.cli.arguments import add_key_value_argument, finish, logged
from amg_plugin.errors import InputError

HELP = "run everything on a drawn data set, in a few minutes on two CPU cores"
DESCRIPTION = """Draw the data set synthetic_reid, train a small ViT on it from scratch, prune 25 % of the heads and
25 % of the tokens, fine-tune with distillation, evaluate before and after, and print the table.

The demo needs no download and no GPU. Its configurations are demo/synthetic and demo/synthetic_head25_token25. Figures
and checkpoints go to SAVE_DIR/dense and SAVE_DIR/pruned, in place of those of an earlier demo. The numbers say that the
path works, not how well the method does on real people.

example: amg-reid demo --seed 1"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("--root", default="reid-data", metavar="FOLDER", help="where the data set goes (%(default)s)")
    parser.add_argument("--save-dir", default="log/demo", metavar="FOLDER", help="where results go (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="seed of data, training and pruning (%(default)s)")
    add_key_value_argument(parser, "configuration keys and their values, for both halves")


def run(args: argparse.Namespace) -> int:
    """Run the demo; 0 on success."""
    from amg_plugin.checkpoint import LAST_CHECKPOINT, read_checkpoint
    from amg_plugin.config.load import load_config
    from amg_plugin.data.synthetic.reid import write_synthetic_reid
    from amg_plugin.runs.prune import prune
    from amg_plugin.runs.setup import prepare
    from amg_plugin.runs.train import train

    started = time.time()
    if args.seed < 0:
        raise InputError(f"--seed {args.seed} is negative; 0 or more is allowed.")
    folder = Path(args.save_dir)
    root = Path(args.root) / f"seed{args.seed}"
    shared = ["data.root", str(root), "train.seed", args.seed]
    dense_cfg = load_config("demo/synthetic", [*shared, "data.save_dir", str(folder / "dense"), *args.opts])
    # The second half takes its epochs from the schedule.
    pairs = zip(args.opts[::2], args.opts[1::2], strict=False)
    words = [word for pair in pairs if pair[0] != "train.max_epoch" for word in pair]
    pruned_cfg = load_config(
        "demo/synthetic_head25_token25", [*shared, "data.save_dir", str(folder / "pruned"), *words]
    )

    prepare(pruned_cfg)
    prepare(dense_cfg)
    write_synthetic_reid(root, seed=args.seed)
    with logged(dense_cfg.data.save_dir, "train"):
        finish(dense_cfg, "train", train(dense_cfg), started)
    with logged(pruned_cfg.data.save_dir, "prune"):
        dense = read_checkpoint(Path(dense_cfg.data.save_dir) / LAST_CHECKPOINT)
        finish(pruned_cfg, "demo", prune(pruned_cfg, dense, print), started)
    return 0
