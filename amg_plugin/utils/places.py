"""Commands and values as they were typed, without the folders of a machine."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Any

#: Where a path begins that leads to a place of one machine: at its root, in a home folder, or above the current folder.
_BEGINNING = r"(?:~[\w.-]*(?=/|$)|\.\.(?=/|$)|/|[A-Za-z]:[\\/])"
_WHOLE = re.compile(rf"(--?[\w-]+=|[\w.-]+=)?({_BEGINNING}.*)", re.DOTALL)
_WITHIN = re.compile(rf"(?<![\w.:/~\\-]){_BEGINNING}[^\s'\",;\[\]{{}}()<>]*")


def without_folders(text: str) -> str:
    """Text in which paths from the root, from a home folder or from above the current folder are their last name only.

    Paths below the current folder stay as they are.
    """
    if (whole := _WHOLE.fullmatch(text)) and not re.search(r"\s[~/]|[\[{,]", text):
        return (whole[1] or "") + _last(whole[2])
    return _WITHIN.sub(lambda found: _last(found[0]), text)


def _last(path: str) -> str:
    name = PurePosixPath(path.replace("\\", "/")).name
    return "." if name in ("", "..") or name.startswith("~") else name


def plain_values(value: Any) -> Any:
    """Plain data whose texts are :func:`without_folders`."""
    if isinstance(value, dict):
        return {without_folders(str(key)): plain_values(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_values(item) for item in value]
    return without_folders(value) if isinstance(value, str) else value


def typed_command(words: Iterable[object]) -> str:
    """A command line of ``amg-reid`` for documents."""
    return shlex.join(["amg-reid", *(without_folders(str(word)) for word in words)])
