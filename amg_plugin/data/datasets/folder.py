"""Data sets of a user's that need no class: a folder in Market-1501's layout, and a table of images.

``folder:NAME`` is a folder below the data root, ``csv:NAME`` the file ``NAME.csv`` in it. torchreid gets them into its
table when they are asked for, since their names are not known before.
"""

from __future__ import annotations

import csv
import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from amg_plugin.data.datasets.local import Item, LocalDataset
from amg_plugin.data.layout import PARTS, FilesError, FolderLayout, identity_and_camera
from amg_plugin.errors import ConfigError, DataError
from amg_plugin.utils.files import expanded

FORMS = ("folder:NAME", "csv:NAME")
"""How these data sets are named."""
COLUMNS = ("path", "pid", "camid", "part")
"""Columns of a table; it may have others."""

_HIGHEST = 2**63 - 1  # a label becomes an int64


class FolderDataset(LocalDataset):
    """Any folder with Market-1501's folders, read by the rules of the plugin.

    Identities and cameras are the numbers that stand in the names, as they stand; identity -1 is junk and left out.

    Args:
        name: ``folder:NAME``.
        **kwargs: See :class:`LocalDataset`.
    """

    nested: ClassVar = True
    naming: ClassVar = "PPPP_cC*, with any number of digits (identity, camera)"

    def __init__(self, name: str, **kwargs: Any) -> None:
        self.layout = layout_of(name)
        super().__init__(**kwargs)

    @staticmethod
    def _parse(name: str) -> tuple[int, int | None] | None:
        said = identity_and_camera(name)
        return None if said is None or said[0] < -1 or max(said) > _HIGHEST else said


class TableLayout(FolderLayout):
    """The file of a table of images, ``NAME.csv`` in the data root."""

    def locate(self, root: str | Path) -> Path:
        """Find the file.

        Raises:
            DataError: It is missing.
        """
        path = expanded(root).resolve() / self.folders[0]
        if not path.is_file():
            raise DataError(f"The data set {self.name} is expected in the file {path}, which does not exist.")
        return path


class TableDataset(LocalDataset):
    """A table of images (CSV): path, identity, camera and part of each.

    Args:
        name: ``csv:NAME``.
        **kwargs: See :class:`LocalDataset`.
    """

    def __init__(self, name: str, **kwargs: Any) -> None:
        self.layout = layout_of(name)
        super().__init__(**kwargs)

    def read(self, folder: Path) -> dict[str, list[Item]]:
        """List the images of every part; ``folder`` is the file."""
        parts: dict[str, list[Item]] = {part: [] for part in PARTS}
        bad, known = [], set()
        with folder.open(encoding="utf-8-sig", newline="") as file:
            try:
                rows = csv.DictReader(file)
                if missing := [name for name in COLUMNS if name not in (rows.fieldnames or ())]:
                    raise DataError(
                        f"The table {folder} lacks {', '.join(missing)} in its first line; its columns are "
                        f"{', '.join(COLUMNS)}."
                    )
                for row in rows:
                    fault = _fault(row) or ("twice in its part" if (row["path"], row["part"]) in known else "")
                    if fault:
                        bad.append(f"line {rows.line_num} ({fault})")
                        continue
                    known.add((row["path"], row["part"]))
                    path = str(folder.parent / row["path"])
                    parts[row["part"]].append((path, int(row["pid"]), int(row["camid"]), 0))
            except (csv.Error, UnicodeDecodeError) as error:
                raise DataError(f"The table {folder} cannot be read: {error}.") from error
        if bad:
            raise FilesError(f"{len(bad)} lines of the table {folder} cannot be used", bad)
        if empty := [part for part in ("query", "gallery") if not parts[part]]:
            raise DataError(f"The table {folder} has no line of the part {' and '.join(empty)}, which tests need.")
        return parts


def _fault(row: dict[str, str | None]) -> str:
    """What is wrong with a line of a table; empty if nothing is."""
    if not row["path"]:
        return "no path"
    for name in ("pid", "camid"):
        if not re.fullmatch(r"\d+", row[name] or "", re.ASCII) or int(row[name]) > _HIGHEST:
            return f"{name} is {row[name]!r}, but must be a whole number from 0"
    return "" if row["part"] in PARTS else f"part is {row['part']!r}, but must be one of {', '.join(PARTS)}"


_CLASSES = {"folder": FolderDataset, "csv": TableDataset}


def is_folder_name(name: str) -> bool:
    """Whether a name is of one of these forms."""
    return name.partition(":")[0] in _CLASSES and ":" in name


def layout_of(name: str) -> FolderLayout:
    """Where a data set is.

    Raises:
        ConfigError: What follows the colon is not the name of a folder or file.
    """
    kind, _, own = name.partition(":")
    if not re.fullmatch(r"[^./\\:\0][^/\\:\0]*", own):
        raise ConfigError(f"'{name}' is not a data set: after '{kind}:' comes a name without a folder in it.")
    if kind == "csv":
        return TableLayout(name, (f"{own}.csv",))
    return FolderLayout(name, (own,), advice="docs/datasets.md shows what lies in it")


@functools.cache
def dataset_factory(name: str) -> Callable[..., LocalDataset]:
    """What torchreid's table holds for such a name; it has the attribute ``layout``, as classes of data sets have.

    Raises:
        ConfigError: See :func:`layout_of`.
    """
    factory = functools.partial(_CLASSES[name.partition(":")[0]], name)
    factory.layout = layout_of(name)  # type: ignore[attr-defined]
    return factory
