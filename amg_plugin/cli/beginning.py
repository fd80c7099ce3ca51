"""How ``train`` and ``prune`` begin or go on. Light: what is heavy is imported on use."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amg_plugin.cli import arguments
from amg_plugin.cli.arguments import argument

if TYPE_CHECKING:
    from yacs.config import CfgNode

    from amg_plugin.checkpoint import Checkpoint
    from amg_plugin.runs.resuming import Start

RESUME = (
    argument("--resume", "go on with the interrupted run that data.save_dir holds"),
    argument("--resume-anyway", "as --resume, also with other settings, images or versions that leave the network"),
)


def read_start(args: argparse.Namespace, required: bool = False) -> tuple[Checkpoint | None, dict[str, Any] | None]:
    """The checkpoint of ``--weights``, and the configuration that counts where no ``--config-file`` is given.

    A run that goes on needs the checkpoint no more: its own configuration is in what it saved.

    Raises:
        InputError: If the checkpoint is missing or cannot be used.
    """
    args.resume = (args.resume or args.resume_anyway) and not args.preview
    given = dict(zip(args.opts[::2], args.opts[1::2], strict=False))
    folder, state = given.get("data.save_dir", ""), given.get("model.resume", "")
    if (args.resume or state) and not (args.weights and Path(args.weights).exists()):
        from amg_plugin.runs.resuming import saved_config

        base = saved_config(folder, state) if folder or state else None
        if base is not None or (args.config_file and not required):
            return None, base
    if required:
        arguments.required_weights(args)
    checkpoint = arguments.checkpoint_from_arguments(args, args.weights) if args.weights else None
    return checkpoint, checkpoint and arguments.as_base(checkpoint.config, args.command)


def begin(args: argparse.Namespace, cfg: CfgNode) -> Start | None:
    """How a run begins or goes on; None, with a sentence, if it has ended.

    Raises:
        InputError: If it would write over something, or cannot go on like this.
    """
    from amg_plugin.runs import resuming
    from amg_plugin.utils import processes

    goes_on = args.resume or bool(cfg.model.resume)
    arguments.refuse_to_overwrite(cfg, args.overwrite or goes_on, args.weights)
    options = {"resume": args.resume, "anyway": args.resume_anyway, "overwrite": args.overwrite}
    start = resuming.begin(cfg, args.command, args.weights, **options)
    where = start and start.state and str(start.state.position)
    processes.same_on_all(where, "state to go on from")  # and nobody writes before all have looked
    if start is not None:
        words = [word for word in args.words if word not in ("--resume", "--resume-anyway")]
        start.kept.setdefault("typed", [words, args.config_file])
    else:
        print(f"The run in '{cfg.data.save_dir}' has ended; there is nothing to go on with.")
    return start
