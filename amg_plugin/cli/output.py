"""What commands print: text of any origin, without what steers a terminal."""

from __future__ import annotations

from collections.abc import Iterable
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
