"""Thin front of ``amg-reid prune``; see ``python tools/prune.py --help``."""

import sys

from amg_plugin.cli import main

if __name__ == "__main__":
    sys.exit(main(["prune", *sys.argv[1:]]))
