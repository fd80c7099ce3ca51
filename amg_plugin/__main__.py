"""``python -m amg_plugin``: the program ``amg-reid``."""

import os
import signal
import sys


def console_main() -> None:
    """Entry point of the installed program."""
    if "_ARGCOMPLETE" in os.environ:  # a shell asks how a line may go on
        from amg_plugin.cli import completion

        completion.complete()
    ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # a job in the background ignores Ctrl-C
    if ours:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # nothing to say yet, and nothing to unwind
    from amg_plugin.cli import ending, main

    ending.open_closed_streams()
    try:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        status = main.main()
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # nothing to unwind any more
    sys.exit(status)


if __name__ == "__main__":
    console_main()
