"""The ``amg-reid`` command."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from types import FrameType

from amg_plugin import registries
from amg_plugin.errors import AMGError, MissingDependencyError
from amg_plugin.registries.imports import load_import
from amg_plugin.version import __version__

#: Subcommand -> module with HELP, DESCRIPTION, add_arguments and run.
COMMANDS = {
    "train": "amg_plugin.cli.train",
    "prune": "amg_plugin.cli.prune",
    "test": "amg_plugin.cli.test",
    "inspect": "amg_plugin.cli.inspect",
    "visualize": "amg_plugin.cli.visualize",
    "export": "amg_plugin.cli.export",
    "import": "amg_plugin.cli.import_model",
    "occlude": "amg_plugin.cli.occlude",
    "zoo": "amg_plugin.cli.zoo",
    "build-occluded-duke": "amg_plugin.cli.build_occluded_duke",
    "tables": "amg_plugin.cli.tables",
    "bench": "amg_plugin.cli.bench",
    "check": "amg_plugin.cli.check",
    "compare": "amg_plugin.cli.compare",
    "demo": "amg_plugin.cli.demo",
    "doctor": "amg_plugin.cli.doctor",
}

DESCRIPTION = """AMG pruning of ViT re-ID models in torchreid: train, prune, fine-tune, evaluate.

  amg-reid demo                     everything on drawn data, in a few minutes
  amg-reid train  --config-file market1501/vit_small --root DATA
  amg-reid prune  --config-file market1501/vit_small_head25_token25 --weights CKPT --root DATA
  amg-reid test   --weights CKPT -t market1501 --root DATA
  amg-reid inspect CKPT

'amg-reid COMMAND --help' explains each; 'python -m amg_plugin SCRIPT' runs any torchreid script with the plugin."""


def build_parser(only: str | None = None) -> argparse.ArgumentParser:
    """The argument parser.

    Args:
        only: A subcommand whose arguments are all that is needed; the others are listed but not imported.
    """
    parser = argparse.ArgumentParser(
        prog="amg-reid", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"amg-reid {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, path in COMMANDS.items():
        if name != only and only in (*COMMANDS, "--version"):
            commands.add_parser(name)
            continue
        module = importlib.import_module(path)
        sub = commands.add_parser(
            name,
            help=module.HELP,
            description=getattr(module, "DESCRIPTION", module.HELP),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.add_argument(
            "--import",
            action=_Import,
            metavar="MODULE_OR_FILE",
            help="load a module that registers data sets, scorers, formats, ... of yours; repeatable",
        )
        module.add_arguments(sub)
        sub.set_defaults(run=module.run)
    return parser


class _Import(argparse.Action):
    """Loads a user's module as soon as it is read: what it registers is known to help and to every check."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: str, *_: object) -> None:
        known = set(registries.described())
        load_import(values)
        new = "\n".join(f"  {line}" for line in registries.described() if line not in known)
        parser.epilog = f"{parser.epilog or ''}\nregistered by {values}:\n{new}" if new else parser.epilog


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Words after the program's name; None takes those of the process.

    Returns:
        0 on success, 1 for a failed run, 2 for bad input.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        with _unwinding_when_terminated():
            args = build_parser(words[0] if words else None).parse_args(words)
            return args.run(args)
    except AMGError as error:
        print(f"amg-reid: error: {error}", file=sys.stderr)
        return error.exit_status
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        # As on a device that has only the runtime of exported files.
        print("amg-reid: error: the commands need 'torch', which is not installed: pip install torch.", file=sys.stderr)
        return MissingDependencyError.exit_status
    except KeyboardInterrupt:
        print("amg-reid: interrupted", file=sys.stderr)
        return 130


@contextlib.contextmanager
def _unwinding_when_terminated() -> Iterator[None]:
    """End on SIGTERM as on Ctrl-C, so that unfinished files go away."""
    if threading.current_thread() is not threading.main_thread():
        yield  # where Python sets no handlers
        return
    ours = os.getpid()

    def leave(number: int, frame: FrameType | None) -> None:
        if os.getpid() != ours:  # a forked worker, which owns nothing
            os._exit(128 + number)
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


def console_main() -> None:
    """Entry point of the installed program."""
    sys.exit(main())
