"""Data set classes that the plugin registers with torchreid.

They are module-level classes, so that data loader workers started by ``spawn`` (Windows, macOS) can unpickle them.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from amg_plugin import compat
from amg_plugin.data.datasets.occluded import OCCLUDED_DATASETS
from amg_plugin.data.synthetic.reid import FOLDER, GALLERY_DIR, QUERY_DIR, TRAIN_DIR
from amg_plugin.errors import DataError

Item = tuple[str, int, int]
"""Path of the image, identity, camera (both from 0)."""

_FILE_NAME = re.compile(r"(\d{4})_c(\d)s\d_\d{6}_\d{2}\.jpg")


class SyntheticReID(compat.torchreid().data.ImageDataset):
    """People drawn as coloured figures, see :mod:`amg_plugin.data.synthetic.reid`.

    Args:
        root: Data root; the images are expected in ``root/synthetic_reid``.
        **kwargs: What torchreid gives every image data set (``transform``, ``mode``, ``combineall``, ...).

    Raises:
        DataError: The data set is not there or incomplete. Nothing is ever downloaded.
    """

    dataset_dir = FOLDER

    def __init__(self, root: str = "", **kwargs: Any):
        folder = Path(root).expanduser().resolve() / self.dataset_dir
        if not folder.is_dir():
            raise DataError(
                f"The data set synthetic_reid is expected in {folder}, which does not exist; "
                "`amg-reid demo` draws it (amg_plugin.data.synthetic.reid.write_synthetic_reid in Python)."
            )
        train = _read_folder(folder / TRAIN_DIR)
        labels = {pid: label for label, pid in enumerate(sorted({pid for _, pid, _ in train}))}
        train = [(path, labels[pid], camid) for path, pid, camid in train]
        super().__init__(train, _read_folder(folder / QUERY_DIR), _read_folder(folder / GALLERY_DIR), **kwargs)


def _read_folder(folder: Path) -> list[Item]:
    """Images of one part of the data set, in the order of their names."""
    items = []
    for path in sorted(folder.glob("*.jpg")):
        match = _FILE_NAME.fullmatch(path.name)
        if match is None:
            raise DataError(f"{path} is not named as Market-1501 names its images (PPPP_cCsS_FFFFFF_NN.jpg).")
        items.append((str(path), int(match[1]), int(match[2]) - 1))
    if not items:
        raise DataError(f"{folder} holds no images; remove the data set and draw it again with `amg-reid demo`.")
    return items


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


DATASETS: dict[str, type] = {FOLDER: SyntheticReID, **OCCLUDED_DATASETS, NO_TRAINING_DATA: NoTrainingData}
"""What is registered with torchreid: data set name -> class."""
