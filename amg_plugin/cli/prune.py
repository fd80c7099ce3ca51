"""Prune a checkpoint by the schedule, fine-tune with distillation.

amg.schedule says when to score, cut and fine-tune; amg.final_epochs of fine-tuning follow. The number of epochs follows
from the schedule. Without --config-file the checkpoint's own configuration counts, so that only the schedule is needed,
and SAVE_DIR is the folder 'prune' inside its data.save_dir. The model goes to SAVE_DIR/last.pth and best.pth (best mAP
of the first target among the evaluations after the last cut), the figures of the dense, the pruned and the fine-tuned
model to SAVE_DIR/result.json; one that is there already is replaced only with --overwrite.

Instead of rates, amg.target_macs_saving 0.3 gives the share of the MACs to save, and amg.target_latency_saving 0.3 the
share of the time, which is measured first (amg.latency says how). amg.balance says how much of it comes from heads,
tokens and neurons; auto finds the shares that change the features least on some training images.

--preview shows what is looked at before work, what several balances would remove if there is a target, and the rounds
of the schedule with epochs, expected MACs and the time, from a few steps that it runs on the data. It writes nothing.

Beyond the published method, amg.repair fits what is left anew after each cut, and amg.token_variant merge merges
tokens.

The state of the run is saved after every epoch and every cut (state.pth). The same command with --resume goes on with a
run that was interrupted, from wherever it is, and ends with the same model; --weights may be gone by then. It starts
from the beginning where nothing was saved, and does nothing where the run has ended. Ctrl-C and SIGTERM let the step be
finished and its state be saved.

example: amg-reid prune --config-file market1501/vit_small_head25_token25 --weights log/vit_small/last.pth \
           --root reid-data data.save_dir log/vit_small_pruned

more: docs/budgets.md
"""

from argparse import Namespace
from pathlib import Path

from amg_plugin.cli import arguments, beginning
from amg_plugin.cli.arguments import CONFIGURATION, OVERWRITE, argument
from amg_plugin.cli.beginning import RESUME

add_arguments = arguments.adder(
    argument("--weights", "the dense (or already pruned) checkpoint to start from", metavar="CKPT"),
    argument("--preview", "only print checks, schedule and expected time, and what a target would remove"),
    OVERWRITE,
    *RESUME,
    *CONFIGURATION,
)


def run(args: Namespace) -> int:
    """Prune; 0 on success."""
    from amg_plugin.checkpoint import LAST_CHECKPOINT, read_checkpoint
    from amg_plugin.runs import balance, checks, latency_target, preview
    from amg_plugin.runs.result import write_result
    from amg_plugin.runs.setup import prepare, use_gpu
    from amg_plugin.runs.train import check_reducer, prune
    from amg_plugin.utils import processes

    if args.preview:
        arguments.refuse_processes("--preview")
    checkpoint, base = beginning.read_start(args, required=True)
    cfg = arguments.config_from_arguments(args, base=base)
    if checkpoint is not None:
        check_reducer(cfg, checkpoint)
    if args.preview:
        cfg, _ = latency_target.resolve(cfg, checkpoint, print, data=False)
        preview.show(cfg, checkpoint, "prune", print)
        return 0
    with processes.joined(use_gpu(cfg)):
        if (start := beginning.begin(args, cfg)) is None:
            return 0
        prepare(cfg := start.cfg)
        if start.state is None:
            checks.refuse(checks.before_work(cfg, checkpoint, "prune"))
        with arguments.logged(cfg.data.save_dir, "prune", start) as started:
            datamanager = None
            if start.state is None:
                cfg, found = processes.from_main(lambda: latency_target.resolve(cfg, checkpoint, print))
                cfg, tried, datamanager = balance.resolve(cfg, checkpoint, print)
                start.found(cfg, latency=found, balance=tried)
            sections = prune(cfg, checkpoint, print, datamanager, start)
            sections |= {name: start.kept[name] for name in ("latency", "balance") if start.kept[name]}
            result = arguments.finish(cfg, "prune", sections, started, *start.typed)
            if "latency" in sections and processes.is_main():  # the result is safe by now, whatever follows
                pruned = read_checkpoint(Path(cfg.data.save_dir) / LAST_CHECKPOINT)
                result["latency"] = latency_target.compare(sections["latency"], cfg, pruned, print)
                write_result(cfg.data.save_dir, result)
            arguments.add_report(cfg, checkpoint or start.first_network())
    return 0
