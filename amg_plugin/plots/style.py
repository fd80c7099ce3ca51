"""What the figures share: colours, sizes, and writing files whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Colormap, ListedColormap, Normalize
from matplotlib.figure import Figure

from amg_plugin.utils.files import replacing

FORMATS = ("png", "pdf")
#: Of the maps that are told apart with any colour vision, and in print.
HEAT = "viridis"
KEPT, REMOVED, NO_KEY, INK, FAINT = "#2a6fbb", "#d8d8d8", "#cfcfcf", "#222222", "#6a6a6a"
FONT = {"font.family": "DejaVu Sans", "font.size": 8, "axes.linewidth": 0.5, "text.color": INK}
PDF_FONT = {"pdf.fonttype": 42}  # text stays text


def heat_map() -> Colormap:
    """Colours of values; NaN is grey."""
    return mpl.colormaps[HEAT].with_extremes(bad=NO_KEY)


def faded_map() -> Colormap:
    """Grey counterpart of :func:`heat_map` for values of what was removed: light enough not to be mistaken for it."""
    shades = [(shade, shade, shade) for shade in (0.55 + 0.37 * step / 255 for step in range(256))]
    return ListedColormap(shades, name="faded").with_extremes(bad="white")


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches; it belongs to no window and to no global state."""
    figure = Figure(figsize=(width, height), facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def bare(axes: Any) -> None:
    """Take ticks and frame away."""
    axes.set_xticks([])
    axes.set_yticks([])
    for side in axes.spines.values():
        side.set_visible(False)


def header_text(figure: Figure, title: str, subtitle: str) -> None:
    """Write title and subtitle (which may have two lines) into the upper left corner."""
    width, height = figure.get_size_inches()
    x = 0.12 / width
    figure.text(x, 1 - 0.12 / height, title, fontsize=11, weight="bold", va="top")
    figure.text(x, 1 - 0.36 / height, subtitle, fontsize=8, color=FAINT, va="top", linespacing=1.3)


def cross(axes: Any, x: float, y: float, size: float = 5.0) -> None:
    """Mark something as removed."""
    axes.plot([x], [y], marker="x", color=FAINT, markersize=size, markeredgewidth=0.9, clip_on=False)


def colour_bar(figure: Figure, axes: Any, norm: Normalize, colours: Colormap, label: str, **options: Any) -> Any:
    """A horizontal or vertical colour bar with its meaning in words."""
    bar = figure.colorbar(mpl.cm.ScalarMappable(norm=norm, cmap=colours), cax=axes, **options)
    bar.outline.set_linewidth(0.4)
    bar.ax.tick_params(labelsize=7, length=2, width=0.4, pad=1.5)
    bar.set_label(label, fontsize=7.5, labelpad=2.5)
    return bar


def save_figure(figure: Figure, path: Path, dots_per_inch: int) -> None:
    """Write a figure; a file is replaced only once the new one is complete.

    Args:
        figure: What to write.
        path: Where to; its ending is one of :data:`FORMATS`.
        dots_per_inch: Resolution of a PNG, and of the pixels in a PDF.

    Raises:
        RunError: If the file cannot be written.
    """
    kind = path.suffix.lstrip(".")
    # Without a date or a version the same figure gives the same file.
    metadata = {"CreationDate": None, "Producer": None, "Creator": None} if kind == "pdf" else {"Software": None}
    with replacing(path, "figure") as draft, mpl.rc_context({**FONT, **PDF_FONT}):
        figure.savefig(draft, format=kind, dpi=dots_per_inch, metadata=metadata)
