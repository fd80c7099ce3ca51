"""Registering in torchreid when a script imports it, before or after ``amg_plugin``.

``import amg_plugin`` must not import torchreid, which takes seconds that ``amg-reid --help`` does not have. So names
are entered at once if torchreid is there, else right after its own code has run. The import system offers one place for
that, ``sys.meta_path``. The finder there leaves every other module alone, finds torchreid as the finders behind it do,
changes nothing but what happens after it was executed, and goes away once that was done.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from amg_plugin.errors import MissingDependencyError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

NAME = "torchreid"


class _Finder:
    """Lets registering follow the import of torchreid."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Spec of torchreid, made by another finder; None for every other module."""
        if name != NAME:
            return None
        # Only those behind this one: a finder of the same kind in front of it asks it in turn.
        others = sys.meta_path[sys.meta_path.index(self) + 1 :] if self in sys.meta_path else []
        for finder in others:
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                _register_afterwards(spec)
                return spec
        return None


_finder = _Finder()


def register_when_imported() -> None:
    """Register now if torchreid is imported, else as soon as it is."""
    # The finder comes first: another thread may import torchreid in between, and registering twice changes nothing.
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)
    if NAME in sys.modules:
        _register()


def _register_afterwards(spec: ModuleSpec) -> None:
    loader = spec.loader
    if loader is None or not hasattr(loader, "exec_module"):  # a folder of that name, which is not the library
        return
    execute = loader.exec_module

    def execute_and_register(module: ModuleType) -> None:
        execute(module)
        if sys.modules.get(NAME) is module:  # not a copy that somebody loads aside
            _register()

    # On this one object: its class, and so everything that asks the spec for source or data, stays as it is.
    loader.exec_module = execute_and_register  # type: ignore[method-assign]


def _register() -> None:
    if _finder in sys.meta_path:
        sys.meta_path.remove(_finder)
    from amg_plugin.plugin.registry import register

    try:
        register()
    except MissingDependencyError as error:
        import logging

        # torchreid is broken; everything that does not need it still works, the rest says so when used.
        logging.getLogger("amg_plugin").warning("%s", error)
