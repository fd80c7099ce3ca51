"""torchreid's own script on a network of the plugin: train, evaluate, load, resume; then the plugin on what it saved.

Takes a checkout of torchreid (https://github.com/KaiyangZhou/deep-person-reid), whose ``scripts/main.py`` runs
unchanged through the launcher, on noise images in Market-1501's layout. Prints a line per step; leaves with 1 if one
fails.

Usage:
  python tools/run_torchreid.py deep-person-reid
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from itertools import product
from pathlib import Path

import numpy as np
from PIL import Image

AMG = """\
amg:
  arch: vit_tiny_patch16_224
  image_size: [32, 16]
  override: {embed_dim: 24, depth: 2, num_heads: 2, patch_size: 8}
"""


def draw_market1501(root: Path) -> None:
    """Write noise images in Market-1501's folders and names."""
    rng = np.random.default_rng(0)
    for part, first, shots in (("bounding_box_train", 1, 4), ("query", 9, 1), ("bounding_box_test", 9, 4)):
        folder = root / "market1501" / "Market-1501-v15.09.15" / part
        folder.mkdir(parents=True)
        for pid, camera, shot in product(range(first, first + 3), (1, 2), range(shots)):
            pixels = rng.integers(0, 256, (32, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{pid:04}_c{camera}s1_{shot:06}_00.jpg")


def steps(script: Path) -> dict[str, list[str]]:
    """What is run, after ``python -m amg_plugin --amg-config amg.yaml``."""
    data = ["-s", "market1501", "-t", "market1501", "--root", "data"]
    quick = ["use_gpu", "False", "data.workers", "0", "train.batch_size", "4"]
    small = ["model.name", "vit_amg_tiny", "model.pretrained", "False", "data.height", "32", "data.width", "16"]
    torchreids, saved = [str(script), *data, *quick, *small], "log/model/model.pth.tar-2"
    schedule = "[{target: heads, rate: 0.25, iterations: 1, epochs: 0}]"
    return {
        "train 2 epochs": [*torchreids, "data.save_dir", "log", "train.max_epoch", "2"],
        "model.load_weights, test.evaluate": [
            *torchreids, "data.save_dir", "log_test", "model.load_weights", saved, "test.evaluate", "True"
        ],
        "model.resume, a third epoch": [
            *torchreids, "data.save_dir", "log_more", "model.resume", saved, "train.max_epoch", "3"
        ],
        "amg-reid inspect": ["inspect", saved],
        "amg-reid test": ["test", "--weights", saved, *data, *quick, "data.save_dir", "tested"],
        "amg-reid prune": [
            "prune", "--weights", saved, *data, *quick, "data.save_dir", "pruned", "amg.schedule", schedule
        ],
        "amg-reid import": ["import", saved, "--from", "torchreid", "--out", "own.pth"],
    }  # fmt: skip


def main() -> int:
    """Run every step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="folder of torchreid's git repository")
    checkout = parser.parse_args().checkout.resolve()
    script = checkout / "scripts" / "main.py"
    if not script.is_file():
        print(f"run_torchreid: error: there is no scripts/main.py in '{checkout}'.", file=sys.stderr)
        return 2
    here = Path(__file__).resolve().parents[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(checkout), str(here)])}
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        draw_market1501(Path(folder, "data"))
        Path(folder, "amg.yaml").write_text(AMG, encoding="utf-8")
        for name, words in steps(script).items():
            command = [sys.executable, "-m", "amg_plugin", "--amg-config", "amg.yaml", *words]
            outcome = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
            failed += outcome.returncode != 0
            print(f"{name}: {'works' if outcome.returncode == 0 else 'FAILS'}", flush=True)
            if outcome.returncode:
                print(outcome.stderr[-1000:])
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
