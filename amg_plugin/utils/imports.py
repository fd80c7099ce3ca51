"""Imports on first use (PEP 562), so that a script that needs little imports little, and of what not everybody has."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from amg_plugin import compat
from amg_plugin.errors import MissingDependencyError


def lazy_names(package: str, names: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Make the ``__getattr__`` and the ``__dir__`` of a package.

    Args:
        package: The package's ``__name__``.
        names: Name -> the module that it comes from; an empty one stands for the package's own submodule of that name.

    Returns:
        The two functions.
    """

    def load(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module '{package}' has no attribute '{name}'")
        if not names[name]:
            return importlib.import_module(f"{package}.{name}")
        return getattr(importlib.import_module(names[name]), name)

    def list_names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *names})

    return load, list_names


def need(module: str, purpose: str, extra: str = "") -> ModuleType:
    """Import a package that not everybody has.

    Args:
        module: What to import.
        purpose: What needs it, to begin the sentence with.
        extra: The extra of the plugin that brings it, if one does.

    Raises:
        MissingDependencyError: If it is missing; names the package and what installs it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if (error.name or "").partition(".")[0] != package:
            raise
        remedy = f"pip install {compat.pip_name(package)}"
        remedy += f", or the extra [{extra}] of amg_plugin" if extra else ""
        raise MissingDependencyError(f"{purpose} needs '{package}', which is not installed: {remedy}.") from error
