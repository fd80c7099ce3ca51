"""Thin front of ``amg-reid bench``; see ``python tools/bench.py --help``."""

import sys

if __name__ == "__main__":
    sys.path.pop(0)  # this folder

from amg_plugin.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["bench", *sys.argv[1:]]))
