"""The authors' published checkpoints: where they are, how they are fetched, verified and imported."""

from amg_plugin.paper.zoo.cache import Fetched, cache_folder, fetch, recorded
from amg_plugin.paper.zoo.entries import ENTRIES, LICENCE, ZooEntry, find_entry
from amg_plugin.paper.zoo.importing import import_entry, remarks

__all__ = [
    "ENTRIES",
    "LICENCE",
    "Fetched",
    "ZooEntry",
    "cache_folder",
    "fetch",
    "find_entry",
    "import_entry",
    "recorded",
    "remarks",
]
