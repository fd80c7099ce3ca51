r"""What saving the state of a run costs beside an epoch, and what going on costs beside a fresh start.

ViT-B/16 at 256x128 trains by the product's engine on drawn images, a few batches of it; an epoch has Market-1501's
number of images (12,936), so its time follows from that of a batch. The state is that of a training with AdamW: weights
and two moments. It is saved several times (written, flushed, read back and compared); medians are given, by the wall
clock and by processor time. 'share' is the wall-clock time of saving / the smaller of both times of an epoch. Files are
written below the current folder. 'going on' is what a run does before its first batch in place of building the network:
reading and checking the file, building the network, giving the state to the engine.

Usage:
  python benchmarks/state_cost.py --batch 8 --batches 2 --output docs/results/state_cost.json
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from epoch_cost import timed

from amg_plugin.config import load_config
from amg_plugin.data.manager import build_datamanager
from amg_plugin.data.synthetic.reid import SyntheticSpec, write_synthetic_reid
from amg_plugin.engine.state import Position
from amg_plugin.engine.state_files import STATE_FILE, StateKeeper, newest_state
from amg_plugin.runs.setup import assemble, build_model, prepare, use_gpu
from amg_plugin.utils.environment import environment, processor_name

#: Training images of Market-1501.
IMAGES = 12_936
DRAWN = SyntheticSpec(train_ids=32, test_ids=4, height=256, width=128)


def median(runs: list[tuple[float, float]]) -> dict[str, float]:
    """Medians of both clocks."""
    return {name: statistics.median(run[place] for run in runs) for place, name in enumerate(("wall", "cpu"))}


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Train a little, save, and go on."""
    write_synthetic_reid(folder / "data", DRAWN, seed=1)
    keys = {
        "data.root": str(folder / "data"), "data.sources": ["synthetic_reid"], "data.targets": ["synthetic_reid"],
        "data.workers": 0, "data.save_dir": str(folder / "run"), "model.pretrained": False, "train.optim": "adamw",
        "train.batch_size": arguments.batch, "amg.batches_per_epoch": arguments.batches, "use_gpu": arguments.gpu,
    }  # fmt: skip
    words = [word for pair in keys.items() for word in pair]
    cfg = load_config("market1501/vit_base", words, use_schedule=False)
    prepare(cfg)
    datamanager = build_datamanager(cfg)

    def engine_of(model: torch.nn.Module) -> Any:
        return assemble(cfg, datamanager, model, [], 1)

    fresh = timed(lambda: engine_of(build_model(cfg, datamanager.num_train_pids)))
    engine = engine_of(build_model(cfg, datamanager.num_train_pids))
    engine.max_epoch = 1
    engine.train()  # untimed
    epoch = [timed(engine.train) for _ in range(arguments.repeats)]
    keeper = StateKeeper(folder / "run", {})

    def save() -> None:
        keeper.save(engine, Position(0, "epoch"))
        keeper.wait()

    save()
    saved = [timed(save) for _ in range(arguments.repeats)]

    def go_on() -> None:
        state = newest_state(folder / "run")
        resumed = engine_of(state.checkpoint().build())
        resumed.keeper = StateKeeper(folder / "run", {}, state)
        resumed.go_on()

    batches = len(engine.train_loader)
    images = batches * arguments.batch
    return {
        "batch": arguments.batch,
        "seconds_per_image": {name: value / images for name, value in median(epoch).items()},
        "epoch_seconds": {name: IMAGES * value / images for name, value in median(epoch).items()},
        "state_bytes": (folder / "run" / STATE_FILE).stat().st_size,
        "save_seconds": median(saved),
        "fresh_seconds": fresh[0],
        "going_on_seconds": median([timed(go_on) for _ in range(arguments.repeats)])["wall"],
        "environment": {**environment(use_gpu(cfg)), "processor": processor_name()},
    }


def main(words: list[str] | None = None) -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8, help="images of a measured batch")
    parser.add_argument("--batches", type=int, default=2, help="batches of a measured epoch")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args(words)
    logging.basicConfig(level=logging.WARNING)
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        found = measure(arguments, Path(folder))
    # Another program that keeps the machine busy adds to the wall clock, several threads to the processor time.
    found["share"] = found["save_seconds"]["wall"] / min(found["epoch_seconds"].values())
    text = json.dumps(found, indent=1)
    print(text)
    if arguments.output:
        arguments.output.write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
