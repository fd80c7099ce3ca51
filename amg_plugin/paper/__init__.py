"""Models of the published programs, read from their state dicts, and the publications' figures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from amg_plugin.utils.imports import lazy_names

if TYPE_CHECKING:
    from amg_plugin.paper.accounting import published_accounting
    from amg_plugin.paper.loading import load_la_transformer, load_la_vit, load_transreid

__all__ = ["load_la_transformer", "load_la_vit", "load_transreid", "published_accounting"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "load_la_transformer": "amg_plugin.paper.loading",
        "load_la_vit": "amg_plugin.paper.loading",
        "load_transreid": "amg_plugin.paper.loading",
        "published_accounting": "amg_plugin.paper.accounting",
    },
)
