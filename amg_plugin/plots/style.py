"""What the figures share: colours, sizes, and writing files whole."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Colormap, ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path as MplPath

from amg_plugin.utils.files import replacing

FORMATS = ("png", "pdf", "svg")
KEPT, REMOVED, INK, FAINT = "#2a6fbb", "#e4e4e4", "#222222", "#6a6a6a"
BORDER = "#ff9f1c"
#: Lines over what is not there: a texture that neither clothes nor scores have, in any print.
HATCH, HATCH_LINES = "//////", "#4a4a4a"
FONT = {"font.family": "DejaVu Sans", "font.size": 8, "axes.linewidth": 0.5, "text.color": INK, "hatch.linewidth": 0.5}


def heat_map() -> Colormap:
    """Colours of values, readable with any colour vision, and in print; NaN lets through what is below."""
    return mpl.colormaps["viridis"].with_extremes(bad=(0, 0, 0, 0))


def faded_map() -> Colormap:
    """Grey counterpart of :func:`heat_map` for values of what was removed: light enough not to be mistaken for it."""
    shades = [(shade, shade, shade) for shade in (0.55 + 0.37 * step / 255 for step in range(256))]
    return ListedColormap(shades, name="faded").with_extremes(bad="white")


class Sheet:
    """An empty figure on which things are placed in inches from the lower left corner.

    It belongs to no window and to no global state.
    """

    def __init__(self, width: float, height: float) -> None:
        self.width, self.height = width, height
        self.figure = Figure(figsize=(width, height), facecolor="white")
        FigureCanvasAgg(self.figure)

    def panel(self, x: float, y: float, width: float, height: float) -> Axes:
        """New axes."""
        return self.figure.add_axes((x / self.width, y / self.height, width / self.width, height / self.height))

    def text(self, x: float, y: float, text: str, **options: Any) -> None:
        """Write something."""
        self.figure.text(x / self.width, y / self.height, text, **options)

    def legend(self, x: float, y: float, marks: Sequence[Artist], **options: Any) -> None:
        """A legend without a frame; ``loc`` says which of its corners is at ``x``, ``y``."""
        corner = (x / self.width, y / self.height)
        self.figure.legend(handles=marks, bbox_to_anchor=corner, frameon=False, borderaxespad=0, **options)


def bare(axes: Axes) -> None:
    """Take ticks and frame away."""
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def header_text(sheet: Sheet, title: str, subtitle: str) -> None:
    """Write title and subtitle (which may have two lines) into the upper left corner."""
    figure, x = sheet.figure, 0.12 / sheet.width
    figure.text(x, 1 - 0.12 / sheet.height, title, fontsize=11, weight="bold", va="top")
    figure.text(x, 1 - 0.36 / sheet.height, subtitle, fontsize=8, color=FAINT, va="top", linespacing=1.3)


def hatch(axes: Axes, cells: np.ndarray, width: float = 1.0, height: float = 1.0, corner: float = 0.0) -> None:
    """Lines over the true cells of a bool ``[rows, columns]``; the first has its upper left corner at ``corner``."""
    unit = np.array([(0, 0), (1, 0), (1, 1), (0, 1), (0, 0)]) * np.array([width, height]) + corner
    codes = [MplPath.MOVETO, *[MplPath.LINETO] * 3, MplPath.CLOSEPOLY]
    places = [unit + np.array([column * width, row * height]) for row, column in np.argwhere(cells)]
    if places:
        path = MplPath(np.concatenate(places), codes * len(places))
        axes.add_patch(PathPatch(path, facecolor="none", edgecolor=HATCH_LINES, linewidth=0, hatch=HATCH))


def cross(axes: Axes, x: float, y: float, size: float = 5.0) -> None:
    """Mark something as removed."""
    axes.plot([x], [y], marker="x", color=FAINT, markersize=size, markeredgewidth=0.9, clip_on=False)


def colour_bar(axes: Axes, norm: Normalize, colours: Colormap, label: str, **options: Any) -> Any:
    """A horizontal or vertical colour bar with its meaning in words."""
    bar = axes.figure.colorbar(mpl.cm.ScalarMappable(norm=norm, cmap=colours), cax=axes, **options)
    bar.outline.set_linewidth(0.4)
    bar.ax.tick_params(labelsize=7, length=2, width=0.4, pad=1.5)
    bar.set_label(label, fontsize=7.5, labelpad=2.5)
    return bar


def save_figure(figure: Figure, path: Path, dots_per_inch: int) -> None:
    """Write a figure (:data:`FORMATS`); a file is replaced only once the new one is complete.

    Raises:
        RunError: If the file cannot be written.
    """
    kind = path.suffix.lstrip(".")
    # Without a date or a version the same figure gives the same file.
    metadata = {
        "pdf": {"CreationDate": None, "Producer": None, "Creator": None},
        "svg": {"Date": None, "Creator": None},
    }.get(kind, {"Software": None})
    options = {**FONT, "pdf.fonttype": 42, "svg.hashsalt": "amg_plugin"}  # text stays text in a PDF
    with replacing(path, "figure") as draft, mpl.rc_context(options):
        figure.savefig(draft, format=kind, dpi=dots_per_inch, metadata=metadata)
