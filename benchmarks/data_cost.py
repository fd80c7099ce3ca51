"""What building Occluded-DukeMTMC and loading a data set cost, against a plain copy and torchreid's own loader.

Three ratios, on drawn noise of the size of real crops (80x200, JPEG) under the official file names or made-up ones:

  build           build-occluded-duke                / copying the same files one by one with shutil.copyfile
  listing         opening the data set               / torchreid's DukeMTMCreID on the same files
  loading         reading, decoding and resizing gallery images in a DataLoader / the same with torchreid's class

Runs are interleaved (plain, ours, plain, ours, ...), in turn ours first, so that a slow phase of the machine and the
cache of the file system meet both; the table shows medians, and of the ratios of neighbouring runs the median and the
quartiles. Written images are removed outside the measured time. On a shared machine the wall clock also measures the
others, so processor time (user and system) is given with it; --work decides which file system is measured.

Usage:
  python benchmarks/data_cost.py --lists Occluded_Duke --output docs/results/data_cost.json
  python benchmarks/data_cost.py --repeats 3 --load-images 500
"""

from __future__ import annotations

import argparse
import io
import json
import platform
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from PIL import Image

import amg_plugin
from amg_plugin import compat
from amg_plugin.data.builders import OFFICIAL, build_occluded_duke, read_lists
from amg_plugin.data.layout import GALLERY_DIR, MARKET_FOLDERS, PARTS
from amg_plugin.utils.environment import processor_name

SHARED = 1870
"""Official queries that are gallery images as well."""
VARIANTS = 200
"""Different images that the files share, so that making the input takes seconds."""


def made_up_lists() -> dict[str, list[str]]:
    """Names in the official numbers, for machines without the lists."""
    names: dict[str, list[str]] = {}
    first = 1
    for part, (images, identities) in OFFICIAL.items():
        names[part] = [
            f"{first + n % identities:04}_c{1 + n // identities % 8}_f{n // identities:07}.jpg" for n in range(images)
        ]
        first += identities if part == "train" else 0  # query and gallery share identities
    names["query"][SHARED:] = [
        name.replace("_f", "_f1")[:-5] + ".jpg" for name in names["query"][SHARED:]
    ]  # not in gallery
    return names


