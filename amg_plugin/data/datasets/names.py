"""Every image data set by name: torchreid's own, what is registered with torchreid, and what the plugin's table has."""

from __future__ import annotations

from typing import Any

from amg_plugin import compat
from amg_plugin.errors import DataError
from amg_plugin.registries import DATASETS
from amg_plugin.registries.registry import refuse_taken


def known_datasets() -> dict[str, type]:
    """torchreid's table, name -> class, with the entries of :data:`amg_plugin.registries.DATASETS` in it.

    Raises:
        MissingDependencyError: torchreid is missing.
        InputError: A name is taken by someone else; nothing is entered then.
    """
    known = compat.image_dataset_factory()
    ours = {NO_TRAINING_DATA: NoTrainingData, **{name: DATASETS.load(name) for name in DATASETS}}
    refuse_taken("data set", known, ours)
    known.update(ours)
    return known


NO_TRAINING_DATA = "no_training_data"


class NoTrainingData(compat.torchreid().data.ImageDataset):
    """Stands in as the source where targets are evaluated only: torchreid's data manager wants one.

    A target cannot stand in for it, since it may have no training part.

    Args:
        root: Not used.
        **kwargs: What torchreid gives every image data set.
    """

    def __init__(self, root: str = "", **kwargs: Any):
        item = ("", 0, 0)
        super().__init__([item], [item], [item], **kwargs)

    def __getitem__(self, index: int) -> Any:
        """Refuses: there are no images.

        Raises:
            DataError: Always.
        """
        raise DataError(f"{NO_TRAINING_DATA} holds no images: it only stands in where targets are evaluated.")

    def show_summary(self) -> None:
        """Prints nothing."""
