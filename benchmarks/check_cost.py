"""What checking images costs: time of the check pass / time of decoding the same images with Pillow in as many threads.

The runs are interleaved (decode, check, decode, ...), so that a slow phase of the machine meets both; the table shows
medians, and of the ratios of neighbouring runs the median and the quartiles. The files are read once before, so that
no run waits for the disk. Without --folder the images of the drawn data set are used.

Usage:
  python benchmarks/check_cost.py --threads 1 2 --repeats 9
  python benchmarks/check_cost.py --folder reid-data/market1501 --output check_cost.json
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import PIL
from PIL import Image

from amg_plugin.data.checks.inspection import read_images
from amg_plugin.data.layout import list_images
from amg_plugin.data.synthetic.reid import SyntheticSpec, write_synthetic_reid
from amg_plugin.version import __version__

#: Market-1501's size of images.
DRAWN = SyntheticSpec(train_ids=400, test_ids=200)


def decode(path: str) -> None:
    """What a reader does with an image."""
    with Image.open(path) as image:
        image.convert("RGB")


def decode_all(paths: list[str], threads: int) -> None:
    """Decode every image, in threads."""
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(decode, paths, chunksize=64):
            pass


def check_all(paths: list[str], threads: int) -> None:
    """The check pass as a run does it."""
    found = read_images(paths, threads)
    if found.unreadable:
        raise SystemExit(f"unreadable: {next(iter(found.unreadable))}")


def timed(work: Callable[..., Any], *args: Any) -> float:
    """Seconds that ``work`` takes."""
    start = time.perf_counter()
    work(*args)
    return time.perf_counter() - start


def measure(paths: list[str], threads: int, repeats: int) -> dict[str, Any]:
    """Interleaved runs with ``threads`` threads: medians in seconds, ratios to decoding."""
    decode_all(paths, threads)
    check_all(paths, threads)
    runs = [(timed(decode_all, paths, threads), timed(check_all, paths, threads)) for _ in range(repeats)]
    ratios = [check / decode for decode, check in runs]
    low, _, high = statistics.quantiles(ratios, n=4, method="inclusive") if repeats > 1 else ratios * 3
    return {
        "decode_s": statistics.median(decode for decode, _ in runs),
        "check_s": statistics.median(check for _, check in runs),
        "ratio": statistics.median(ratios),
        "ratio_quartiles": [low, high],
        "ratios": ratios,
    }


def processor_name() -> str:
    """Name of the CPU, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.is_file() else []
    return names[0].split(":", 1)[1].strip() if names else platform.processor() or platform.machine()


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="images to read, with all folders below; drawn ones if omitted")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="default: 1 2")
    parser.add_argument("--repeats", type=int, default=9, help="timed runs of each kind (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the drawn images (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="write numbers and circumstances into this JSON file")
    return parser.parse_args()


def main() -> None:
    """Measure, print the table, write the file."""
    options = parse_arguments()
    with tempfile.TemporaryDirectory() as drawn:
        folder = options.folder or write_synthetic_reid(drawn, DRAWN, options.seed)
        paths = list_images(folder, nested=True)
        result: dict[str, Any] = {
            "environment": {
                "device": processor_name(),
                "images": len(paths),
                "megabytes": round(sum(Path(path).stat().st_size for path in paths) / 2**20, 1),
                "data": "folder" if options.folder else f"synthetic_reid, seed {options.seed}",
                "repeats": options.repeats,
                "versions": {
                    "python": platform.python_version(),
                    "pillow": PIL.__version__,
                    "amg_plugin": __version__,
                },
            },
            "threads": {},
        }
        print(json.dumps(result["environment"]))
        print(f"{'threads':<9}{'decode s':>10}{'check s':>10}{'ratio':>8}  quartiles")
        for threads in options.threads:
            row = result["threads"][str(threads)] = measure(paths, threads, options.repeats)
            low, high = row["ratio_quartiles"]
            print(
                f"{threads:<9}{row['decode_s']:>10.3f}{row['check_s']:>10.3f}{row['ratio']:>8.3f}"
                f"  {low:.3f} to {high:.3f}"
            )
    if options.output:
        options.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
