"""Check the plugin against numbers of the published programs.

Prints one line per quantity with its largest difference; the exit status is 1 if any of them fails, 2 if the file lacks
something.

example: python tools/check_parity.py transreid_amg.safetensors transreid_amg.json
"""

import argparse
import sys

from amg_plugin.errors import AMGError


def main() -> int:
    """Check one file; 0 if everything agrees."""
    from amg_plugin.paper.parity import check_parity

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tensors", metavar="FILE.safetensors", help="inputs, state dicts and outputs")
    parser.add_argument("facts", metavar="FILE.json", help="sizes and choices")
    args = parser.parse_args()
    try:
        checked = check_parity(args.tensors, args.facts)
    except AMGError as error:
        print(f"check_parity: error: {error}", file=sys.stderr)
        return error.exit_status
    for comparison in checked:
        print(comparison)
    failed = sum(not comparison.passed for comparison in checked)
    print(f"{len(checked)} quantities, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
