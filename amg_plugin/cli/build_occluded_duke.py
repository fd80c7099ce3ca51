"""``amg-reid build-occluded-duke``: make Occluded-DukeMTMC from DukeMTMC-reID and the published name lists."""

from __future__ import annotations

import argparse

HELP = "make Occluded-DukeMTMC from your own DukeMTMC-reID"
DESCRIPTION = """Make the data set occluded_duke from your own copy of DukeMTMC-reID and the name lists that the
authors of Occluded-DukeMTMC publish (train.list, query.list, gallery.list). Nothing is downloaded: DukeMTMC was
withdrawn by its authors, so images come from a copy that you are allowed to use, unpacked; docs/datasets.md says more.

An image is looked for in its own split first, then in bounding_box_test. The command checks that all of them are there
before it writes anything. The data set appears in ROOT/occluded_duke when it is complete; an interrupted run leaves
nothing behind and can be repeated. A folder that exists is never touched.

example: amg-reid build-occluded-duke --source DukeMTMC-reID --lists Occluded_Duke --root reid-data
then: amg-reid train --config-file market1501/vit_small -s occluded_duke -t occluded_duke --root reid-data"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("--source", required=True, metavar="FOLDER", help="folder of DukeMTMC-reID")
    parser.add_argument(
        "--lists", required=True, metavar="FOLDER", help="folder with train.list, query.list and gallery.list"
    )
    parser.add_argument("--root", required=True, metavar="FOLDER", help="folder that holds the data sets")
    parser.add_argument("--link", action="store_true", help="hard links instead of copies (on the same file system)")


def run(args: argparse.Namespace) -> int:
    """Build and print what was built; 0 on success."""
    from amg_plugin.data.builders import build_occluded_duke

    built = build_occluded_duke(args.source, args.lists, args.root, args.link)
    print(f"{'part':<9}{'images':>8}{'identities':>12}  from another split")
    for part, (images, identities) in built.counts.items():
        print(f"{part:<9}{images:>8,}{identities:>12,}  {built.moved[part]:,}")
    official = "the official counts" if built.is_official else "not the official counts"
    print(f"\n{built.folder} ({official}); use it as -s occluded_duke or -t occluded_duke with --root {args.root}")
    return 0
