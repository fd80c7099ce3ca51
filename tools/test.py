"""Thin front of ``amg-reid test``; see ``python tools/test.py --help``."""

import sys

from amg_plugin.cli import main

if __name__ == "__main__":
    sys.exit(main(["test", *sys.argv[1:]]))
