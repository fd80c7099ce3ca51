"""Check the plugin against numbers of the published programs: check_golden.py FILE.safetensors FILE.json.

Prints one line per quantity with its largest difference; the exit status is 1 if any of them fails or the file lacks
something.
"""

import sys

if __name__ == "__main__":
    sys.path.pop(0)  # this folder, whose inspect.py would hide Python's own

import argparse


def main() -> int:
    """Check one file; 0 if everything agrees."""
    from amg_plugin.errors import AMGError
    from amg_plugin.paper.parity import check_golden

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tensors", metavar="FILE.safetensors", help="inputs, state dicts and outputs")
    parser.add_argument("facts", metavar="FILE.json", help="sizes and choices")
    args = parser.parse_args()
    try:
        checked = check_golden(args.tensors, args.facts)
    except AMGError as error:
        print(f"check_golden: error: {error}", file=sys.stderr)
        return 1
    for comparison in checked:
        print(comparison)
    failed = sum(not comparison.passed for comparison in checked)
    print(f"{len(checked)} quantities, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
