"""Every image data set by name: torchreid's own, what is registered with torchreid, and what the plugin's table has."""

from __future__ import annotations

from amg_plugin import compat
from amg_plugin.registries import DATASETS
from amg_plugin.registries.registry import refuse_taken


def known_datasets() -> dict[str, type]:
    """torchreid's table, name -> class, with the entries of :data:`amg_plugin.registries.DATASETS` in it.

    Raises:
        MissingDependencyError: torchreid is missing.
        InputError: A name is taken by someone else; nothing is entered then.
    """
    known = compat.image_dataset_factory()
    ours = {name: DATASETS.load(name) for name in DATASETS}
    refuse_taken("data set", known, ours)
    known.update(ours)
    return known
