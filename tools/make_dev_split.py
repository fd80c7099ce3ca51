"""Make a development split out of your own Market-1501.

The split market1501_dev_250_100 divides 350 of the 751 identities of Market-1501's training set into 250 for training
(4,408 images) and 100 for testing (417 query and 1,135 gallery images). It leaves the real test set alone and is small
enough for a CPU. It is not Market-1501's test protocol: call figures from it "Market-1501 dev split (250/100 identities
of the training set)" and do not compare them with published ones.

The project holds the file names only. The images are copied (or hard-linked with --link) from your Market-1501 into

  ROOT/market1501/Market-1501-v15.09.15/{bounding_box_train,query,bounding_box_test}

so that ROOT is what --root of the other commands takes. ROOT must not be the folder of the full Market-1501.

example: python tools/make_dev_split.py --market reid-data --root reid-data-dev
then: amg-reid train --config-file market1501/dev_split_vits14 --root reid-data-dev amg.weights WEIGHTS
"""

import argparse
import sys

from amg_plugin.data.builders import DEFAULT_SPLIT, read_split, write_split
from amg_plugin.errors import AMGError


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--market",
        required=True,
        metavar="FOLDER",
        help="your Market-1501: a data root, the data set's folder or its bounding_box_train",
    )
    parser.add_argument("--root", required=True, metavar="ROOT", help="data root that the split is made in")
    parser.add_argument(
        "--split",
        default=DEFAULT_SPLIT,
        metavar="NAME",
        help="name of a shipped split, or a JSON file like it (%(default)s)",
    )
    parser.add_argument("--link", action="store_true", help="hard-link the images instead of copying them")
    return parser.parse_args()


def main() -> int:
    """Make the split and say where it is."""
    args = parse_arguments()
    try:
        split = read_split(args.split)
        folder = write_split(args.market, args.root, split, link=args.link)
    except AMGError as error:
        print(f"make_dev_split: error: {error}", file=sys.stderr)
        return error.exit_status
    print(", ".join(f"{len(names)} {part}" for part, names in split.parts.items()), f"images in {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
