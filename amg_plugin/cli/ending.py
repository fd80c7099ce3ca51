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

from amg_plugin.utils import stopping
from amg_plugin.utils.files import discard_drafts

#: What a shell reports for a program that SIGINT or SIGPIPE ended.
INTERRUPTED, UNREAD = 128 + 2, 128 + 13


@contextlib.contextmanager
def unwinding() -> Iterator[None]:
    """Leave through ``finally`` on SIGTERM as on Ctrl-C, so that unfinished files go away; at once on a second signal.

    Work that looks at :mod:`amg_plugin.utils.stopping` itself is left where it can be.

    Raises:
        SystemExit: On SIGTERM, with 143.
        KeyboardInterrupt: On Ctrl-C. Both also where what was interrupted fails with another exception, as imports do,
            or does not fail, as what tears an object down.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # where Python sets no handlers
        return
    ours = os.getpid()

    def handle(number: int, frame: FrameType | None) -> None:
        if os.getpid() != ours:  # a forked worker, which owns nothing and is ended by the run
            if number == signal.SIGTERM:
                os._exit(128 + number)
            return
        if not stopping.note(number):
            _end_at_once(number)
        if not stopping.is_held():
            raise stopping.exception()

    numbers = [signal.SIGTERM]
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a job in the background ignores it
        numbers.append(signal.SIGINT)
    with stopping.noting():
        before = {number: signal.signal(number, handle) for number in numbers}
        try:
            yield
        except Exception as error:
            if stopping.requested():
                raise stopping.exception() from error
            raise
        finally:
            for number, handler in before.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)
        stopping.check()


def _end_at_once(number: int) -> None:
    """End this process and those that it has started, without unfinished files."""
    if "multiprocessing" in sys.modules:
        import multiprocessing

        for child in multiprocessing.active_children():
            child.kill()
    discard_drafts()
    os._exit(128 + number)


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
