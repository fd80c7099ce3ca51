"""One image through all blocks: what each keeps, where each head looks, and the mean before and after pruning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from amg_plugin.plots.attention import ImageAttention, kept_heads, kept_tokens
from amg_plugin.plots.style import FAINT, FONT, NO_KEY, Sheet, bare, colour_bar, cross, header_text, heat_map

_LEFT, _RIGHT, _BOTTOM, _HEADER = 0.62, 0.25, 0.62, 1.12  # margins in inches
_GAP, _WIDE_GAP = 0.05, 0.22
#: Attention is spread over orders of magnitude: the square root keeps weak values apart.
_GAMMA = 0.5


def draw_image(
    picture: np.ndarray,
    after: ImageAttention,
    before: ImageAttention | None = None,
    *,
    title: str = "",
    subtitle: str = "",
    before_title: str = "mean\nbefore",
    after_title: str = "mean\nafter",
) -> Figure:
    """Draw the figure of one image.

    One row per block; columns are the positions that the block keeps, the attention of each head, and the mean over the
    heads before (if given) and after pruning.

    Args:
        picture: The image as the network sees it, uint8 ``[height, width, 3]``.
        after: Attention in the network of interest.
        before: Attention in the network it was pruned from, or None.
        title: First line of the header.
        subtitle: Second line.
        before_title: Heading of the column of ``before``.
        after_title: Heading of the last column.
    """
    places = _Places(after.plan.depth, max(after.plan.num_heads), 1 if before is None else 2, *picture.shape[:2])
    with mpl.rc_context(FONT):
        sheet = Sheet(places.width, places.height)
        header_text(sheet, title, subtitle)
        columns = [before, after] if before else [after]
        means = np.stack([_laid_out(part.mean().numpy(), after.grid) for part in columns])
        for row in range(places.depth):
            _draw_kept(sheet, places, row, picture, after)
            _draw_heads(sheet, places, row, after)
            for number, mean in enumerate(means[:, row]):
                _draw_heat(places.panel(sheet, row, 1 + places.heads + number), mean, np.nanmax(means[:, row]))
        _write_names(sheet, places, [before_title, after_title][-places.means :], after.plan.heads_known)
        _draw_footer(sheet, places, after.query)
    return sheet.figure


@dataclass(frozen=True)
class _Places:
    """Where the panels are, in inches: a row for each block; columns for what is kept, the heads and the means."""

    depth: int
    heads: int
    means: int
    rows: int
    columns: int

    @property
    def panel_height(self) -> float:
        return min(1.0, 0.62 * (self.rows / self.columns) ** 0.5)

    @property
    def panel_width(self) -> float:
        return self.panel_height * self.columns / self.rows

    @property
    def lefts(self) -> list[float]:
        """Left edge of each column."""
        gaps = [_WIDE_GAP, *[_GAP] * (self.heads - 1), _WIDE_GAP, *[_GAP] * (self.means - 1)]
        widths = [self.panel_width] * (1 + self.heads + self.means)
        return [_LEFT + sum(widths[:i]) + sum(gaps[:i]) for i in range(len(widths))]

    @property
    def right(self) -> float:
        """Right edge of the last column."""
        return self.lefts[-1] + self.panel_width

    @property
    def width(self) -> float:
        return max(self.right + _RIGHT, 6.4)

    @property
    def height(self) -> float:
        return _HEADER + self.depth * (self.panel_height + _GAP) + _BOTTOM

    def panel(self, sheet: Sheet, row: int, column: int) -> Axes:
        bottom = _BOTTOM + (self.depth - 1 - row) * (self.panel_height + _GAP)
        axes = sheet.panel(self.lefts[column], bottom, self.panel_width, self.panel_height)
        bare(axes)
        return axes


def _draw_kept(sheet: Sheet, places: _Places, row: int, picture: np.ndarray, after: ImageAttention) -> None:
    """The image, with the positions that the block does not keep greyed out."""
    axes = places.panel(sheet, row, 0)
    kept = _laid_out(kept_tokens(after.plan).numpy()[row], after.grid)
    extent = (0, places.columns, places.rows, 0)
    axes.imshow(picture, extent=extent, interpolation="lanczos")
    veil = np.zeros((*kept.shape, 4), dtype=np.float32)
    veil[..., :3] = mpl.colors.to_rgb(NO_KEY)
    veil[..., 3] = np.where(kept, 0.0, 0.93)
    axes.imshow(veil, extent=extent, interpolation="nearest")
    axes.set_ylabel(f"block {row}", rotation=0, ha="right", va="center", labelpad=6, fontsize=8)


def _draw_heads(sheet: Sheet, places: _Places, row: int, after: ImageAttention) -> None:
    """The attention of each head of a block."""
    shown = kept_heads(after.plan).numpy()[row]
    for head in range(places.heads):
        values = _laid_out(after.maps[row, head].numpy(), after.grid)
        _draw_heat(places.panel(sheet, row, 1 + head), values, np.nanmax(values) if shown[head] else 0.0)


def _draw_heat(axes: Axes, values: np.ndarray, maximum: float) -> None:
    """A map relative to ``maximum``; a head that is not there is an empty panel with a cross."""
    if np.isnan(values).all():
        axes.set_facecolor("#f4f4f4")
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        cross(axes, 0.5, 0.5)
        return
    norm = PowerNorm(_GAMMA, 0, max(float(maximum), np.finfo(np.float32).tiny))
    axes.imshow(np.ma.masked_invalid(values), cmap=heat_map(), norm=norm, interpolation="nearest", aspect="auto")


def _write_names(sheet: Sheet, places: _Places, means: Sequence[str], heads_known: bool) -> None:
    """What each column shows."""
    names = ["kept", *map(str, range(places.heads)), *means]
    bold = {0, len(names) - 1, len(names) - len(means)}
    top, options = places.height - _HEADER, {"ha": "center", "va": "bottom"}
    for column, name in enumerate(names):
        weight = "bold" if column in bold else "normal"
        middle = places.lefts[column] + places.panel_width / 2
        sheet.text(middle, top + 0.06, name, fontsize=8, linespacing=1.05, weight=weight, **options)
    text = "head" if heads_known else "head (which ones were kept is not recorded: counted from 0)"
    middle = (places.lefts[1] + places.lefts[places.heads] + places.panel_width) / 2
    sheet.text(middle, top + 0.24, text, weight="bold", **options)


def _draw_footer(sheet: Sheet, places: _Places, query: str) -> None:
    bar = sheet.panel(_LEFT, 0.40, 2.1, 0.09)
    made = colour_bar(bar, PowerNorm(_GAMMA, 0, 1), heat_map(), "", orientation="horizontal")
    made.set_ticks([0, 0.05, 0.25, 0.5, 1], labels=["0", "0.05", "0.25", "0.5", "1"])
    label = f"attention of the {query} / maximum of the panel (means: of the block)"
    sheet.text(_LEFT, 0.07, label, fontsize=7.5)
    marks = [
        Patch(facecolor=NO_KEY, edgecolor="none", label="position not kept"),
        mpl.lines.Line2D([], [], color=FAINT, marker="x", linestyle="", markersize=5, label="head removed"),
    ]
    spacing = {"handlelength": 1.0, "handletextpad": 0.5, "columnspacing": 1.2, "borderpad": 0}
    sheet.legend(places.right, 0.24, marks, loc="lower right", ncols=2, fontsize=7.5, **spacing)


def _laid_out(values: np.ndarray, grid: Sequence[int]) -> np.ndarray:
    return values.reshape(*values.shape[:-1], *grid)
