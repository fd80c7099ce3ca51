"""Make Occluded-DukeMTMC from your own DukeMTMC-reID.

The data set occluded_duke follows the name lists that the authors of Occluded-DukeMTMC publish (train.list, query.list,
gallery.list). Nothing is downloaded: DukeMTMC was withdrawn by its authors, so images come from a copy that you are
allowed to use, unpacked; docs/datasets.md says more.

An image is looked for in its own split first, then in bounding_box_test. The command checks that all of them are there
before it writes anything. The data set appears in ROOT/occluded_duke when it is complete; an interrupted run leaves
nothing behind and can be repeated. A folder that exists is never touched.

example: amg-reid build-occluded-duke --source DukeMTMC-reID --lists Occluded_Duke --root reid-data
then: amg-reid train --config-file market1501/vit_small -s occluded_duke -t occluded_duke --root reid-data

more: docs/datasets.md
"""

from argparse import Namespace

from amg_plugin.cli.arguments import LINK, adder, argument

_FOLDER = {"required": True, "metavar": "FOLDER"}

add_arguments = adder(
    argument("--source", "folder of DukeMTMC-reID", **_FOLDER),
    argument("--lists", "folder with train.list, query.list and gallery.list", **_FOLDER),
    argument("--root", "folder that holds the data sets", **_FOLDER),
    LINK,
)


def run(args: Namespace) -> int:
    """Build and print what was built; 0 on success."""
    from amg_plugin.data.builders import build_occluded_duke

    built = build_occluded_duke(args.source, args.lists, args.root, args.link)
    print(f"{'part':<9}{'images':>8}{'identities':>12}  from another split")
    for part, (images, identities) in built.counts.items():
        print(f"{part:<9}{images:>8,}{identities:>12,}  {built.moved[part]:,}")
    official = "the official counts" if built.is_official else "not the official counts"
    print(f"\n{built.folder} ({official}); use it as -s occluded_duke or -t occluded_duke with --root {args.root}")
    return 0
