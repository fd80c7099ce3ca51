"""Arguments, logging and result files that the commands share. Light: what is heavy is imported on use."""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import logging
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from amg_plugin.cli.output import Printable
from amg_plugin.errors import InputError, printable
from amg_plugin.utils.launched import launched

if TYPE_CHECKING:
    from yacs.config import CfgNode

    from amg_plugin.checkpoint import Checkpoint
    from amg_plugin.runs.resuming import Start


def argument(names: str, text: str, **settings: Any) -> tuple[list[str], dict[str, Any]]:
    """An argument for :func:`adder`.

    An option with nothing but a text is a switch. A number or word as default gives the type and ends the help text.
    """
    if names.startswith("-") and not settings:
        settings = {"action": "store_true"}
    if isinstance(settings.get("default"), int | float | str):
        text, settings["type"] = f"{text} (default: %(default)s)", type(settings["default"])
    return names.split(), {"help": text, **settings}


def adder(*arguments: tuple[list[str], dict[str, Any]]) -> Callable[[argparse.ArgumentParser], None]:
    """The ``add_arguments`` of a command with these arguments."""

    def add_arguments(parser: argparse.ArgumentParser) -> None:
        for names, settings in arguments:
            parser.add_argument(*names, **settings)

    return add_arguments


#: Arguments that several commands take.
CHECKPOINT = argument("checkpoint", "a checkpoint written by amg-reid", metavar="CKPT")
JSON = argument("--json", "print JSON instead of a table")
LINK = argument("--link", "hard-link unchanged images instead of copying them")
OVERWRITE = argument("--overwrite", "replace the result that data.save_dir holds")
KEYS = argument(
    "opts",
    "configuration keys and their values, for example train.lr 0.001, anywhere among the options; the names after an "
    "option end at the next option or at the first word that is a configuration key",
    nargs="*",
    default=[],
    metavar="KEY VALUE",
)
TRUSTED = argument(
    "--trusted",
    "open TorchScript, torch.export and ExecuTorch files, which run what is in them: only if you would run a program "
    "from where they come",
)
ROOT = argument("--root", "folder that holds the data sets", metavar="FOLDER")
#: torchreid's options, and configuration keys.
CONFIGURATION = (
    argument("--config-file", "yaml file, or the name of a shipped one (see 'amg-reid configs')", metavar="FILE"),
    argument("-s --sources", "data sets to train on (own data: folder:NAME, csv:NAME)", nargs="+", metavar="NAME"),
    argument("-t --targets", "data sets to evaluate on", nargs="+", metavar="NAME"),
    argument("--transforms", "training transforms", nargs="+", metavar="NAME"),
    ROOT,
    argument("--skip-unreadable", "leave out and name unreadable images and queries without a match; do not stop"),
    KEYS,
)


def end_names_at_keys(args: argparse.Namespace) -> None:
    """Let words such as ``-t market1501 train.lr 0.001`` end the names at the first word that is a configuration key.

    Raises:
        InputError: An option is left without a name.
    """
    from amg_plugin.config.schema import KEYS

    # amg.override and others take a mapping
    keys = {*KEYS, *(key.rpartition(".")[0] for key in KEYS if key.count(".") > 1)}
    for option, words in list(vars(args).items()):
        if option == "opts" or not isinstance(words, list):
            continue
        end = next((place for place, word in enumerate(words) if word in keys), len(words))
        if end == 0 and words:
            raise InputError(f"--{option} is followed by the configuration key '{words[0]}'; give a name first.")
        setattr(args, option, words[:end])
        args.opts = [*words[end:], *args.opts]


def required_weights(args: argparse.Namespace) -> str:
    """The checkpoint's path, or an InputError."""
    if not args.weights:
        raise InputError("--weights is missing; give a checkpoint written by amg-reid, for example log/best.pth.")
    return args.weights


def checkpoint_from_arguments(args: argparse.Namespace, path: str) -> Checkpoint:
    """Read a checkpoint; one of torchreid's has the structure of ``--config-file`` where that is given.

    Raises:
        CheckpointError: If the file cannot be used.
    """
    from amg_plugin.checkpoint import is_torchreid_file, read_checkpoint
    from amg_plugin.config.active import using_amg_config

    if not (args.config_file and is_torchreid_file(path)):
        return read_checkpoint(path)
    with using_amg_config(config_from_arguments(args, use_schedule=False).amg):
        return read_checkpoint(path)


