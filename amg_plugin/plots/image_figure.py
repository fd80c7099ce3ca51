"""One image through all blocks: what each keeps, where each head looks, and the mean before and after pruning."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from amg_plugin.plots.attention import ImageAttention, kept_heads, kept_tokens
from amg_plugin.plots.style import FAINT, FONT, NO_KEY, bare, colour_bar, cross, header_text, heat_map, new_figure

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
    plan = after.plan
    depth, heads = plan.depth, max(plan.num_heads)
    height, width = picture.shape[:2]
    panel_height = min(1.0, 0.62 * (height / width) ** 0.5)
    panel_width = panel_height * width / height
    means = 1 if before is None else 2
    columns = [panel_width] * (1 + heads + means)
    gaps = [_WIDE_GAP, *[_GAP] * (heads - 1), _WIDE_GAP, *[_GAP] * (means - 1)]
    full_width = max(_LEFT + sum(columns) + sum(gaps) + _RIGHT, 6.4)
    full_height = _HEADER + depth * (panel_height + _GAP) + _BOTTOM
    with mpl.rc_context(FONT):
        figure = new_figure(full_width, full_height)
        lefts = [_LEFT + sum(columns[:i]) + sum(gaps[:i]) for i in range(len(columns))]

        def panel(row: int, column: int) -> mpl.axes.Axes:
            bottom = _BOTTOM + (depth - 1 - row) * (panel_height + _GAP)
            box = (
                lefts[column] / full_width,
                bottom / full_height,
                panel_width / full_width,
                panel_height / full_height,
            )
            axes = figure.add_axes(box)
            bare(axes)
            return axes

        header_text(figure, title, subtitle)
        names = ["kept", *map(str, range(heads)), *([before_title] if before else []), after_title]
        bold = {0, len(names) - 1, len(names) - means}
        shown_heads, shown_tokens = kept_heads(plan).numpy(), kept_tokens(plan).numpy()
        columns_of_means = [before, after] if before else [after]
        stacked = np.stack([_laid_out(part.mean().numpy(), after.grid) for part in columns_of_means])
        for row in range(depth):
            axes = panel(row, 0)
            _draw_kept(axes, picture, _laid_out(shown_tokens[row], after.grid))
            axes.set_ylabel(f"block {row}", rotation=0, ha="right", va="center", labelpad=6, fontsize=8)
            for head in range(heads):
                axes = panel(row, 1 + head)
                values = _laid_out(after.maps[row, head].numpy(), after.grid)
                _draw_heat(axes, values, np.nanmax(values) if shown_heads[row, head] else 0.0)
            for place in range(means):
                _draw_heat(panel(row, 1 + heads + place), stacked[place, row], np.nanmax(stacked[:, row]))
        for column, name in enumerate(names):
            x = (lefts[column] + panel_width / 2) / full_width
            figure.text(
                x,
                (full_height - _HEADER + 0.06) / full_height,
                name,
                ha="center",
                va="bottom",
                fontsize=8,
                linespacing=1.05,
                weight="bold" if column in bold else "normal",
            )
        middle = (lefts[1] + lefts[heads] + panel_width) / 2 / full_width
        text = "head" if plan.heads_known else "head (which ones were kept is not recorded: counted from 0)"
        figure.text(middle, (full_height - _HEADER + 0.24) / full_height, text, ha="center", va="bottom", weight="bold")
        _footer(figure, after.query, full_width, full_height, lefts[-1] + panel_width)
    return figure


def _footer(figure: Figure, query: str, width: float, height: float, right: float) -> None:
    bar = figure.add_axes((_LEFT / width, 0.40 / height, 2.1 / width, 0.09 / height))
    label = f"attention of the {query} / maximum of the panel (means: of the block)"
    made = colour_bar(figure, bar, PowerNorm(_GAMMA, 0, 1), heat_map(), "", orientation="horizontal")
    made.set_ticks([0, 0.05, 0.25, 0.5, 1], labels=["0", "0.05", "0.25", "0.5", "1"])
    figure.text(_LEFT / width, 0.07 / height, label, fontsize=7.5)
    marks = [
        Patch(facecolor=NO_KEY, edgecolor="none", label="position not kept"),
        mpl.lines.Line2D([], [], color=FAINT, marker="x", linestyle="", markersize=5, label="head removed"),
    ]
    figure.legend(
        handles=marks,
        loc="lower right",
        bbox_to_anchor=(right / width, 0.24 / height),
        ncols=2,
        frameon=False,
        fontsize=7.5,
        handlelength=1.0,
        handletextpad=0.5,
        columnspacing=1.2,
        borderaxespad=0,
        borderpad=0,
    )


def _laid_out(values: np.ndarray, grid: Sequence[int]) -> np.ndarray:
    return values.reshape(*values.shape[:-1], *grid)


def _draw_kept(axes: mpl.axes.Axes, picture: np.ndarray, kept: np.ndarray) -> None:
    """The image, with the positions that are not kept greyed out."""
    height, width = picture.shape[:2]
    extent = (0, width, height, 0)
    axes.imshow(picture, extent=extent, interpolation="lanczos")
    veil = np.zeros((*kept.shape, 4), dtype=np.float32)
    veil[..., :3] = mpl.colors.to_rgb(NO_KEY)
    veil[..., 3] = np.where(kept, 0.0, 0.93)
    axes.imshow(veil, extent=extent, interpolation="nearest")


def _draw_heat(axes: mpl.axes.Axes, values: np.ndarray, maximum: float) -> None:
    """A map relative to ``maximum``; a head that is not there is an empty panel with a cross."""
    if np.isnan(values).all():
        axes.set_facecolor("#f4f4f4")
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        cross(axes, 0.5, 0.5)
        return
    norm = PowerNorm(_GAMMA, 0, max(float(maximum), np.finfo(np.float32).tiny))
    axes.imshow(np.ma.masked_invalid(values), cmap=heat_map(), norm=norm, interpolation="nearest", aspect="auto")
