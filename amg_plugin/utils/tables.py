"""Tables as text, Markdown and CSV."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Collection, Mapping, Sequence


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns of text, the first left and the others right aligned."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        first, *rest = (
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return "  ".join([first, *rest]).rstrip()

    return "\n".join([line(header), line(["-" * width for width in widths]), *map(line, rows)])


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, left: Collection[int] = (0,)) -> str:
    """A Markdown table.

    Args:
        header: Names of the columns.
        rows: Cells.
        left: Columns that are left aligned, from 0; the others are right aligned.
    """
    rule = ["---" if i in left else "---:" for i in range(len(header))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *rows))


def csv_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Comma separated values."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue()


def per_cent(fractions: Sequence[float], sign: str = "") -> str:
    """Fractions in per cent: their mean, with the standard deviation if there are several.

    Args:
        fractions: At least one.
        sign: ``"+"`` to write the sign of a positive mean, too.
    """
    text = f"{100 * statistics.fmean(fractions):{sign}.1f}"
    return text if len(fractions) == 1 else f"{text} ± {100 * statistics.stdev(fractions):.1f}"


def shares(values: Mapping[str, float]) -> str:
    """Shares by name as they are written into a file, without those that are 0: ``{heads: 0.3, tokens: 0.7}``."""
    return f"{{{', '.join(f'{name}: {share:g}' for name, share in values.items() if share)}}}"


def duration(seconds: float) -> str:
    """Seconds as people say them: ``0.41 s``, ``95 s``, ``12 min``, ``3 h 05 min``."""
    if seconds < 100:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = math.ceil(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"
