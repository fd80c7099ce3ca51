"""Train the dense model with torchreid's loop.

Loaders, loop and evaluator are torchreid's. The model of the last epoch goes to SAVE_DIR/last.pth, the best one (mAP of
the first target at the evaluations that test.eval_freq asks for) to SAVE_DIR/best.pth, the figures to
SAVE_DIR/result.json. An amg.schedule of the configuration is not used here: see 'amg-reid prune'. --weights continues
from a checkpoint, for example to give a dense model the epochs that a pruned one was fine-tuned for; on other
identities it takes backbone and neck and makes a new classifier, and says so. Without --config-file the checkpoint's
own configuration counts, and SAVE_DIR is the folder 'train' inside its data.save_dir. A SAVE_DIR that holds a
result.json is refused without --overwrite.

example: amg-reid train --config-file market1501/vit_small --root reid-data data.save_dir log/vit_small

more: docs/training.md
"""

from argparse import Namespace

from amg_plugin.cli import arguments
from amg_plugin.cli.arguments import CONFIGURATION, OVERWRITE, argument

add_arguments = arguments.adder(
    argument("--weights", "continue from this checkpoint instead of starting from scratch", metavar="CKPT"),
    argument("--preview", "only print checks, schedule and expected time"),
    OVERWRITE,
    *CONFIGURATION,
)


def run(args: Namespace) -> int:
    """Train; 0 on success."""
    from amg_plugin.runs import checks, preview
    from amg_plugin.runs.setup import prepare, use_gpu
    from amg_plugin.runs.train import train
    from amg_plugin.utils.processes import joined

    if args.preview:
        arguments.refuse_processes("--preview")
    checkpoint = arguments.checkpoint_from_arguments(args, args.weights) if args.weights else None
    base = checkpoint.config if checkpoint else None
    cfg = arguments.config_from_arguments(args, use_schedule=False, base=base)
    if args.preview:
        preview.show(cfg, checkpoint, "train", print)
        return 0
    arguments.refuse_to_overwrite(cfg, args.overwrite, args.weights)
    with joined(use_gpu(cfg)):
        prepare(cfg)
        checks.refuse(checks.before_work(cfg, checkpoint, "train"))
        with arguments.logged(cfg.data.save_dir, "train") as started:
            arguments.finish(cfg, "train", train(cfg, checkpoint), started, args.words, args.config_file)
            arguments.add_report(cfg)
    return 0
