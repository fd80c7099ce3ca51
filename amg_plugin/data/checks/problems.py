"""One thing that is wrong with the data, with the files that it concerns."""

from __future__ import annotations

from dataclasses import dataclass

LISTED = 10
"""Names that a message gives; ``amg-reid check`` gives all of them."""


@dataclass(frozen=True)
class Problem:
    """Something wrong with the data."""

    dataset: str  # empty for what concerns several
    text: str  # a clause without a full stop
    items: tuple[str, ...] = ()  # files, identities or labels
    remedy: str = ""

    def sentence(self, most: int = LISTED) -> str:
        """The problem without its full stop, naming the first ``most`` items and the number of the others."""
        text = self.text
        if self.items:
            more = f"; and {len(self.items) - most} more" if len(self.items) > most else ""
            text = f"{text}: {'; '.join(self.items[:most])}{more}"
        return f"{text}. {self.remedy}" if self.remedy else text
