r"""What an epoch of training costs: with torchreid's loading, with images in memory, and in a bare loop.

  plain    the product's engine on torchreid's own data set, every image decoded and resized anew
  kept     the same engine, images in memory (amg.cache_images auto)
  bare     no engine: images as one tensor on the device, flip, pad + crop and erasing on whole batches, the same
           network, losses, optimiser and number of steps

'loading' is the training loader alone, without a network. Runs are interleaved (plain, kept, bare, then the other
way round), so that a slow phase of the machine meets all; medians, and of the ratios of neighbouring runs the median
and the quartiles. On a shared machine the wall clock also measures the others, so processor time (user and system, of
this process) is given with it; that says all only with data.workers 0 and on the CPU. One untimed epoch comes first;
keeping the images, which happens once a run, is timed apart.

Usage:
  python benchmarks/epoch_cost.py --root reid-data-dev --output docs/results/epoch_cost_gpu.json
  python benchmarks/epoch_cost.py --root reid-data-dev --batches 2 --output docs/results/epoch_cost_cpu.json \
      --keys use_gpu False data.workers 0 train.batch_size 16 amg.precision fp32
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter
from yacs.config import CfgNode

from amg_plugin.config import load_config
from amg_plugin.data.cache import first_step, keep_images
from amg_plugin.data.manager import build_datamanager
from amg_plugin.data.transforms import PAD
from amg_plugin.engine import ProgressHook, build_optimizer
from amg_plugin.engine.losses import SoftMarginTripletLoss
from amg_plugin.runs.setup import assemble, build_model, prepare, use_gpu
from amg_plugin.utils.environment import environment, processor_name

RATIOS = {"loading": (("kept", "plain"),), "epoch": (("kept", "plain"), ("kept", "bare"), ("plain", "bare"))}

LOADED = 1000
"""Images of a timed run of 'loading'."""


class Bare:
    """A training loop with nothing but what training takes.

    Args:
        cfg: The configuration.
        datamanager: Gives the images, their identities and their order.
        model: The network, on its device.
    """

    def __init__(self, cfg: CfgNode, datamanager: Any, model: nn.Module) -> None:
        self.cfg, self.model = cfg, model.train()
        self.device = next(model.parameters()).device
        self.loader, dataset = datamanager.train_loader, datamanager.train_loader.dataset
        resize = first_step(dataset.transform)
        pixels = [np.asarray(resize(Image.open(item[0]).convert("RGB"))) for item in dataset.data]
        self.images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous().to(self.device)
        self.identities = torch.tensor([item[1] for item in dataset.data], device=self.device)
        self.mean, self.std = (
            torch.tensor(list(values), device=self.device).view(3, 1, 1)
            for values in (cfg.data.norm_mean, cfg.data.norm_std)
        )
        self.triplet = SoftMarginTripletLoss()
        self.optimizer = build_optimizer(cfg, model)

    def epoch(self) -> None:
        """One epoch."""
        for indices in self._batches():
            images = self.augmented(self.images[indices])
            enabled = self.cfg.amg.precision == "bf16"
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled):
                logits, features = self.model(images)
            identities = self.identities[indices]
            loss = F.cross_entropy(logits.float(), identities) + self.triplet(features.float(), identities)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()

    def _batches(self) -> Iterator[Tensor]:
        order, size = torch.tensor(list(self.loader.sampler), device=self.device), self.loader.batch_size
        yield from (order[start : start + size] for start in range(0, len(order) - size + 1, size))

    def augmented(self, pixels: Tensor) -> Tensor:
        """Normalised images ``[B, 3, H, W]``, flipped, shifted and erased at random, each on its own."""
        count, _, height, width = pixels.shape

        def chosen() -> Tensor:
            return torch.rand(count, 1, 1, 1, device=self.device) < 0.5

        pixels = F.pad(torch.where(chosen(), pixels.flip(3), pixels), (PAD,) * 4)
        top, left = torch.randint(2 * PAD + 1, (2, count, 1), device=self.device)
        rows = top + torch.arange(height, device=self.device)
        columns = left + torch.arange(width, device=self.device)
        places = torch.arange(count, device=self.device).view(-1, 1, 1)
        # Indices on both sides of a slice put the slice last.
        pixels = pixels[places, :, rows[:, :, None], columns[:, None]].permute(0, 3, 1, 2)
        images = (pixels.float() / 255 - self.mean) / self.std
        area = (0.02 + 0.38 * torch.rand(count, 1, device=self.device)) * height * width
        aspect = 0.3 + 3 * torch.rand(count, 1, device=self.device)
        sides = ((area * aspect).sqrt().clamp(max=height - 1), (area / aspect).sqrt().clamp(max=width - 1))
        inside = [
            (torch.arange(full, device=self.device) - torch.rand(count, 1, device=self.device) * (full - side))
            .div(side)
            .floor()
            == 0
            for full, side in zip((height, width), sides, strict=True)
        ]
        hidden = (inside[0][:, None, :, None] & inside[1][:, None, None, :]) & chosen()
        return torch.where(hidden, self.mean, images)


def engine_epoch(cfg: CfgNode, datamanager: Any, writer: SummaryWriter) -> Callable[[], None]:
    """An epoch of the product's engine, torchreid's curves and progress lines included."""
    model = build_model(cfg, datamanager.num_train_pids)
    engine = assemble(cfg, datamanager, model, [ProgressHook()], 1)
    engine.writer = writer
    engine.epoch, engine.max_epoch = 0, 1

    def epoch() -> None:
        engine.train(print_freq=cfg.train.print_freq)

    return epoch


def use_torchreids_loading(datamanager: Any) -> None:
    """Put torchreid's own data set into the training loader."""
    loader = datamanager.train_loader
    names = ("sampler", "batch_size", "num_workers", "pin_memory", "drop_last")
    datamanager.train_loader = DataLoader(loader.dataset.dataset, **{name: getattr(loader, name) for name in names})


