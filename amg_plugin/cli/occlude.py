"""``amg-reid occlude``: an occluded copy of a data set."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from amg_plugin.data.occlusion.settings import CopySettings, Coverage
from amg_plugin.errors import DataError

HELP = "make an occluded copy of a data set, with masks"
DESCRIPTION = """Make an occluded copy of a data set in Market-1501's layout.

All query images and 10 % of the gallery (Occluded-DukeMTMC's proportions) get an object in front of the person, from
below, from the left or from the right: cut from the margin of a training image, or drawn (a bar, a box, a vehicle).
The training images and the rest of the gallery are copied unchanged. The folder 'masks' holds one-bit masks of what is
hidden, so that 'amg-reid test' can report how much attention falls on it; occlusion.json says what was done.
The same seed and library versions give the same files, whatever the number of threads.

example: amg-reid occlude --source market1501 --target occluded_market1501 --seed 1 --root reid-data
then: amg-reid test --weights CKPT -t market1501 occluded_market1501 --root reid-data"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    defaults, share = CopySettings(), {"type": float, "metavar": "S"}
    parser.add_argument(
        "--source", required=True, metavar="NAME", help="name of a data set below --root, or a folder in the layout"
    )
    parser.add_argument(
        "--target",
        default="occluded_market1501",
        metavar="NAME",
        help="folder to make below --root; 'occluded_market1501' is what -t loads (%(default)s)",
    )
    parser.add_argument("--root", default="reid-data", metavar="DATA", help="folder of the data sets (%(default)s)")
    parser.add_argument("--seed", type=int, default=defaults.seed, help="seed of everything random (%(default)s)")
    parser.add_argument(
        "--coverage",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        default=(defaults.coverage.low, defaults.coverage.high),
        help="limits of the hidden share of an image: LOW + (HIGH - LOW) * Beta(2, 3) (0.15 0.6)",
    )
    text = "share of the gallery that is occluded, 0 to 1 (%(default)s)"
    parser.add_argument("--gallery-share", default=defaults.gallery_share, help=text, **share)
    text = "share of the objects that are cut from training images, 0 to 1; the rest is drawn (%(default)s)"
    parser.add_argument("--cut-share", default=defaults.cut_share, help=text, **share)
    parser.add_argument("--link", action="store_true", help="hard-link unchanged images instead of copying them")
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="0 = one per processor (%(default)s)")


def run(args: argparse.Namespace) -> int:
    """Make the copy; 0 on success."""
    from amg_plugin.data.occlusion.copy import MASK_DIR, write_occluded_copy

    if args.threads < 0:
        raise DataError(f"--threads is {args.threads}, but must be 0 (one per processor) or larger.")
    settings = CopySettings(args.seed, args.gallery_share, args.cut_share, Coverage(*args.coverage))
    target = target_folder(args.target, args.root)
    source = source_folder(args.source, args.root)
    manifest = write_occluded_copy(
        source, target, settings, source_name=Path(args.source).name, link=args.link, threads=args.threads
    )
    print(f"{render(manifest)}\n\n{target} (masks in {MASK_DIR})")
    return 0


def source_folder(source: str, root: str) -> Path:
    """Where a data set is: a registered name means its folder below ``root``, anything else is a folder.

    Raises:
        DataError: It is neither.
    """
    from amg_plugin import compat

    known = {}
    if compat.is_installed():
        from amg_plugin.data.checks.folders import check_dataset_folder
        from amg_plugin.data.datasets.names import known_datasets

        known = known_datasets()
        if source in known and (folder := check_dataset_folder(source, root)):
            return folder
    if (folder := Path(source).expanduser()).is_dir():
        return folder
    raise DataError(
        f"The source '{source}' is neither a folder nor a data set; known are {', '.join(sorted(known)) or 'none'}."
    )


def target_folder(target: str, root: str) -> Path:
    """The folder to make: ``target`` is a name, not a path.

    Raises:
        DataError: It is not a plain name.
    """
    if target in ("", ".", "..") or Path(target).name != target:
        raise DataError(f"The target '{target}' must be a plain name: the folder to make below --root.")
    return Path(root).expanduser() / target


def render(manifest: dict[str, Any]) -> str:
    """Counts and coverage of the copy as a table."""
    from amg_plugin.utils.tables import text_table

    rows = []
    for part, counts in manifest["counts"].items():
        covered = manifest["coverage"].get(part)
        shares = [f"{100 * covered[name]:.1f}" for name in ("mean", "min", "max")] if counts["occluded"] else [""] * 3
        rows.append([part, str(counts["images"]), str(counts["occluded"]), *shares])
    return text_table(["part", "images", "occluded", "hidden: mean %", "min %", "max %"], rows)
