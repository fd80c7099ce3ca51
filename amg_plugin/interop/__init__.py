"""Models of the published programs, read from their state dicts."""

from amg_plugin.interop.files import read_published
from amg_plugin.interop.la import load_la_transformer, load_la_vit
from amg_plugin.interop.transreid import load_transreid

__all__ = ["load_la_transformer", "load_la_vit", "load_transreid", "read_published"]
