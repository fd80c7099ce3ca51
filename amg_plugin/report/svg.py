"""matplotlib's figures as SVG inside a page: in the colours and the font of the page, light or dark."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

#: Stand for colours that the page decides: text, labels and axes, rules, empty areas, and those of series.
INK, FAINT, RULE, SOFT = "#0a0001", "#0a0002", "#0a0003", "#0a0004"
_SERIES = tuple(f"#0b000{number}" for number in range(6))
_VARIABLES = {INK: "ink", FAINT: "faint", RULE: "rule", SOFT: "soft"} | {
    colour: f"c{number}" for number, colour in enumerate(_SERIES)
}
#: Besides its colour every series has lines and marks of its own, for print and for any colour vision.
_LINES, _MARKS = ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1))), ("o", "s", "^", "D", "v", "P")
#: Width of an entry of a legend in points: its mark, and a letter in most fonts.
_MARK, _LETTER = 42, 5.8
_OPTIONS = {
    "svg.fonttype": "none", "svg.hashsalt": "amg_plugin", "font.family": "sans-serif", "font.size": 10,
    "text.color": INK, "axes.labelcolor": FAINT, "axes.edgecolor": RULE, "xtick.color": RULE, "ytick.color": RULE,
    "xtick.labelcolor": FAINT, "ytick.labelcolor": FAINT, "grid.color": RULE, "axes.linewidth": 0.8,
    "legend.frameon": False, "legend.fontsize": 9.5, "axes.spines.top": False, "axes.spines.right": False,
}  # fmt: skip


def series(number: int) -> str:
    """The colour of a series."""
    return _SERIES[number % len(_SERIES)]


def line(number: int) -> dict[str, object]:
    """Colour, line and marks of a series, for ``Axes.plot``."""
    return {"color": series(number), "linestyle": _LINES[number % len(_LINES)], "marker": _MARKS[number % len(_MARKS)]}


class Chart:
    """A small chart; :meth:`svg` gives it as part of a page."""

    def __init__(self, width: float = 4.4, height: float = 2.6) -> None:
        with mpl.rc_context(_OPTIONS):
            self.figure = Figure(figsize=(width, height), layout="constrained")
            FigureCanvasSVG(self.figure)
            self.axes: Axes = self.figure.add_subplot()
            self.axes.set_axisbelow(True)

    def legend(self) -> None:
        """A legend above the axes, where it covers nothing, in as many columns as its longest word leaves room for."""
        longest = max(map(len, self.axes.get_legend_handles_labels()[1]), default=0)
        room = 72 * self.figure.get_figwidth()
        columns = max(1, min(3, int(room / (_MARK + _LETTER * longest))))
        with mpl.rc_context(_OPTIONS):
            self.figure.legend(loc="outside upper left", ncols=columns, handlelength=2.4, columnspacing=1.2)

    def svg(self, label: str) -> str:
        """The drawing, for readers who do not see it with a ``label``."""
        text = io.StringIO()
        with mpl.rc_context(_OPTIONS):
            self.figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        return _inline(text.getvalue(), label)


def _inline(text: str, label: str) -> str:
    body = text[text.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>\s*", "", body, flags=re.DOTALL)
    body = re.sub(r"<!--.*?-->\s*", "", body, flags=re.DOTALL)
    body = re.sub(r' id="(?![mphi][0-9a-f]{10})[\w.-]*"', "", body)  # of groups, the same in every figure
    box = re.search(r'viewBox="[^"]*"', body)[0]
    body = re.sub(r"^<svg[^>]*>", f'<svg {box} class="chart" role="img" aria-label="{label}">', body)
    body = re.sub(r"font: ((?:\w+ )*)([\d.]+)px [^;\"]+", r"font-size: \2px", body)
    for colour, name in _VARIABLES.items():
        body = body.replace(colour, f"var(--{name})")
    return body.replace("xlink:href", "href")


def whole_ticks(axes: Axes, values: Sequence[float]) -> None:
    """Ticks at whole numbers only, as of epochs and blocks."""
    axes.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True, nbins=9))
    if values:
        axes.set_xlim(min(values) - 0.4, max(values) + 0.4)
