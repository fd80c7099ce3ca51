"""AMG pruning of ViT re-ID models in torchreid: train, prune, fine-tune, evaluate.

'python -m amg_plugin' is the same program.

  amg-reid demo                     everything on drawn data, in a few minutes
  amg-reid train  --config-file market1501/vit_small --root DATA
  amg-reid prune  --config-file market1501/vit_small_head25_token25 --weights CKPT --root DATA
  amg-reid test   --weights CKPT -t market1501 --root DATA
  amg-reid inspect CKPT

'torchrun --nproc_per_node=N -m amg_plugin train ...' shares train, prune or test among N processes (docs/scaling.md).
'amg-reid COMMAND --help' explains each command and names its page; docs/README.md in the repository lists all pages.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import errno
import importlib
import os
import runpy
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from amg_plugin import registries
from amg_plugin.cli import arguments, ending
from amg_plugin.cli.output import output_of
from amg_plugin.compat import pip_name
from amg_plugin.errors import AMGError, InputError, MissingDependencyError, RunError, ToldError
from amg_plugin.registries.imports import load_import
from amg_plugin.utils.launched import Launched, launched
from amg_plugin.version import __version__

#: Command -> module: its docstring is the help, add_arguments(parser), run(args) -> exit status.
COMMANDS = {
    "train": "amg_plugin.cli.train",
    "prune": "amg_plugin.cli.prune",
    "test": "amg_plugin.cli.test",
    "inspect": "amg_plugin.cli.inspect",
    "visualize": "amg_plugin.cli.visualize",
    "report": "amg_plugin.cli.report",
    "card": "amg_plugin.cli.card",
    "plot": "amg_plugin.cli.plot",
    "export": "amg_plugin.cli.export",
    "bench": "amg_plugin.cli.bench",
    "compare": "amg_plugin.cli.compare",
    "configs": "amg_plugin.cli.configs",
    "check": "amg_plugin.cli.check",
    "occlude": "amg_plugin.cli.occlude",
    "build-occluded-duke": "amg_plugin.cli.build_occluded_duke",
    "import": "amg_plugin.cli.import_model",
    "zoo": "amg_plugin.cli.zoo",
    "tables": "amg_plugin.cli.tables",
    "demo": "amg_plugin.cli.demo",
    "doctor": "amg_plugin.cli.doctor",
}

#: Commands that ``torchrun`` may start several processes of.
SEVERAL_PROCESSES = ("train", "prune", "test")
#: Those that read checkpoints: torchreid's have the structure of --amg-config.
READERS = ("train", "prune", "test", "inspect", "visualize", "export", "compare", "import", "card")

#: What the commands need of what an installation brings.
_REQUIRED = (
    "torch",
    "torchvision",
    "timm",
    "yacs",
    "yaml",
    "numpy",
    "PIL",
    "safetensors",
    "tqdm",
    "matplotlib",
    "jinja2",
)

USAGE = """amg-reid [--amg-config FILE] COMMAND ...
       amg-reid [--amg-config FILE] SCRIPT ARGS..."""

SCRIPTS = """scripts:
  SCRIPT is a Python file, such as torchreid's own scripts/main.py. It runs unchanged, with the models (vit_amg,
  vit_amg_small, vit_amg_tiny) and data sets of amg_plugin registered; everything after it goes to the script.
  torchreid passes the models neither an image size nor a structure: the 'amg' node of --amg-config holds both.

  amg-reid --amg-config my_amg.yaml scripts/main.py \\
      --config-file my_torchreid.yaml --root reid-data model.name vit_amg_tiny

  where my_amg.yaml says, for images of another size than 256x128,

  amg:
    image_size: [224, 112]
