"""Models of the published programs, read from their state dicts."""

from amg_plugin.models.published_files import read_published
from amg_plugin.paper.la import load_la_transformer, load_la_vit
from amg_plugin.paper.transreid import load_transreid

__all__ = ["load_la_transformer", "load_la_vit", "load_transreid", "read_published"]