def config_from_arguments(
    args: argparse.Namespace, *, use_schedule: bool = True, base: Mapping[str, Any] | None = None
) -> CfgNode:
    """Load the configuration that the arguments describe.

    Args:
        args: Parsed arguments, :data:`CONFIGURATION` among them.
        use_schedule: False for dense training.
        base: A stored configuration, used when no ``--config-file`` is given; see :func:`as_base`.
    """
    from amg_plugin.config.load import load_config

    overrides: list[object] = ["data.root", args.root] if args.root else []
    if args.skip_unreadable:
        overrides += ["amg.skip_unreadable", True]
    for option in ("sources", "targets", "transforms"):
        if names := getattr(args, option):
            overrides += [f"data.{option}", names]
    return load_config(
        args.config_file,
        [*overrides, *args.opts],
        use_schedule=use_schedule,
        base=None if args.config_file else base,
    )


def as_base(stored: Mapping[str, Any], command: str) -> dict[str, Any]:
    """A checkpoint's configuration for another run.

    It brings its ``data.save_dir``; the run gets a folder inside it, named after the command, so that the files of the
    first run stay as they are.
    """
    # What is malformed stays as it is: reading the configuration refuses it, by name.
    base = copy.deepcopy(dict(stored))
    amg, data = (base.get(name) if isinstance(base.get(name), Mapping) else {} for name in ("amg", "data"))
    amg.pop("image_size", None)  # follows data.height and data.width
    save_dir = data.get("save_dir")
    if save_dir and isinstance(save_dir, str):
        data["save_dir"] = str(Path(save_dir) / command)
    return base


def refuse_to_overwrite(cfg: CfgNode, overwrite: bool, weights: str | None = None) -> None:
    """Check that a run writes over nothing that it should not.

    Args:
        cfg: Its configuration.
        overwrite: Whether an old result may be replaced.
        weights: The checkpoint that it starts from, which may never be.

    Raises:
        InputError: If ``data.save_dir`` holds a result, or the checkpoint where the run writes its own.
    """
    from amg_plugin.checkpoint import BEST_CHECKPOINT, LAST_CHECKPOINT
    from amg_plugin.runs import result as report

    folder = Path(cfg.data.save_dir).resolve()
    if weights and Path(weights).resolve() in (folder / LAST_CHECKPOINT, folder / BEST_CHECKPOINT):
        raise InputError(
            f"data.save_dir '{cfg.data.save_dir}' holds the checkpoint given with --weights, which this run would "
            "overwrite; choose another folder."
        )
    if not overwrite and (folder / report.FILE_NAME).exists():
        raise InputError(
            f"'{cfg.data.save_dir}' holds the result of another run; give another folder as data.save_dir, or "
            "--overwrite to replace it."
        )


def refuse_processes(option: str) -> None:
    """Refuse an option that one process does alone.

    Raises:
        InputError: If torchrun started several processes.
    """
    if (count := launched().count) > 1:
        raise InputError(f"torchrun started {count} processes, but {option} takes one: start it without torchrun.")


class _Message(logging.Formatter):
    """The message alone, made printable."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


class _Once(logging.Filter):
    """Lets a warning pass once: what every evaluation or epoch would say again is known."""

    def __init__(self) -> None:
        super().__init__()
        self._said: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is new, or no warning."""
        if record.levelno != logging.WARNING:
            return True
        text = record.getMessage()
        new = text not in self._said
        self._said.add(text)
        return new


class _Handler(logging.StreamHandler):
    """Writes records; an output that nobody reads ends the run, as it does for a print."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Raise what went wrong, from within the handling of it."""
        raise


class _Tee:
    """Writes to the terminal and, as long as there is room for it, to a file.

    torchreid's ``Logger`` would close the terminal's stream with itself.
    """

    def __init__(self, terminal: TextIO, file: TextIO) -> None:
        self.terminal, self.file = terminal, file
        self.isatty = terminal.isatty

    def write(self, text: str) -> int:
        self.terminal.write(printable(text))
        self.log(printable(text))
        return len(text)

    def flush(self) -> None:
        self.terminal.flush()
        self.log()

    def log(self, text: str = "") -> None:
        """Write to the file and flush it; a run of days does not end for that."""
        if self.file.closed:
            return
        try:
            self.file.write(text)
            self.file.flush()
        except OSError as error:
            with contextlib.suppress(OSError):
                self.file.close()  # what it could not write goes
            self.terminal.write(f"\nThe log '{self.file.name}' cannot be written ({error.strerror}) and ends here.\n")


