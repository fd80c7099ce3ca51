"""Packages that not everybody has."""

from __future__ import annotations

import importlib
from types import ModuleType

from amg_plugin import compat
from amg_plugin.errors import MissingDependencyError


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
