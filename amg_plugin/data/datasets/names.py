"""Data set classes that the plugin registers with torchreid."""

from __future__ import annotations

from typing import Any

from amg_plugin import compat
from amg_plugin.data.datasets.occluded import (
    OccludedDuke,
    OccludedMarket1501,
    OccludedREID,
    PartialREID,
    PDukeMTMC,
    SyntheticReID,
)
from amg_plugin.errors import DataError

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


DATASETS: dict[str, type] = {
    **{
        cls.layout.name: cls
        for cls in (SyntheticReID, OccludedDuke, OccludedREID, PartialREID, PDukeMTMC, OccludedMarket1501)
    },
    NO_TRAINING_DATA: NoTrainingData,
}
"""What is registered with torchreid: data set name -> class."""
