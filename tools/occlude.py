"""Thin front of ``amg-reid occlude``; see ``python tools/occlude.py --help``."""

import sys

if __name__ == "__main__":
    sys.path.pop(0)  # this folder, whose inspect.py would hide Python's own

from amg_plugin.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["occlude", *sys.argv[1:]]))
