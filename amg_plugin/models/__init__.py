"""Prunable re-ID networks: their description, what is built from it, and what it costs."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from amg_plugin.models.build import build_network
    from amg_plugin.models.reducers.spec import ReducerSpec
    from amg_plugin.models.spec import ModelSpec

__all__ = ["ModelSpec", "ReducerSpec", "build_network"]

#: Loaded on first use: the network needs timm, its parts import one another.
_LAZY = {
    "ModelSpec": "amg_plugin.models.spec",
    "ReducerSpec": "amg_plugin.models.reducers.spec",
    "build_network": "amg_plugin.models.build",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
