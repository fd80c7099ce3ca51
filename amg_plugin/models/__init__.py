"""Prunable re-ID networks: their description, what is built from it, and what it costs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from amg_plugin.utils.imports import lazy_names

if TYPE_CHECKING:
    from amg_plugin.models.build import build_network
    from amg_plugin.models.spec import ModelSpec, ReducerSpec

__all__ = ["ModelSpec", "ReducerSpec", "build_network"]

# On first use: the network needs timm, and the parts of this folder import one another.
__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "ModelSpec": "amg_plugin.models.spec",
        "ReducerSpec": "amg_plugin.models.spec",
        "build_network": "amg_plugin.models.build",
    },
)
