"""``python -m amg_plugin``: see :mod:`amg_plugin.cli.launcher`."""

import sys

from amg_plugin.cli.launcher import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
