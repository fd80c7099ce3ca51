"""``python -m amg_plugin``: the program ``amg-reid``."""

from amg_plugin.cli.main import console_main

if __name__ == "__main__":
    console_main()
