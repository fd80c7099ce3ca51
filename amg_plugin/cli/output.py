"""What commands print: text of any origin, without what steers a terminal."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from amg_plugin.errors import printable


class Printable:
    """A text stream that spells out control characters; names and values out of files may hold any."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write text, made printable."""
        self._stream.write(printable(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write every line, made printable."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _Plain(Printable):
    """One that no progress bar is drawn on."""

    def isatty(self) -> bool:
        """Not a terminal."""
        return False


@contextlib.contextmanager
def output_of(rank: int) -> Iterator[None]:
    """Let a process print: the first one of a run everything, the others warnings and errors only."""
    with contextlib.ExitStack() as stack:
        if rank:
            nothing = stack.enter_context(Path(os.devnull).open("w", encoding="utf-8"))
            stack.enter_context(contextlib.redirect_stdout(nothing))
            stack.enter_context(contextlib.redirect_stderr(_Plain(sys.stderr)))
        else:
            stack.enter_context(contextlib.redirect_stdout(Printable(sys.stdout)))
        yield
