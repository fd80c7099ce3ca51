"""How the program ends when something outside ends it: Ctrl-C, SIGTERM, or an output that nobody reads any more."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

#: What a shell reports for a program that SIGINT or SIGPIPE ended.
INTERRUPTED, UNREAD = 128 + 2, 128 + 13


@contextlib.contextmanager
def unwinding() -> Iterator[None]:
    """Leave through ``finally`` on SIGTERM as on Ctrl-C, so that unfinished files go away.

    Raises:
        SystemExit: On SIGTERM, with 143.
        KeyboardInterrupt: On Ctrl-C, also where what was interrupted fails with another exception, as imports do.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # where Python sets no handlers
        return
    ours = os.getpid()
    interrupted = False

    def terminate(number: int, frame: FrameType | None) -> None:
        if os.getpid() != ours:  # a forked worker, which owns nothing
            os._exit(128 + number)
        sys.exit(128 + number)

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal interrupted
        interrupted = True
        raise KeyboardInterrupt

    handlers = {signal.SIGTERM: terminate}
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a job in the background ignores it
        handlers[signal.SIGINT] = interrupt
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    except Exception as error:
        if interrupted:
            raise KeyboardInterrupt from error
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def open_closed_streams() -> None:
    """Give a standard stream that was closed (``>&-``) the null device, so that no file of a run gets its number."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115


def discard_unread() -> bool:
    """Send what is left to write to a standard stream without a reader (``| head``) to the null device.

    Returns:
        Whether there is such a stream.
    """
    import select

    found = False
    for stream in (sys.__stdout__, sys.__stderr__):
        if stream is None:
            continue
        if hasattr(select, "poll"):  # not on Windows
            poll = select.poll()
            poll.register(stream.fileno(), 0)  # nothing but errors, of which a missing reader is one
            if not poll.poll(0):
                continue
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        found = True
    return found