def read_all(datamanager: Any) -> Callable[[], None]:
    """Passes over the training loader, :data:`LOADED` images or a little more."""
    loader = datamanager.train_loader
    passes = -(-LOADED // (len(loader) * loader.batch_size))

    def read() -> None:
        for _ in range(passes):
            for _ in loader:
                pass

    return read


def timed(work: Callable[[], Any]) -> tuple[float, float]:
    """Seconds, and seconds of processor time, that ``work`` takes."""
    start, start_cpu = time.perf_counter(), time.process_time()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start, time.process_time() - start_cpu


def measure(works: dict[str, Callable[[], Any]], repeats: int, ratios: tuple[tuple[str, str], ...]) -> dict[str, Any]:
    """Interleave ``works``; medians and ratios by the wall clock and by processor time."""
    for work in works.values():  # untimed
        work()
    runs: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
    for repeat in range(repeats):
        for name in works if repeat % 2 == 0 else reversed(works):
            runs[name].append(timed(works[name]))
    found: dict[str, Any] = {}
    for place, clock in enumerate(("wall", "cpu")):
        seconds = {name: [run[place] for run in own] for name, own in runs.items()}
        found[clock] = {
            "seconds": {name: statistics.median(values) for name, values in seconds.items()},
            "ratios": {
                f"{one} / {other}": spread([a / b for a, b in zip(seconds[one], seconds[other], strict=True)])
                for one, other in ratios
            },
        }
    return found


def spread(values: list[float]) -> dict[str, Any]:
    """Median, quartiles and all values."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return {"median": middle, "quartiles": [low, high], "all": values}


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, metavar="FOLDER", help="folder that holds the data sets")
    parser.add_argument("--config-file", default="market1501/dev_split_vits14_long", metavar="FILE")
    parser.add_argument("--batches", type=int, default=0, help="steps of an epoch; 0 = all (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each kind (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default: %(default)s)")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="write figures and circumstances into this JSON file"
    )
    parser.add_argument("--keys", nargs="*", default=[], metavar="KEY VALUE", help="configuration keys")
    return parser.parse_args()


def configuration(options: argparse.Namespace, folder: str, kept: str) -> CfgNode:
    """The configuration of a run, with ``amg.cache_images`` as given."""
    words = ["data.root", options.root, "data.save_dir", folder, "model.pretrained", False, "amg.weights", ""]
    words += ["amg.check_images", False, "amg.batches_per_epoch", options.batches, *options.keys]
    return load_config(options.config_file, [*words, "amg.cache_images", kept], use_schedule=False)


def main() -> None:
    """Measure, print the table, write the file."""
    options = parse_arguments()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder, SummaryWriter(folder) as writer:
        cfgs = {name: configuration(options, folder, word) for name, word in (("plain", "none"), ("kept", "auto"))}
        prepare(cfgs["plain"])
        managers = {name: build_datamanager(cfg) for name, cfg in cfgs.items()}
        use_torchreids_loading(managers["plain"])
        once, _ = timed(lambda: keep_images([managers["plain"].train_loader.dataset], cfgs["kept"].amg.cache_gb))
        works = {name: engine_epoch(cfg, managers[name], writer) for name, cfg in cfgs.items()}
        model = build_model(cfgs["plain"], managers["plain"].num_train_pids)
        works["bare"] = Bare(cfgs["plain"], managers["plain"], model.cuda() if use_gpu(cfgs["plain"]) else model).epoch
        loading = {name: read_all(manager) for name, manager in managers.items()}
        cfg, loader = cfgs["plain"], managers["plain"].train_loader
        result = {
            "config_file": options.config_file,
            "keys": options.keys,
            "steps": len(list(loader.sampler)) // loader.batch_size,
            "batch_size": loader.batch_size,
            "training_images": len(loader.dataset),
            "workers": cfg.data.workers,
            "repeats": options.repeats,
            "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
            **environment(use_gpu(cfg)),
            "processor": processor_name(),
            "keeping_training_images_s": once,
            "loading": measure(loading, options.repeats, RATIOS["loading"]),
            "epoch": measure(works, options.repeats, RATIOS["epoch"]),
        }
    for part, clock in ((part, clock) for part in RATIOS for clock in ("wall", "cpu")):
        row = result[part][clock]
        seconds = "  ".join(f"{name} {value:.3f} s" for name, value in row["seconds"].items())
        ratios = "  ".join(
            f"{name} {one['median']:.2f} [{one['quartiles'][0]:.2f}, {one['quartiles'][1]:.2f}]"
            for name, one in row["ratios"].items()
        )
        print(f"{part:<8}{clock:<5}{seconds}  |  {ratios}")
    if options.output:
        options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