@contextlib.contextmanager
def logging_to(handler: logging.Handler, propagate: bool = True) -> Iterator[None]:
    """Give the package's log, from INFO on, to a handler."""
    logger = logging.getLogger("amg_plugin")
    before = logger.level, logger.propagate
    handler.setFormatter(_Message())
    handler.addFilter(_Once())
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = propagate
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before[0])
        logger.propagate = before[1]


@contextlib.contextmanager
def messages_aside() -> Iterator[None]:
    """Send torchreid's prints and the package's log to stderr, where stdout is for what a command gives."""
    aside = contextlib.redirect_stdout(Printable(sys.stderr))
    with logging_to(logging.StreamHandler(sys.stderr)), aside, warnings.catch_warnings():
        # torchreid's use of functions that torch renamed or changed since
        warnings.filterwarnings("ignore", module=r"torchreid\.")
        warnings.filterwarnings("ignore", message="Default grid_sample")
        yield


@contextlib.contextmanager
def logged(save_dir: str, command: str, start: Start | None = None) -> Iterator[float]:
    """Send the package's log and torchreid's prints to the terminal and to a file in ``save_dir``.

    Only the first of several processes has a log, and holds the folder. Gives ``time.monotonic()`` at the start, before
    an interruption if there was one. ``start`` says how the run begins; its states go when the block ends without an
    error.

    Raises:
        InputError: If another run is going on in ``save_dir``.
    """
    from amg_plugin.utils import processes
    from amg_plugin.utils.lock import locked

    if not processes.is_main():
        with logging_to(logging.NullHandler(), propagate=False):
            yield time.monotonic()
        return
    stamp = time.strftime("%Y-%m-%d-%H-%M-%S")
    with locked(save_dir), (Path(save_dir) / f"{command}.log-{stamp}").open("w", encoding="utf-8") as file:
        tee = _Tee(sys.stdout, file)
        try:
            with logging_to(_Handler(tee), propagate=False), contextlib.redirect_stdout(tee):
                if start is None:
                    yield time.monotonic()
                else:
                    start.open()
                    yield time.monotonic() - start.keeper.earlier_seconds
                    start.keeper.remove()
        finally:
            tee.log()


def finish(
    cfg: CfgNode,
    command: str,
    sections: dict[str, Any],
    started: float,
    words: Sequence[str] = (),
    config_file: str | None = None,
) -> dict[str, Any]:
    """Write ``result.json`` and print its tables.

    Args:
        cfg: The configuration.
        command: Name of the command.
        sections: ``dense``, ``pruned``, ``finetuned``, whichever are known, and what else belongs to the result.
        started: ``time.monotonic()`` at the start.
        words: The command line after the program's name, kept without the folders of this machine.
        config_file: What the configuration was made from.
    """
    from amg_plugin.config import to_plain_dict
    from amg_plugin.runs import result as report
    from amg_plugin.runs.setup import use_gpu
    from amg_plugin.utils import processes
    from amg_plugin.utils.environment import environment
    from amg_plugin.utils.places import without_folders

    typed = {"arguments": list(map(without_folders, words)), "config_file": without_folders(config_file or "")}
    facts = {"config": to_plain_dict(cfg), **typed, "seed": cfg.train.seed, **environment(use_gpu(cfg))}
    if processes.world() > 1:
        facts["processes"] = processes.world()
    result = {"command": command, **sections, **facts, "seconds": round(time.monotonic() - started, 1)}
    path = report.write_result(cfg.data.save_dir, result)
    print("\n" + "\n\n".join([*map(report.as_text, report.tables(result)), str(path)]))
    return result


def add_report(cfg: CfgNode, start: Checkpoint | None = None) -> None:
    """Write the report of a run that has ended and print where it is; :func:`amg_plugin.report.ending.report_run`."""
    from amg_plugin.report.ending import report_run
    from amg_plugin.utils import processes

    if not processes.is_main():
        return
    with contextlib.redirect_stdout(io.StringIO()):  # torchreid describes the data anew, between figures and page
        page = report_run(cfg, start)
    if page is not None:
        print(page)
