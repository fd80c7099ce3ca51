"""A signal that asks a run to stop: noted by the command layer, looked at by whatever does the work.

Python calls a handler between any two instructions, also while an object is torn down in ``__del__``, where exceptions
are lost. So a handler notes the signal first, and within :func:`held` it does nothing else; the work calls
:func:`check` where it can be left.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

_noted = 0
_depth = 0


def note(number: int) -> bool:
    """Note a signal, in its handler.

    Returns:
        Whether it is the first one.
    """
    global _noted
    first, _noted = not _noted, _noted or number
    return first


def requested() -> int:
    """The signal that was noted; 0 without one."""
    return _noted


def is_held() -> bool:
    """Whether the work looks at the note itself, so that a handler need not raise anything."""
    return _depth > 0


def exception() -> BaseException:
    """What ends the program for the signal that was noted."""
    return KeyboardInterrupt() if _noted == signal.SIGINT else SystemExit(128 + _noted)


def check() -> None:
    """Leave here if a signal was noted.

    Raises:
        KeyboardInterrupt: For Ctrl-C.
        SystemExit: For another signal, with 128 plus its number.
    """
    if _noted:
        raise exception()


@contextmanager
def held() -> Iterator[None]:
    """Let a signal wait for :func:`check` in this block, or for its end; what fails then failed for the signal."""
    global _depth
    check()
    _depth += 1
    try:
        yield
        check()
    except Exception as error:  # a loader's process that got the signal, too
        if _noted:
            raise exception() from error
        raise
    finally:
        _depth -= 1


@contextmanager
def noting() -> Iterator[None]:
    """Begin without a note and leave none behind, for the time of a command."""
    global _noted
    before, _noted = _noted, 0
    try:
        yield
    finally:
        _noted = before
