"""Thin front of ``amg-reid zoo``; see ``python tools/zoo.py --help``."""

import sys

if __name__ == "__main__":
    sys.path.pop(0)  # this folder, whose inspect.py would hide Python's own

from amg_plugin.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["zoo", *sys.argv[1:]]))
