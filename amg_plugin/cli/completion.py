"""Completion of words in a shell, by argcomplete. Light, since a shell waits for it."""

import argparse
import importlib
from collections.abc import Iterable

from amg_plugin.cli.main import COMMANDS


def parser() -> argparse.ArgumentParser:
    """A parser of every command at once; only for completion, since help and errors come from :mod:`cli.main`."""
    whole = argparse.ArgumentParser("amg-reid")
    commands = whole.add_subparsers()
    for name, path in COMMANDS.items():
        module = importlib.import_module(path)
        command = commands.add_parser(name)
        command.add_argument("--import", metavar="MODULE_OR_FILE", help="load a module of yours")
        module.add_arguments(command)
        for action in command._actions:
            action.completer = {"config_file": _configurations, "opts": _keys}.get(action.dest)
    return whole


def complete() -> None:
    """Answer the shell and end the process; do nothing without argcomplete, or if no shell asks."""
    try:
        import argcomplete
    except ModuleNotFoundError:
        return
    argcomplete.autocomplete(parser())


def _configurations(prefix: str, **_: object) -> Iterable[str]:
    from argcomplete.completers import FilesCompleter

    from amg_plugin.config.files import list_configs

    return [*list_configs(), *FilesCompleter(("yaml", "yml"))(prefix)]


def _keys(**_: object) -> Iterable[str]:
    from amg_plugin.config.schema import KEYS

    return KEYS
