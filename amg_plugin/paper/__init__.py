"""Models of the published programs, read from their state dicts, and the publications' figures."""

from amg_plugin.utils.imports import lazy_names

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
