"""A table of names that users may extend: plain rows that help and checks read, code that loads on use."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from typing import Any, Generic, TypeVar

from amg_plugin import compat
from amg_plugin.errors import ConfigError, InputError, MissingDependencyError

_lock = threading.RLock()


@dataclass(frozen=True)
class Row:
    """What is known of an entry without loading it; tables with more to say use a subclass.

    Attributes:
        name: The entry's name.
        obj: The entry itself, or where it is: ``"package.module:attribute"``.
        summary: One line for help and documents.
        needs: Packages that have to be installed to load it.
    """

    name: str
    obj: Any
    summary: str = ""
    needs: tuple[str, ...] = ()


RowType = TypeVar("RowType", bound=Row)


class Registry(Generic[RowType]):
    """A table of names.

    Args:
        kind: What the entries are, for messages ("head scorer").
        row: The dataclass of a row; its further fields are the options of :meth:`register`.

    Attributes:
        rows: Name -> row, in the order of registration.
    """

    def __init__(self, kind: str, row: type[RowType] = Row) -> None:
        self.kind = kind
        self.rows: dict[str, RowType] = {}
        self._row_type = row

    def register(self, name: str, obj: Any = None, *, summary: str | None = None, **fields: Any) -> Any:
        """Add an entry; adding the same thing again, or its reloaded self, changes nothing.

        Args:
            name: Its name.
            obj: The entry, or ``"package.module:attribute"``. Left out, the call is a decorator.
            summary: One line on it; the first line of its docstring if omitted.
            **fields: Further fields of the row.

        Returns:
            ``obj``, or the decorator.

        Raises:
            InputError: The name is empty, or belongs to something else.
        """
        if obj is None:
            return lambda decorated: self.register(name, decorated, summary=summary, **fields)
        if not isinstance(name, str) or not name:
            raise InputError(f"The name of a {self.kind} must be a text, not {name!r}.")
        if summary is None:
            lines = [] if isinstance(obj, str) else (getattr(obj, "__doc__", None) or "").strip().splitlines()
            summary = lines[0] if lines else ""
        with _lock:
            if name in self.rows and not is_same(self.rows[name].obj, obj):
                raise InputError(f"The {self.kind} name '{name}' is already taken; choose another name.")
            self.rows[name] = self._row_type(name=name, obj=obj, summary=summary, **fields)
        return obj

    def names(self) -> list[str]:
        """The names, in the order of registration."""
        return list(self.rows)

    def row(self, name: str) -> RowType:
        """What is known of an entry.

        Raises:
            ConfigError: There is no such entry; the message lists the names.
        """
        if name not in self.rows:
            near = difflib.get_close_matches(str(name), self.rows, n=1)
            hint = f" (did you mean '{near[0]}'?)" if near else ""
            raise ConfigError(f"Unknown {self.kind} '{name}'; allowed are {', '.join(self.rows) or 'none'}{hint}.")
        return self.rows[name]

    def load(self, name: str) -> Any:
        """The entry itself; its module is imported now.

        Raises:
            ConfigError: There is no such entry; the message lists the names.
            MissingDependencyError: The entry needs a package that is missing.
        """
        row = self.row(name)
        for package in row.needs:
            if package == "torchreid":
                compat.torchreid()  # tells a missing one from a broken one
            elif importlib.util.find_spec(package) is None:
                raise MissingDependencyError(
                    f"The {self.kind} '{name}' needs '{package}', which is not installed: "
                    f"pip install {compat.pip_name(package)}."
                )
        return resolve(row.obj)

    def __contains__(self, name: object) -> bool:
        return name in self.rows

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __len__(self) -> int:
        return len(self.rows)


def resolve(obj: Any) -> Any:
    """What ``"package.module:attribute"`` points to; anything that is not a text as it is."""
    if not isinstance(obj, str):
        return obj
    module, _, attribute = obj.partition(":")
    return reduce(getattr, attribute.split("."), importlib.import_module(module))


def is_same(there: Any, obj: Any) -> bool:
    """Whether ``there`` is ``obj``, or what ``obj`` was before its module was reloaded, or where it is."""
    return there is obj or (_place(there) is not None and _place(there) == _place(obj))


def refuse_taken(kind: str, table: dict[str, Any], ours: dict[str, Any]) -> None:
    """Refuse to enter ``ours`` into torchreid's ``table`` of models or data sets over somebody else's entries.

    Raises:
        InputError: A name is taken.
    """
    for name, obj in ours.items():
        if name in table and not is_same(table[name], obj):
            other = table[name]
            owner = f"{getattr(other, '__module__', '?')}.{getattr(other, '__qualname__', repr(other))}"
            raise InputError(
                f"The {kind} name '{name}' is already taken in torchreid by {owner}; "
                "amg_plugin does not overwrite it: remove that registration or import only one of the two"
            )


def _place(obj: Any) -> str | None:
    if isinstance(obj, str):
        return obj
    module, name = getattr(obj, "__module__", None), getattr(obj, "__qualname__", None)
    return None if module is None or name is None else f"{module}:{name}"