"""


class _Parser(argparse.ArgumentParser):
    """Lists the commands, whose modules are imported only for that."""

    def format_help(self) -> str:
        width = max(map(len, COMMANDS))
        lines = []
        for name, path in COMMANDS.items():
            first, *_ = [*(importlib.import_module(path).__doc__ or "").splitlines(), ""]
            lines.append(f"  {name:<{width}}  {first[:1].lower()}{first[1:].rstrip('.')}")
        return "\n".join([super().format_help(), "commands:", *lines, "", SCRIPTS])


def build_parser() -> argparse.ArgumentParser:
    """The parser of everything up to the name of a command or script."""
    form = argparse.RawDescriptionHelpFormatter
    parser = _Parser("amg-reid", USAGE, __doc__, formatter_class=form, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"amg-reid {__version__}")
    parser.add_argument(
        "--amg-config",
        metavar="FILE",
        help="yaml file with the 'amg' node of the models in SCRIPT, or in checkpoints of torchreid's",
    )
    parser.add_argument("name", nargs="?", help=argparse.SUPPRESS)
    parser.add_argument("words", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser


def command_parser(name: str) -> argparse.ArgumentParser:
    """The parser of what follows the name of a command."""
    module = importlib.import_module(COMMANDS[name])
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(f"amg-reid {name}", description=module.__doc__, formatter_class=form)
    text = "load a module that registers data sets, scorers, formats, ... of yours; repeatable"
    parser.add_argument("--import", action=_Import, metavar="MODULE_OR_FILE", help=text)
    module.add_arguments(parser)
    parser.set_defaults(command=name, run=module.run)
    return parser


class _Import(argparse.Action):
    """Loads a user's module as soon as it is read: what it registers is known to help and to every check."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: str, *_: object) -> None:
        known = set(registries.described())
        load_import(values)
        new = "\n".join(f"  {line}" for line in registries.described() if line not in known)
        parser.epilog = f"{parser.epilog or ''}\nregistered by {values}:\n{new}" if new else parser.epilog


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command or script.

    Args:
        argv: Words after the program's name; None takes those of the process.

    Returns:
        0 on success, 1 for a failed run, 2 for bad input, 130 after Ctrl-C, 141 if nobody reads the output.

    Raises:
        SystemExit: After ``--help``, for words that are out of place, and from a script.
        Exception: What a script raises.
    """
    try:
        try:
            return _run(list(sys.argv[1:] if argv is None else argv))
        except AMGError as error:
            _report(error)
            return error.exit_status
        except ModuleNotFoundError as error:
            if error.name not in _REQUIRED:
                raise
            # As on a device that has only the runtime of exported files.
            remedy = f"pip install {pip_name(error.name)}"
            print(f"amg-reid: error: this needs '{error.name}', which is not installed: {remedy}.", file=sys.stderr)
            return MissingDependencyError.exit_status
        except KeyboardInterrupt:
            print("amg-reid: interrupted", file=sys.stderr)
            return ending.INTERRUPTED
        finally:
            with contextlib.suppress(ValueError):  # a script may have closed it
                sys.stdout.flush()
    except BrokenPipeError:
        if not ending.discard_unread():
            raise
        return ending.UNREAD


def _report(error: AMGError) -> None:
    """Print an error once: what all processes of a run find, the first one says, or the first on its machine."""
    try:
        me = launched()
    except InputError:
        me = Launched()
    known = isinstance(error, ToldError) or (isinstance(error, InputError) and me.local_rank > 0)
    if me.rank == 0:
        print(f"amg-reid: error: {error}", file=sys.stderr)
    elif not known:
        print(f"amg-reid: error in process {me.rank} of {me.count}: {error}", file=sys.stderr)


def _check_processes(name: str | None) -> None:
    """Refuse what several processes would all do, over the same files.

    Raises:
        InputError: If torchrun started several processes of what runs in one.
    """
    if (count := launched().count) > 1 and name not in SEVERAL_PROCESSES:
        what = f"'{name}'" if name in COMMANDS else "a script" if name else "amg-reid without a command"
        raise InputError(
            f"torchrun started {count} processes, but {what} runs in one: start it without torchrun; "
            f"{', '.join(SEVERAL_PROCESSES[:-1])} and {SEVERAL_PROCESSES[-1]} can be shared."
        )


def _run(words: list[str]) -> int:
    parser = build_parser()
    first = parser.parse_args(words)
    _check_processes(first.name)
    if first.name in COMMANDS:
        if first.amg_config is not None and first.name not in READERS:
            raise InputError(
                f"--amg-config is for scripts and for commands that read checkpoints; '{first.name}' is neither."
            )
        with ending.unwinding(), output_of(launched().rank), _files_blamed():
            _put_in_force(first.amg_config)
            parser = command_parser(first.name)
            parser.set_defaults(words=(first.name, *first.words))  # as they were typed
            if parser.get_default("opts") is None:
                args = parser.parse_args(first.words)
            else:
                args = parser.parse_intermixed_args(first.words)  # options may follow 'key value' words
                arguments.end_names_at_keys(args)
            return args.run(args)
    if first.name is not None:
        _run_script(Path(first.name), first.words, first.amg_config)
    elif first.amg_config is not None:
        raise InputError(f"--amg-config {first.amg_config} needs a script: {USAGE.splitlines()[1].strip()}.")
    else:
        parser.print_help()
    return 0


@contextlib.contextmanager
def _files_blamed() -> Iterator[None]:
    """Say what the system says of a file (an impossible name, a full disk) in one sentence, where nobody else has.

    Raises:
        RunError: For a full disk.
        InputError: For anything else that names a file.
    """
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise RunError(f"The disk is full: {error}.") from error
        if error.filename is None or isinstance(error, BrokenPipeError):
            raise
        raise InputError(f"{error.strerror}: '{error.filename}'.") from error


def _run_script(script: Path, words: Sequence[str], amg_config: str | None) -> None:
    """Run a script, torchreid's own for example, as ``python SCRIPT ARGS...`` would, with the plugin registered."""
    if not script.exists():
        near = difflib.get_close_matches(str(script), COMMANDS, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"commands are {', '.join(COMMANDS)}."
        raise InputError(f"'{script}' is neither a command nor a script (in {Path.cwd()}); {hint}")
    if script.is_dir():
        raise InputError(f"SCRIPT '{script}' is a folder; name a Python file in it, such as {script / 'main.py'}.")
    if not os.access(script, os.R_OK):
        raise InputError(f"SCRIPT '{script}' cannot be read; check its permissions.")
    from amg_plugin.plugin.registry import register

    register(*words)  # with data sets such as folder:NAME among them
    _put_in_force(amg_config)
    import torch

    from amg_plugin.models.weights import HARMLESS

    # torchreid's checkpoints hold numpy's numbers, which torch.load of today refuses.
    with _as_if_started(script, words), torch.serialization.safe_globals(HARMLESS):
        runpy.run_path(str(script), run_name="__main__")


def _put_in_force(amg_config: str | None) -> None:
    if amg_config is not None:
        from amg_plugin.config.active import set_active_amg_config
        from amg_plugin.config.load import apply_amg_node

        set_active_amg_config(apply_amg_node(amg_config))


@contextlib.contextmanager
def _as_if_started(script: Path, words: Sequence[str]) -> Iterator[None]:
    argv, path = sys.argv, sys.path[:]
    sys.argv = [str(script), *words]
    if not getattr(sys.flags, "safe_path", False):  # python -P leaves the script's folder out too
        # Python put the folder of this program first, `python -m` the current one; the script would not see them.
        if sys.path and sys.path[0] in ("", str(Path.cwd()), str(Path(argv[0]).parent)):
            del sys.path[0]
        sys.path.insert(0, str(script.resolve().parent))
    # Worker processes get a copy of sys.path and must find the plugin, also where it runs from its checkout.
    home = str(Path(__file__).resolve().parents[2])
    if home not in sys.path:
        sys.path.append(home)
    try:
        yield
    finally:
        sys.argv, sys.path[:] = argv, path