def draw_images(seed: int) -> list[bytes]:
    """JPEG images of the size of person crops."""
    generator = np.random.default_rng(seed)
    images = []
    for _ in range(VARIANTS):
        coarse = generator.integers(0, 256, (24, 10, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((80, 200), Image.Resampling.BICUBIC)
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=95)
        images.append(buffer.getvalue())
    return images


def make_duke(folder: Path, names: dict[str, list[str]], images: list[bytes]) -> list[tuple[str, str, str]]:
    """Write a DukeMTMC-reID with the listed images.

    Returns:
        Folder in Occluded-DukeMTMC, folder in DukeMTMC-reID and name of every listed image.
    """
    for split in MARKET_FOLDERS.values():
        (folder / split).mkdir(parents=True)
    gallery = set(names["gallery"])
    listed = []
    for part, own in MARKET_FOLDERS.items():
        for name in names[part]:
            split = GALLERY_DIR if name in gallery else own
            if not (folder / split / name).exists():
                (folder / split / name).write_bytes(images[len(listed) % len(images)])
            listed.append((own, split, name))
    return listed


def plain_copy(duke: Path, listed: list[tuple[str, str, str]], target: Path) -> None:
    """Copy the same files one by one."""
    for part in MARKET_FOLDERS.values():
        (target / part).mkdir(parents=True)
    for part, split, name in listed:
        shutil.copyfile(duke / split / name, target / part / name)


def timed(work: Callable[[], Any]) -> tuple[float, float]:
    """Seconds, and seconds of processor time, that ``work`` takes."""
    start, start_cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - start, time.process_time() - start_cpu


def compare(
    plain: Callable[[], Any], ours: Callable[[], Any], repeats: int, clean: Callable[[], Any] = lambda: None
) -> dict[str, Any]:
    """Interleave both; for the wall clock and for processor time, see :func:`summary`."""
    for work in (plain, ours):  # warm-up
        work()
        clean()
    runs = []
    for repeat in range(repeats):
        taken = {}
        for work in (plain, ours) if repeat % 2 == 0 else (ours, plain):
            taken[work] = timed(work)
            clean()
        runs.append((taken[plain], taken[ours]))
    return {clock: summary([(base[n], mine[n]) for base, mine in runs]) for n, clock in enumerate(("wall", "cpu"))}


def summary(runs: list[tuple[float, float]]) -> dict[str, Any]:
    """Medians of plain and own times, and of their ratio with its quartiles."""
    ratios = [mine / base for base, mine in runs]
    low, _, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(runs) > 1 else ratios * 3
    return {
        "plain_s": statistics.median(base for base, _ in runs),
        "ours_s": statistics.median(mine for _, mine in runs),
        "ratio": statistics.median(ratios),
        "ratio_quartiles": [low, high],
        "ratios": ratios,
    }


def building(options: argparse.Namespace, work: Path, lists: Path, duke: Path, listed: list[Any]) -> dict[str, Any]:
    """Ratios of building."""
    target = work / "made"

    def copy() -> None:
        plain_copy(duke, listed, target / "copy")

    def clean() -> None:
        shutil.rmtree(target)

    return {"build": compare(copy, lambda: build_occluded_duke(duke, lists, target), options.repeats, clean)}


def loading(options: argparse.Namespace, work: Path, lists: Path, duke: Path) -> dict[str, Any]:
    """Ratios of listing and of reading images, with torchreid's DukeMTMCreID on the same files as the baseline."""
    amg_plugin.register()
    root = work / "reid-data"
    built = build_occluded_duke(duke, lists, root, link=True).folder
    (root / "dukemtmc-reid").mkdir()
    (root / "dukemtmc-reid" / "DukeMTMC-reID").symlink_to(built, target_is_directory=True)
    classes = compat.image_dataset_factory()
    transform = compat.torchreid().data.transforms.build_transforms(256, 128, None)[1]

    def opened(name: str) -> Any:
        return classes[name](root=str(root), mode="gallery", transform=transform, verbose=False)

    # The same files in the same order for both.
    files = sorted(path.name for path in (built / GALLERY_DIR).iterdir())
    chosen = random.Random(options.seed).sample(files, k=options.load_images)
    loaders = {}
    for name in ("dukemtmcreid", "occluded_duke"):
        dataset = opened(name)
        by_name = {Path(item[0]).name: item for item in dataset.data}
        dataset.data = [by_name[file] for file in chosen]
        loaders[name] = torch.utils.data.DataLoader(dataset, batch_size=100, num_workers=options.workers)

    def read(name: str) -> None:
        for _ in loaders[name]:
            pass

    return {
        "listing": compare(lambda: opened("dukemtmcreid"), lambda: opened("occluded_duke"), options.load_repeats),
        "loading": compare(lambda: read("dukemtmcreid"), lambda: read("occluded_duke"), options.load_repeats),
    }


def environment(options: argparse.Namespace, images: int, size: int) -> dict[str, Any]:
    """Everything that the numbers depend on."""
    return {
        "device": processor_name(),
        "threads": torch.get_num_threads(),
        "files": images,
        "bytes": size,
        "names": "official lists" if options.lists else "made up, in the official numbers",
        "load_images": options.load_images,
        "workers": options.workers,
        "repeats": options.repeats,
        "load_repeats": options.load_repeats,
        "seed": options.seed,
        "command": "python " + " ".join(["benchmarks/data_cost.py", *options.shown]),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "pillow": PIL.__version__,
            "amg_plugin": amg_plugin.__version__,
        },
    }


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lists", type=Path, metavar="FOLDER", help="official lists (default: names are made up)")
    parser.add_argument("--work", type=Path, metavar="FOLDER", help="where to write (default: a temporary folder)")
    parser.add_argument("--load-images", type=int, default=200, help="images read per timed pass (%(default)s)")
    parser.add_argument("--workers", type=int, default=0, help="loader workers (%(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="timed builds of each kind (%(default)s)")
    parser.add_argument(
        "--load-repeats", type=int, default=15, help="timed passes of listing and loading (%(default)s)"
    )
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="seed of images and choice (%(default)s)")
    parser.add_argument("--output", type=Path, help="write numbers and circumstances into this JSON file")
    options = parser.parse_args()
    # Not the folders of one machine.
    hidden = {str(options.lists): "LISTS", str(options.work): "WORK", str(options.output): "OUTPUT"}
    options.shown = [hidden.get(word, word) for word in sys.argv[1:]]
    return options


def main() -> None:
    """Measure, print the table, write the file."""
    options = parse_arguments()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        work = Path(folder)
        names = read_lists(options.lists) if options.lists else made_up_lists()
        lists = work / "lists"
        lists.mkdir()
        for part in PARTS:
            (lists / f"{part}.list").write_text("\n".join(names[part]) + "\n", encoding="utf-8")
        listed = make_duke(work / "DukeMTMC-reID", names, draw_images(options.seed))
        size = sum((work / "DukeMTMC-reID" / split / name).stat().st_size for _, split, name in listed)
        result: dict[str, Any] = {"environment": environment(options, len(listed), size)}
        print(json.dumps(result["environment"]))
        result["time"] = {
            **building(options, work, lists, work / "DukeMTMC-reID", listed),
            **loading(options, work, lists, work / "DukeMTMC-reID"),
        }
    print(f"{'ours / plain':<16}{'clock':<6}{'plain s':>9}{'ours s':>9}{'ratio':>8}  quartiles")
    for name, clocks in result["time"].items():
        for clock, row in clocks.items():
            low, high = row["ratio_quartiles"]
            figures = f"{row['plain_s']:>9.3f}{row['ours_s']:>9.3f}{row['ratio']:>8.3f}  {low:.3f} to {high:.3f}"
            print(f"{name:<16}{clock:<6}{figures}")
    if options.output:
        options.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
