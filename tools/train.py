"""Thin front of ``amg-reid train``; see ``python tools/train.py --help``."""

import sys

from amg_plugin.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
