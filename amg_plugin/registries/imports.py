"""Loading the modules in which users register what is theirs: ``--import`` and ``amg.imports`` of a file.

Only what a user names is loaded. ``amg.imports`` in a checkpoint, an exported file or a result is shown and no more.
"""

from __future__ import annotations

import importlib
import importlib.util
import keyword
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from amg_plugin.errors import InputError

logger = logging.getLogger(__name__)

#: What this process has loaded: as the user named it -> module name, or absolute path of the file.
LOADED: dict[str, str] = {}
_told: ContextVar[bool] = ContextVar("told", default=False)


def load_import(word: str, where: str = "--import", folder: Path | None = None) -> None:
    """Import a module, or a file under its own name, as if its folder were on the path.

    The folder is put at the end of ``sys.path``, which loader processes started by ``spawn`` inherit, so they find the
    module by the same name.

    Args:
        word: A module name, or a file: what ends in ``.py`` or holds a slash.
        where: Who names it, for messages.
        folder: Where a file is looked for; the current folder if omitted.

    Raises:
        InputError: The file or module is missing, its name is taken, or it fails; the message names both.
    """
    if word.endswith(".py") or "/" in word or os.sep in word:
        try:
            path = (folder or Path()).joinpath(Path(word).expanduser()).resolve()
        except RuntimeError as error:  # ~name of nobody
            raise InputError(f"'{word}' from {where} cannot be used: {error}") from error
        LOADED[word] = str(_load_file(path, word, where))
        return
    _import(word, f"'{word}' from {where} (a file is named with its suffix, my_data.py)")
    LOADED[word] = word


def _load_file(path: Path, word: str, where: str) -> Path:
    name = path.stem
    if not path.is_file():
        raise InputError(f"'{word}' from {where} does not exist: expected the file {path}.")
    if path.suffix != ".py" or not name.isidentifier() or keyword.iskeyword(name):
        raise InputError(f"'{word}' from {where} cannot be imported; allowed is a file named as a module, my_data.py.")
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    there = _origin(name)
    if there != path:
        raise InputError(
            f"'{word}' from {where} cannot be imported: Python finds the module '{name}' in {there} first; rename the "
            "file."
        )
    _import(name, f"'{word}' from {where}")
    return path


def _origin(name: str) -> Path | str:
    """File of the module that ``import name`` finds."""
    try:
        spec = importlib.util.find_spec(name)
    except ValueError:  # __main__, which has no spec
        return "the running script"
    return Path(spec.origin).resolve() if spec and spec.has_location else "Python itself"


def _import(name: str, what: str) -> None:
    importlib.invalidate_caches()
    try:
        importlib.import_module(name)
    except (Exception, SystemExit) as error:
        reason = " ".join(str(error).split()) or "no message"
        raise InputError(f"{what} cannot be imported: {type(error).__name__}: {reason.rstrip('.')}.") from error


@contextmanager
def imports_told() -> Iterator[None]:
    """Inside, :func:`stored_imports` is silent: it was said already, of the file that others are made of."""
    token = _told.set(True)
    try:
        yield
    finally:
        _told.reset(token)


def stored_imports(config: Mapping[str, Any], where: str) -> None:
    """Show ``amg.imports`` of a stored configuration, unless the user has loaded the same.

    Args:
        config: What a checkpoint or an exported file holds; anything may be in it.
        where: Its file, for the message.
    """
    amg = config.get("amg")
    named = amg.get("imports") if isinstance(amg, Mapping) else None
    loaded = {Path(word).name for word in LOADED}
    missing = [str(word) for word in named if Path(str(word)).name not in loaded] if isinstance(named, list) else []
    if missing and not _told.get():
        logger.warning(
            "%s was made with amg.imports %s, which is not loaded from there, but by --import or a configuration file.",
            where,
            ", ".join(missing),
        )
