"""Finished runs as users name them: their folders, what to call them, and the times that lie beside their results."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from amg_plugin.errors import InputError
from amg_plugin.runs import details
from amg_plugin.runs import result as results
from amg_plugin.utils.files import kind_of, read_json


def folder_of(word: str | Path) -> Path:
    """The folder of a run, given as such or as its ``result.json``.

    Raises:
        InputError: If there is no result in it.
    """
    path = Path(word)
    folder = path.parent if path.name == results.FILE_NAME else path
    if kind_of(folder / results.FILE_NAME) != "file":
        raise InputError(f"'{word}' holds no {results.FILE_NAME}; give the folder of a run (its data.save_dir).")
    return folder.resolve()


def names_of(folders: Sequence[Path]) -> list[str]:
    """The last parts of each folder's path, as many as tell the folders apart."""
    if len(folders) == 1:
        return [folders[0].name]
    common = Path(os.path.commonpath(folders))
    own = [folder.relative_to(common).parts or (folder.name,) for folder in folders]
    while len({len(parts) for parts in own}) == 1 and len(own[0]) > 1 and len({parts[-1] for parts in own}) == 1:
        own = [parts[:-1] for parts in own]  # log/1/pruned and log/2/pruned are 1 and 2
    return ["/".join(parts) for parts in own]


def read_finished(folder: Path) -> Mapping[str, Any]:
    """The result of a run.

    Raises:
        InputError: If it is something else.
    """
    result = read_json(folder / results.FILE_NAME, "result")
    if not isinstance(result, Mapping) or not isinstance(result.get("config"), Mapping):
        raise InputError(f"'{folder / results.FILE_NAME}' is not a result of amg-reid.")
    return result


def read_bench(path: str | Path) -> list[Mapping[str, Any]]:
    """Rows of a file of ``amg-reid bench --output``, each with what they were ``measured_on``.

    Raises:
        InputError: If it is something else.
    """
    content = read_json(path, "benchmark")
    if not isinstance(content, Mapping) or not {"subjects", "cases", "rows", "environment"} <= set(content):
        raise InputError(f"'{path}' is not a file of 'amg-reid bench --output'.")
    where, rows = content["environment"], content["rows"]
    if not isinstance(where, Mapping) or not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"'{path}' is not a file of 'amg-reid bench --output'.")
    return [{**row, "measured_on": f"{where.get('device')}, {where.get('rounds')} rounds"} for row in rows]


def times_beside(folder: Path) -> list[Mapping[str, Any]]:
    """Rows of every benchmark in the folder of a run."""
    found = []
    for path in sorted(folder.glob("*.json")):
        if path.name not in (results.FILE_NAME, details.FILE_NAME):
            try:
                found += read_bench(path)
            except InputError:
                continue  # somebody else's
    return found
