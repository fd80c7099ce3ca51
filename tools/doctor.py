"""Thin front of ``amg-reid doctor``; see ``python tools/doctor.py --help``."""

import sys

from amg_plugin.cli import main

if __name__ == "__main__":
    sys.exit(main(["doctor", *sys.argv[1:]]))
