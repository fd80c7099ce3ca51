"""Features of crops by BoxMOT itself, from a file of ``amg-reid export --for boxmot``, beside the plugin's own.

    amg-reid export CKPT --format onnx --output vits.onnx --for boxmot
    python tools/run_boxmot.py CKPT vits.onnx [FOLDER_OF_IMAGES]

Prints the smallest cosine per size of the crops. Needs BoxMOT (pip install boxmot, in an environment of its own).
Without a folder the crops are generated.
"""

from __future__ import annotations

import argparse
from importlib.metadata import version
from pathlib import Path

import numpy as np
from PIL import Image

from amg_plugin import FeatureExtractor
from amg_plugin.deploy.images import as_image, images_below, spread
from amg_plugin.deploy.parity import generated_images

#: Height of the crops relative to the network's input.
SCALES = (1.0, 0.5, 0.75, 1.5, 2.5)
COUNT = 16


def crops(folder: Path | None, height: int, width: int) -> list[np.ndarray]:
    """RGB crops uint8 ``[height, width, 3]``."""
    if folder is None:
        images = generated_images(COUNT, height, width)
    else:
        images = [as_image(path) for path in spread(images_below(folder), COUNT)]
    return [np.asarray(image.resize((width, height), Image.Resampling.BICUBIC)) for image in images]


def main() -> None:
    """Print one line per size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("file", type=Path)
    parser.add_argument("folder", type=Path, nargs="?")
    args = parser.parse_args()
    from boxmot.reid.core.runtime import ReID

    ours, theirs = FeatureExtractor(args.checkpoint, normalize=True, output="numpy"), ReID(args.file, device="cpu")
    height, width = ours.info.image_size
    print(f"BoxMOT {version('boxmot')}, {args.file.name}, crops as BoxMOT wants them: {theirs.model.input_shape}")
    for scale in SCALES:
        images = crops(args.folder, round(height * scale), round(width * scale))
        found = theirs([image[:, :, ::-1] for image in images])  # BoxMOT takes BGR
        cosine = (found * ours(images)).sum(1).min()
        print(f"crops of {images[0].shape[0]}x{images[0].shape[1]}: cosine at least {cosine:.6f}")


if __name__ == "__main__":
    main()
