"""Thin front of ``amg-reid doctor``; see ``python tools/doctor.py --help``."""

import sys

if __name__ == "__main__":
    sys.path.pop(0)  # this folder, whose inspect.py would hide Python's own

from amg_plugin.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["doctor", *sys.argv[1:]]))
