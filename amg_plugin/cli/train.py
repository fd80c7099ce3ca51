"""Train the dense model with torchreid's loop.

Loaders, loop and evaluator are torchreid's. The model of the last epoch goes to SAVE_DIR/last.pth, the best one (mAP of
the first target at the evaluations that test.eval_freq asks for) to SAVE_DIR/best.pth, the figures to
SAVE_DIR/result.json. An amg.schedule of the configuration is not used here: see 'amg-reid prune'. --weights continues
from a checkpoint, for example to give a dense model the epochs that a pruned one was fine-tuned for; on other
identities it takes backbone and neck and makes a new classifier, and says so. Without --config-file the checkpoint's
own configuration counts, and SAVE_DIR is the folder 'train' inside its data.save_dir. A SAVE_DIR that holds a
result.json is refused without --overwrite.

The state of the run is saved after every epoch (state.pth). The same command with --resume goes on with a run that was
interrupted, from wherever it is, and ends with the same model. It starts from the beginning where nothing was saved,
and does nothing where the run has ended. Ctrl-C and SIGTERM let the step be finished and its state be saved.

example: amg-reid train --config-file market1501/vit_small --root reid-data data.save_dir log/vit_small

more: docs/training.md
"""

from argparse import Namespace

from amg_plugin.cli import arguments, beginning
from amg_plugin.cli.arguments import CONFIGURATION, OVERWRITE, argument
from amg_plugin.cli.beginning import RESUME

add_arguments = arguments.adder(
    argument("--weights", "continue from this checkpoint instead of starting from scratch", metavar="CKPT"),
    argument("--preview", "only print checks, schedule and expected time"),
    OVERWRITE,
    *RESUME,
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
    checkpoint, base = beginning.read_start(args)
    cfg = arguments.config_from_arguments(args, use_schedule=False, base=base)
    if args.preview:
        preview.show(cfg, checkpoint, "train", print)
        return 0
    with joined(use_gpu(cfg)):
        if (start := beginning.begin(args, cfg)) is None:
            return 0
        prepare(cfg := start.cfg)
        if start.state is None:
            checks.refuse(checks.before_work(cfg, checkpoint, "train"))
        with arguments.logged(cfg.data.save_dir, "train", start) as started:
            arguments.finish(cfg, "train", train(cfg, checkpoint, start), started, *start.typed)
            arguments.add_report(cfg)
    return 0
