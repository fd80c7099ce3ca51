"""Run everything on a drawn data set, in a few minutes on two CPU cores.

The demo draws the data set synthetic_reid, trains a small ViT on it from scratch, prunes 25 % of the heads and 25 % of
the tokens, fine-tunes with distillation, evaluates before and after, prints the table, and ends with the path of its
report, a page to open in a browser.

It needs no download and no GPU. Its configurations are demo/synthetic and demo/synthetic_head25_token25; KEY VALUE
changes both. Figures and checkpoints go to SAVE_DIR/dense and SAVE_DIR/pruned, in place of those of an earlier demo.
The numbers say that the path works, not how well the method does on real people.

example: amg-reid demo --seed 1

more: docs/tutorials/prune.md
"""

from argparse import Namespace
from pathlib import Path

from amg_plugin.cli.arguments import KEYS, add_report, adder, argument, finish, logged
from amg_plugin.errors import InputError

add_arguments = adder(
    argument("--root", "where the data set goes", default="reid-data", metavar="FOLDER"),
    argument("--save-dir", "where results go", default="log/demo", metavar="FOLDER"),
    argument("--seed", "seed of data, training and pruning", default=1),
    KEYS,
)

_DENSE, _PRUNED = "demo/synthetic", "demo/synthetic_head25_token25"
_OPTIONS = {"data.root": "--root", "data.save_dir": "--save-dir", "train.seed": "--seed"}


def run(args: Namespace) -> int:
    """Run the demo; 0 on success."""
    from amg_plugin.checkpoint import LAST_CHECKPOINT, Checkpoint, read_checkpoint
    from amg_plugin.config import load_config
    from amg_plugin.data.synthetic.reid import SyntheticSpec, write_synthetic_reid
    from amg_plugin.pruning import current_plan
    from amg_plugin.runs.setup import build_model, prepare
    from amg_plugin.runs.train import plan_pruning, prune, train

    for key, option in _OPTIONS.items():
        if key in args.opts[::2]:
            raise InputError(f"{key} is for both halves of the demo and the drawing; give it as {option}.")
    if args.seed < 0:
        raise InputError(f"--seed {args.seed} is negative; 0 or more is allowed.")
    root, folder = Path(args.root) / f"seed{args.seed}", Path(args.save_dir)
    shared = ["data.root", str(root), "train.seed", args.seed]
    dense_cfg = load_config(_DENSE, [*shared, "data.save_dir", str(folder / "dense"), *args.opts])
    # The second half takes its epochs from the schedule.
    pairs = zip(args.opts[::2], args.opts[1::2], strict=False)
    words = [word for pair in pairs if pair[0] != "train.max_epoch" for word in pair]
    options = [*shared, "data.save_dir", str(folder / "pruned"), *words]
    pruned_cfg = load_config(_PRUNED, options)

    prepare(pruned_cfg)  # what is wrong with it should fail before anything is drawn
    model = build_model(dense_cfg, SyntheticSpec().train_ids)
    start = Checkpoint(model.spec, current_plan(model), model.state_dict(), preprocessing=model.preprocessing)
    plan_pruning(pruned_cfg, start)
    prepare(dense_cfg)  # which seeds everything
    write_synthetic_reid(root, seed=args.seed)
    with logged(dense_cfg.data.save_dir, "train") as started:
        finish(dense_cfg, "train", train(dense_cfg), started, args.words, _DENSE)
        add_report(dense_cfg)
    with logged(pruned_cfg.data.save_dir, "prune"):
        dense = read_checkpoint(Path(dense_cfg.data.save_dir) / LAST_CHECKPOINT)
        finish(pruned_cfg, "demo", prune(pruned_cfg, dense, print), started, args.words, _PRUNED)
        add_report(pruned_cfg, dense)
    return 0
