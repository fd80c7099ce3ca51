"""Thin front of ``amg-reid inspect``; see ``python tools/inspect.py --help``."""

import sys

from amg_plugin.cli import main

if __name__ == "__main__":
    sys.exit(main(["inspect", *sys.argv[1:]]))
