"""Make an occluded copy of a data set, with masks.

The copy has Market-1501's layout. All query images and 10 % of the gallery (Occluded-DukeMTMC's proportions) get an
object in front of the person, from below, from the left or from the right: cut from the margin of a training image, or
drawn (a bar, a box, a vehicle). The training images and the rest of the gallery are copied unchanged. The folder
'masks' holds one-bit masks of what is hidden, so that 'amg-reid test' can report how much attention falls on it;
occlusion.json says what was done. The same seed and library versions give the same files, whatever the number of
threads.

example: amg-reid occlude --source market1501 --target occluded_market1501 --seed 1 --root reid-data
then: amg-reid test --weights CKPT -t market1501 occluded_market1501 --root reid-data

more: docs/occlusion.md
"""

from argparse import Namespace
from dataclasses import astuple
from pathlib import Path

from amg_plugin.cli.arguments import LINK, adder, argument
from amg_plugin.data.occlusion.settings import CopySettings, Coverage
from amg_plugin.errors import DataError

_USUAL = CopySettings()
_COVERAGE = {"type": float, "nargs": 2, "metavar": ("LOW", "HIGH"), "default": astuple(_USUAL.coverage)}
_LIMITS = "limits of the hidden share of an image: LOW + (HIGH - LOW) * Beta(2, 3) (default: 0.15 0.6)"
_NAME = "folder to make below --root; -t loads 'occluded_market1501'"
_CUT = "share of the objects that are cut from training images, 0 to 1; the others are drawn"

add_arguments = adder(
    argument("--source", "name of a data set below --root, or a folder in the layout", required=True, metavar="NAME"),
    argument("--target", _NAME, default="occluded_market1501", metavar="NAME"),
    argument("--root", "folder of the data sets", default="reid-data", metavar="DATA"),
    argument("--seed", "seed of everything random", default=_USUAL.seed),
    argument("--coverage", _LIMITS, **_COVERAGE),
    argument("--gallery-share", "occluded share of the gallery, 0 to 1", default=_USUAL.gallery_share, metavar="S"),
    argument("--cut-share", _CUT, default=_USUAL.cut_share, metavar="S"),
    LINK,
    argument("--threads", "0 = one per processor", default=0, metavar="N"),
)


def run(args: Namespace) -> int:
    """Make the copy; 0 on success."""
    from amg_plugin.data.occlusion.copy import MASK_DIR, write_occluded_copy
    from amg_plugin.utils.files import expanded
    from amg_plugin.utils.tables import text_table

    if args.threads < 0:
        raise DataError(f"--threads is {args.threads}, but must be 0 (one per processor) or larger.")
    settings = CopySettings(args.seed, args.gallery_share, args.cut_share, Coverage(*args.coverage))
    if args.target in ("", ".", "..") or Path(args.target).name != args.target:
        raise DataError(f"The target '{args.target}' must be a plain name: the folder to make below --root.")
    target, name = expanded(args.root) / args.target, Path(args.source).name
    source = _source_folder(args.source, args.root)
    manifest = write_occluded_copy(source, target, settings, source_name=name, link=args.link, threads=args.threads)
    rows = []
    for part, counts in manifest["counts"].items():
        covered = manifest["coverage"].get(part)
        shares = [f"{100 * covered[name]:.1f}" for name in ("mean", "min", "max")] if counts["occluded"] else [""] * 3
        rows.append([part, str(counts["images"]), str(counts["occluded"]), *shares])
    table = text_table(["part", "images", "occluded", "hidden: mean %", "min %", "max %"], rows)
    print(f"{table}\n\n{target} (masks in {MASK_DIR})")
    return 0


def _source_folder(source: str, root: str) -> Path:
    """Where a data set is: a registered name means its folder below ``root``, anything else is a folder."""
    from amg_plugin import compat
    from amg_plugin.utils.files import expanded

    known = {}
    if compat.is_installed():
        from amg_plugin.data.checks.folders import check_dataset_folder, known_datasets

        known = known_datasets(source)
        if source in known and (folder := check_dataset_folder(source, root)):
            return folder
    if (folder := expanded(source)).is_dir():
        return folder
    raise DataError(
        f"The source '{source}' is neither a folder nor a data set; known are {', '.join(sorted(known)) or 'none'}."
    )
