"""An image file as the network sees it, and as a picture of the same size."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from amg_plugin.checkpoint import Checkpoint
from amg_plugin.errors import DataError
from amg_plugin.utils.preprocessing import Preprocessing

logger = logging.getLogger(__name__)

#: What torchreid takes where a checkpoint does not say.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def prepare_image(path: Path, checkpoint: Checkpoint) -> tuple[np.ndarray, Tensor]:
    """Read and resize an image as evaluation does.

    Args:
        path: The file.
        checkpoint: Says size, interpolation, mean and standard deviation.

    Returns:
        The resized image, uint8 ``[height, width, 3]``, and the network's input ``[1, 3, height, width]``.

    Raises:
        DataError: If the file is no readable image.
    """
    height, width = checkpoint.spec.image_size
    stored = checkpoint.preprocessing or Preprocessing(height, width, _MEAN, _STD, "bilinear")
    how = Image.Resampling[stored.interpolation.upper()]
    try:
        with Image.open(path) as image:
            picture = np.asarray(image.convert("RGB").resize((width, height), how))
    except Exception as error:  # Pillow's decoders raise more than OSError on damaged files
        reason = str(error).replace(repr(str(path)), "").strip() or type(error).__name__
        raise DataError(f"The image '{path}' cannot be read ({reason}).") from error
    mean, std = torch.tensor(stored.mean), torch.tensor(stored.std)
    values = torch.from_numpy(picture.copy()).float() / 255
    return picture, ((values - mean) / std).permute(2, 0, 1)[None]
