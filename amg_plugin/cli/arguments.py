"""Arguments, logging and result files that the commands share. Light: what is heavy is imported on use."""

from __future__ import annotations

import argparse
import contextlib
import copy
import logging
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from amg_plugin.errors import InputError

if TYPE_CHECKING:
    from yacs.config import CfgNode


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """torchreid's flags ``--config-file``, ``-s``, ``-t``, ``--root``, ``--transforms``, and ``key value`` words."""
    parser.add_argument(
        "--config-file", metavar="FILE", help="yaml file, or the name of a shipped one (see 'amg-reid configs')"
    )
    parser.add_argument("-s", "--sources", nargs="+", metavar="NAME", help="data sets to train on")
    parser.add_argument("-t", "--targets", nargs="+", metavar="NAME", help="data sets to evaluate on")
    parser.add_argument("--transforms", nargs="+", metavar="NAME", help="training transforms")
    parser.add_argument("--root", metavar="FOLDER", help="folder that holds the data sets")
    parser.add_argument(
        "--skip-unreadable",
        action="store_true",
        help="leave out images that cannot be read and queries without a match, and name them, instead of stopping",
    )
    add_key_value_argument(
        parser,
        "configuration keys and their values, for example train.lr 0.001, anywhere among the options; the names after "
        "an option end at the next option or at the first word that is a configuration key",
    )


def add_key_value_argument(parser: argparse.ArgumentParser, text: str) -> None:
    """Words ``key value``, before, between or after options."""
    parser.add_argument("opts", nargs="*", default=[], metavar="KEY VALUE", help=text)


def end_names_at_keys(args: argparse.Namespace) -> None:
    """Let words such as ``-t market1501 train.lr 0.001`` end the names at the first word that is a configuration key.

    Args:
        args: Arguments of a command that takes ``key value`` words, which are completed.

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


def add_weights_argument(parser: argparse.ArgumentParser, text: str) -> None:
    """``--weights CKPT``."""
    parser.add_argument("--weights", metavar="CKPT", help=text)


def required_weights(args: argparse.Namespace) -> str:
    """The checkpoint's path.

    Raises:
        InputError: If it was not given.
    """
    if not args.weights:
        raise InputError("--weights is missing; give a checkpoint written by amg-reid, for example log/best.pth.")
    return args.weights


def config_from_arguments(
    args: argparse.Namespace, *, use_schedule: bool = True, base: Mapping[str, Any] | None = None
) -> CfgNode:
    """Load the configuration that the arguments describe.

    A checkpoint's configuration brings its ``data.save_dir``; the run gets a folder inside it, named after the command,
    so that the files of the first run stay as they are.

    Args:
        args: Parsed arguments of :func:`add_config_arguments`.
        use_schedule: False for dense training.
        base: A checkpoint's configuration, used when no ``--config-file`` is given.
    """
    from amg_plugin.config.load import load_config

    overrides: list[object] = ["data.root", args.root] if args.root else []
    if getattr(args, "skip_unreadable", False):
        overrides += ["amg.skip_unreadable", True]
    for option in ("sources", "targets", "transforms"):
        if names := getattr(args, option):
            overrides += [f"data.{option}", names]
    return load_config(
        args.config_file,
        [*overrides, *args.opts],
        use_schedule=use_schedule,
        base=None if args.config_file or base is None else _as_base(base, args.command),
    )


def _as_base(stored: Mapping[str, Any], command: str) -> dict[str, Any]:
    # What is malformed stays as it is: reading the configuration refuses it, by name.
    base = copy.deepcopy(dict(stored))
    amg, data = (base.get(name) if isinstance(base.get(name), Mapping) else {} for name in ("amg", "data"))
    amg.pop("image_size", None)  # follows data.height and data.width
    save_dir = data.get("save_dir")
    if save_dir and isinstance(save_dir, str):
        data["save_dir"] = str(Path(save_dir) / command)
    return base


def add_overwrite_argument(parser: argparse.ArgumentParser) -> None:
    """``--overwrite``."""
    parser.add_argument("--overwrite", action="store_true", help="replace the result that data.save_dir holds")


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


class _Handler(logging.StreamHandler):
    """Writes records; an output that nobody reads ends the run, as it does for a print."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Raise what went wrong, from within the handling of it."""
        raise


class _Tee:
    """Writes to the terminal and to a file. torchreid's ``Logger`` would close the terminal's stream with itself."""

    def __init__(self, *streams: TextIO) -> None:
        self.streams = streams

    def write(self, text: str) -> int:
        for stream in self.streams:
            stream.write(text)
        return len(text)

    def flush(self) -> None:
        for stream in self.streams:
            stream.flush()

    def isatty(self) -> bool:
        return self.streams[0].isatty()


@contextlib.contextmanager
def logged(save_dir: str, command: str) -> Iterator[None]:
    """Send the package's log and torchreid's prints to the terminal and to a file in ``save_dir``."""
    stamp = time.strftime("%Y-%m-%d-%H-%M-%S")
    logger = logging.getLogger("amg_plugin")
    level, propagate = logger.level, logger.propagate
    with (Path(save_dir) / f"{command}.log-{stamp}").open("w", encoding="utf-8", buffering=1) as file:
        tee = _Tee(sys.stdout, file)
        handler = _Handler(tee)
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False
        try:
            with contextlib.redirect_stdout(tee):
                yield
        finally:
            logger.removeHandler(handler)
            logger.setLevel(level)
            logger.propagate = propagate


def finish(cfg: CfgNode, command: str, sections: dict[str, Any], started: float) -> dict[str, Any]:
    """Write ``result.json`` and print its tables.

    Args:
        cfg: The configuration.
        command: Name of the command.
        sections: ``dense``, ``pruned``, ``finetuned``, whichever are known, and what else belongs to the result.
        started: ``time.time()`` at the start.

    Returns:
        The result.
    """
    from amg_plugin.config.load import to_plain_dict
    from amg_plugin.runs import result as report
    from amg_plugin.runs.setup import use_gpu
    from amg_plugin.runs.targets import as_text, tables
    from amg_plugin.utils.environment import environment

    result = {
        "command": command,
        **sections,
        "config": to_plain_dict(cfg),
        "seed": cfg.train.seed,
        **environment(use_gpu(cfg)),
        "seconds": round(time.time() - started, 1),
    }
    path = report.write_result(cfg.data.save_dir, result)
    print("\n" + "\n\n".join([*map(as_text, tables(result)), str(path)]))
    return result
