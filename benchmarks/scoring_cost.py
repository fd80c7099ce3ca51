"""What scoring costs: time against a plain pass over the same images, and peak memory against the number of batches.

Three questions, for one network, mode, batch and image size on one device:

  heads   time of scoring heads / time of forward passes over the same images
  tokens  time of scoring tokens / time of forward and backward passes over the same images
  memory  peak memory of scoring with few and with many batches

The plain passes use timm's default (fused) attention; scoring has to see the attention maps and cannot. Runs are
interleaved (plain, scoring, plain, scoring, ...), so that a slow phase of the machine meets both; the table shows
medians, and of the ratios of neighbouring runs the median and the quartiles.

Usage:
  python benchmarks/scoring_cost.py --threads 1 --repeats 9
  python benchmarks/scoring_cost.py --arch vit_base_patch16_224 --batch-size 64 --device cuda --output cost.json
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor
from torch.nn import functional as F

from amg_plugin.models.reid import ReIDModel
from amg_plugin.models.spec import ModelSpec
from amg_plugin.pruning.scorers import Calibration
from amg_plugin.registries import HEAD_SCORERS, TOKEN_SCORERS
from amg_plugin.utils.environment import processor_name
from amg_plugin.version import __version__

IDENTITIES = 751
MEGABYTE = 2**20


class Setting:
    """The network, its images and the passes to compare.

    Args:
        options: The command line.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        torch.manual_seed(options.seed)
        torch.set_num_threads(options.threads)
        spec = ModelSpec(options.arch, (options.height, options.width), IDENTITIES)
        self.model = ReIDModel(spec).to(options.device).train(options.mode == "train")
        self.blocks = list(range(len(self.model.backbone.blocks)))

    def batches(self, count: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Random images and identities, made on the fly and the same in every pass."""
        generator = torch.Generator().manual_seed(self.options.seed)
        size = (self.options.batch_size, 3, self.options.height, self.options.width)
        for _ in range(self.options.batches if count is None else count):
            images = torch.randn(size, generator=generator)
            pids = torch.randint(IDENTITIES, size[:1], generator=generator)
            yield images.to(self.options.device), pids.to(self.options.device)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Cross entropy of one batch."""
        return F.cross_entropy(self.model.logits(batch[0]), batch[1])

    def calibration(self, batches: list[Any] | None = None, count: int | None = None) -> Calibration:
        """The same images for the scorers."""
        return Calibration(
            batches=lambda: self.batches(count) if batches is None else batches,
            forward=lambda batch: self.model.embed(batch[0]),
            loss=self.loss,
        )

    def passes(self) -> dict[str, tuple[Callable[[], Any], Callable[[], Any]]]:
        """Per comparison, the plain pass and the scoring pass."""
        held = list(self.batches())
        calibration = self.calibration(held)

        def forward() -> None:
            with torch.no_grad():
                for images, _ in held:
                    self.model.embed(images)

        def forward_backward() -> None:
            for batch in held:
                self.loss(batch).backward()
                self.model.zero_grad(set_to_none=True)

        def frozen_forward_backward() -> None:
            self.model.requires_grad_(False)
            for images, pids in held:
                self.loss((images.detach().requires_grad_(), pids)).backward()
            self.model.requires_grad_(True)

        def score_heads() -> None:
            HEAD_SCORERS.load("amg")(self.model, calibration, self.blocks)

        def score_tokens() -> None:
            TOKEN_SCORERS.load("amg")(self.model, calibration, self.blocks)

        return {
            "heads / forward": (forward, score_heads),
            "tokens / forward+backward": (forward_backward, score_tokens),
            "tokens / forward+backward to the images, frozen weights": (frozen_forward_backward, score_tokens),
        }


def timed(work: Callable[[], Any], device: str) -> float:
    """Seconds that ``work`` takes."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - start


def compare(plain: Callable[[], Any], scoring: Callable[[], Any], repeats: int, device: str) -> dict[str, Any]:
    """Interleave both and give medians in seconds and the spread of the ratio of neighbouring runs."""
    plain(), scoring()  # warm-up
    runs = [(timed(plain, device), timed(scoring, device)) for _ in range(repeats)]
    ratios = [scored / base for base, scored in runs]
    low, _, high = statistics.quantiles(ratios, n=4, method="inclusive") if repeats > 1 else ratios * 3
    return {
        "plain_s": statistics.median(base for base, _ in runs),
        "scoring_s": statistics.median(scored for _, scored in runs),
        "ratio": statistics.median(ratios),
        "ratio_quartiles": [low, high],
        "ratios": ratios,
    }


def peak_memory(options: argparse.Namespace) -> float:
    """Peak memory in MB of this process after one scoring pass (on a GPU: of its tensors)."""
    target, count = options.memory_probe.split(":")
    setting = Setting(options)
    scorer = {"heads": HEAD_SCORERS, "tokens": TOKEN_SCORERS}[target].load("amg")
    scorer(setting.model, setting.calibration(count=int(count)), setting.blocks)
    if options.device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() / MEGABYTE
    status = Path("/proc/self/status")
    if status.is_file():
        # Not ru_maxrss, which a Linux process takes over from the one that started it.
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1024
    import resource  # not on Windows

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MEGABYTE


def memory_table(counts: list[int]) -> dict[str, dict[str, float]]:
    """Peak memory in MB per target and number of batches, each measured in a process of its own."""
    table: dict[str, dict[str, float]] = {}
    for target in ("heads", "tokens"):
        for count in counts:
            command = [
                sys.executable,
                str(Path(__file__).resolve()),
                *sys.argv[1:],
                "--memory-probe",
                f"{target}:{count}",
            ]
            answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            table.setdefault(target, {})[str(count)] = float(answer.split()[-1])
    return table


def environment(options: argparse.Namespace) -> dict[str, Any]:
    """Everything that the numbers depend on."""
    cuda = options.device.startswith("cuda")
    return {
        "device": torch.cuda.get_device_name() if cuda else processor_name(),
        "threads": torch.get_num_threads(),
        "arch": options.arch,
        "mode": options.mode,
        "image_size": [options.height, options.width],
        "batch_size": options.batch_size,
        "batches": options.batches,
        "repeats": options.repeats,
        "seed": options.seed,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "timm": timm.__version__,
            "amg_plugin": __version__,
        },
    }


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="vit_small_patch16_224", help="timm's name of the ViT (default: %(default)s)")
    parser.add_argument("--height", type=int, default=256, help="image height in pixels (default: %(default)s)")
    parser.add_argument("--width", type=int, default=128, help="image width in pixels (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=16, help="images per batch (default: %(default)s)")
    parser.add_argument("--batches", type=int, default=2, help="batches per timed pass (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=7, help="timed passes of each kind (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch (default: %(default)s)")
    parser.add_argument("--mode", choices=("eval", "train"), default="eval", help="mode of the network in both passes")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="seed of weights and images (default: %(default)s)")
    parser.add_argument(
        "--memory-batches", type=int, nargs=2, default=(2, 8), metavar=("FEW", "MANY"), help="default: 2 8"
    )
    parser.add_argument("--no-memory", action="store_true", help="leave out the memory part, which starts 4 processes")
    parser.add_argument("--output", type=Path, help="write numbers and circumstances into this JSON file")
    parser.add_argument("--memory-probe", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Measure, print the tables, write the file."""
    options = parse_arguments()
    if options.memory_probe:
        print(peak_memory(options))
        return
    setting = Setting(options)
    result: dict[str, Any] = {"environment": environment(options), "time": {}}
    print(json.dumps(result["environment"]))
    print(f"{'scoring / plain pass':<58}{'plain s':>9}{'scoring s':>11}{'ratio':>8}  quartiles")
    for name, (plain, scoring) in setting.passes().items():
        row = result["time"][name] = compare(plain, scoring, options.repeats, options.device)
        low, high = row["ratio_quartiles"]
        print(f"{name:<58}{row['plain_s']:>9.3f}{row['scoring_s']:>11.3f}{row['ratio']:>8.3f}  {low:.3f} to {high:.3f}")
    if not options.no_memory:
        few, many = options.memory_batches
        result["peak_memory_mb"] = memory_table([few, many])
        print(f"{'peak memory, MB':<58}{f'{few} batches':>20}{f'{many} batches':>14}")
        for target, row in result["peak_memory_mb"].items():
            print(f"scoring {target:<50}{row[str(few)]:>20.0f}{row[str(many)]:>14.0f}")
    if options.output:
        options.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
