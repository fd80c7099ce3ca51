"""Thin front of ``amg-reid demo``; see ``python tools/demo.py --help``."""

import sys

from amg_plugin.cli import main

if __name__ == "__main__":
    sys.exit(main(["demo", *sys.argv[1:]]))
