"""The two figures: one image through all blocks, and a whole network without images.

That of an image shows what each block keeps, where each head looks, and the mean before and after pruning; that of a
network blocks x heads (entropy, kept), blocks x positions (importance, kept) and blocks x neurons (kept). Margins and
gaps are in inches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, ListedColormap, Normalize, PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from torch import Tensor

from amg_plugin.plots.attention import ImageAttention, group_edges, group_numbers, kept_heads, kept_neurons, kept_tokens
from amg_plugin.plots.overlay import faint, opacity
from amg_plugin.plots.style import (
    BORDER,
    FAINT,
    FONT,
    HATCH,
    HATCH_LINES,
    INK,
    KEPT,
    REMOVED,
    Sheet,
    bare,
    colour_bar,
    cross,
    faded_map,
    hatch,
    header_text,
    heat_map,
)
from amg_plugin.pruning import PruningPlan

#: Attention and importance are spread over orders of magnitude: the square root keeps weak values apart.
_GAMMA = 0.5
_LEFT = 0.62

# One image -----------------------------------------------------------------------------------------------------------

_RIGHT, _BOTTOM, _HEADER = 0.25, 0.62, 1.12
_GAP, _WIDE_GAP = 0.05, 0.22


def draw_image(
    picture: np.ndarray,
    after: ImageAttention,
    before: ImageAttention | None = None,
    *,
    title: str = "",
    subtitle: str = "",
    after_title: str = "mean\nafter",
) -> Figure:
    """Draw the figure of one image.

    One row per block; columns are the positions that the block keeps, the attention of each head, and the mean over the
    heads before (if given) and after pruning.
    """
    columns = [before, after] if before else [after]
    with mpl.rc_context(FONT):
        sheet = _BlockSheet(after.plan.depth, max(after.plan.num_heads), len(columns), *picture.shape[:2])
        header_text(sheet, title, subtitle)
        below = faint(picture)
        means = np.stack([_laid_out(part.mean().numpy(), after.grid) for part in columns])
        for row in range(sheet.depth):
            _draw_kept(sheet, row, picture, after)
            _draw_maps(sheet, row, below, after)
            for number, mean in enumerate(means[:, row]):
                _draw_heat(sheet.cell(row, 1 + sheet.heads + number), below, mean, np.nanmax(means[:, row]))
        _write_names(sheet, ["mean\nbefore", after_title][-sheet.means :], after.plan.heads_known)
        _draw_footer(sheet, after.query, merged=bool(after.plan.groups))
    return sheet.figure


class _BlockSheet(Sheet):
    """A sheet with a row of panels for each block; columns for what is kept, the heads and the means."""

    def __init__(self, depth: int, heads: int, means: int, rows: int, columns: int) -> None:
        self.depth, self.heads, self.means = depth, heads, means
        self.panel_height = min(1.0, 0.62 * (rows / columns) ** 0.5)
        self.panel_width = self.panel_height * columns / rows
        gaps = [_WIDE_GAP, *[_GAP] * (heads - 1), _WIDE_GAP, *[_GAP] * (means - 1)]
        widths = [self.panel_width] * (1 + heads + means)
        self.lefts = [_LEFT + sum(widths[:i]) + sum(gaps[:i]) for i in range(len(widths))]
        self.right = self.lefts[-1] + self.panel_width
        height = _HEADER + depth * (self.panel_height + _GAP) + _BOTTOM
        super().__init__(max(self.right + _RIGHT, 6.4), height)

    def cell(self, row: int, column: int) -> Axes:
        bottom = _BOTTOM + (self.depth - 1 - row) * (self.panel_height + _GAP)
        axes = self.panel(self.lefts[column], bottom, self.panel_width, self.panel_height)
        bare(axes)
        return axes


def _draw_kept(sheet: _BlockSheet, row: int, picture: np.ndarray, after: ImageAttention) -> None:
    """The image: positions that the block does not keep are hatched, merged ones have their common colour."""
    axes = sheet.cell(row, 0)
    groups = _laid_out(group_numbers(after.plan).numpy()[row], after.grid)
    extent = (0, picture.shape[1], picture.shape[0], 0)
    axes.imshow(picture, extent=extent, interpolation="lanczos")
    veil = np.zeros((*groups.shape, 4), dtype=np.float32)
    veil[..., :3] = 1.0
    veil[..., 3] = np.where(groups < 0, 0.8, 0.0)
    size = extent[1] / groups.shape[1], extent[2] / groups.shape[0]
    if after.plan.groups:
        veil[:] = _mean_colours(picture, groups)
        _draw_borders(axes, groups, *size)
    axes.imshow(veil, extent=extent, interpolation="nearest")
    hatch(axes, groups < 0, *size)
    axes.set_ylabel(f"block {row}", rotation=0, ha="right", va="center", labelpad=6, fontsize=8)


def _mean_colours(picture: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """For each position its group's mean colour and opacity, ``[rows, columns, 4]``; a lone patch stays transparent."""
    (rows, columns), (height, width) = groups.shape, picture.shape[:2]
    labels = groups[np.arange(height)[:, None] * rows // height, np.arange(width)[None] * columns // width]
    counts = np.maximum(np.bincount(labels.ravel(), minlength=groups.max() + 1), 1)
    sums = [np.bincount(labels.ravel(), picture[..., channel].ravel(), len(counts)) for channel in range(3)]
    alone = np.bincount(groups.ravel(), minlength=len(counts)) == 1
    colours = np.stack([*(total / counts / 255 for total in sums), ~alone], axis=-1)
    return colours[groups]


def _draw_borders(axes: Axes, groups: np.ndarray, width: float, height: float, left: float = 0.0) -> None:
    """Lines around groups of several patches; a patch is ``width`` times ``height``, the first is at ``left``."""
    # With a dark edge, to be seen on any clothes.
    look = {"colors": BORDER, "linewidth": 0.8, "path_effects": [withStroke(linewidth=1.8, foreground=INK)]}
    beside, below = group_edges(groups)
    rows, columns = np.nonzero(beside)
    axes.vlines(left + (columns + 1) * width, left + rows * height, left + (rows + 1) * height, **look)
    rows, columns = np.nonzero(below)
    axes.hlines(left + (rows + 1) * height, left + columns * width, left + (columns + 1) * width, **look)


def _draw_maps(sheet: _BlockSheet, row: int, below: np.ndarray, after: ImageAttention) -> None:
    """The attention of each head of a block, over the image."""
    shown = kept_heads(after.plan).numpy()[row]
    for head in range(sheet.heads):
        values = _laid_out(after.maps[row, head].numpy(), after.grid)
        _draw_heat(sheet.cell(row, 1 + head), below, values, np.nanmax(values) if shown[head] else 0.0)


def _draw_heat(axes: Axes, below: np.ndarray, values: np.ndarray, maximum: float) -> None:
    """A map relative to ``maximum`` over the grey image; a head that is not there is an empty panel with a cross."""
    if np.isnan(values).all():
        axes.set(facecolor="#f4f4f4", xlim=(0, 1), ylim=(0, 1))
        cross(axes, 0.5, 0.5)
        return
    maximum = max(float(maximum), np.finfo(np.float32).tiny)
    (rows, columns), options = values.shape, {"extent": (0, values.shape[1], values.shape[0], 0), "aspect": "auto"}
    axes.imshow(below, interpolation="lanczos", **options)
    axes.imshow(
        np.ma.masked_invalid(values), cmap=heat_map(), norm=PowerNorm(_GAMMA, 0, maximum), interpolation="nearest",
        alpha=opacity(values / maximum), **options,
    )  # fmt: skip
    hatch(axes, np.isnan(values))
    axes.set(xlim=(0, columns), ylim=(rows, 0))


def _write_names(sheet: _BlockSheet, means: Sequence[str], heads_known: bool) -> None:
    """What each column shows."""
    names = ["kept", *map(str, range(sheet.heads)), *means]
    bold = {0, len(names) - 1, len(names) - len(means)}
    top, options = sheet.height - _HEADER, {"ha": "center", "va": "bottom"}
    for column, name in enumerate(names):
        weight = "bold" if column in bold else "normal"
        middle = sheet.lefts[column] + sheet.panel_width / 2
        sheet.text(middle, top + 0.06, name, fontsize=8, linespacing=1.05, weight=weight, **options)
    text = "head" if heads_known else "head (which ones were kept is not recorded: counted from 0)"
    middle = (sheet.lefts[1] + sheet.lefts[sheet.heads] + sheet.panel_width) / 2
    sheet.text(middle, top + 0.24, text, weight="bold", **options)


def _draw_footer(sheet: _BlockSheet, query: str, merged: bool) -> None:
    bar = sheet.panel(_LEFT, 0.40, 2.1, 0.09)
    made = colour_bar(bar, PowerNorm(_GAMMA, 0, 1), heat_map(), "", orientation="horizontal")
    made.set_ticks([0, 0.05, 0.25, 0.5, 1], labels=["0", "0.05", "0.25", "0.5", "1"])
    label = f"attention of the {query} / maximum of the panel (means: of the block), over the image in grey"
    sheet.text(_LEFT, 0.07, label, fontsize=7.5)
    marks = [
        Patch(facecolor="none", edgecolor=BORDER, label="patches of one token")
        if merged
        else Patch(
            facecolor="white", edgecolor=HATCH_LINES, linewidth=0, hatch=HATCH, label="position not kept, no key"
        ),
        mpl.lines.Line2D([], [], color=FAINT, marker="x", linestyle="", markersize=5, label="head removed"),
    ]
    spacing = {"handlelength": 1.0, "handletextpad": 0.5, "columnspacing": 1.2, "borderpad": 0}
    # At the right end of the sheet, which is wide enough for both: few heads make the panels narrower than this line.
    sheet.legend(sheet.width - _RIGHT, 0.4, marks, loc="lower right", ncols=2, fontsize=7.5, **spacing)


def _laid_out(values: np.ndarray, grid: Sequence[int]) -> np.ndarray:
    return values.reshape(*values.shape[:-1], *grid)


# A whole network -----------------------------------------------------------------------------------------------------

# Height of a block's row and of the header, right margin, width of the content and of a colour bar, room of titles.
_ROW, _MODEL_HEADER, _MODEL_RIGHT, _CONTENT, _BAR, _TITLE = 0.235, 0.74, 0.86, 7.6, 0.12, 0.36
_MODEL_GAP = 0.06
#: Cells of the panel of neurons.
_CELLS = 96


@dataclass(frozen=True)
class ModelMaps:
    """What the figure of a network shows."""

    plan: PruningPlan
    grid: tuple[int, int]  # rows and columns of patches
    # NaN where unknown, None without calibration.
    entropy: Tensor | None = None  # of each head in bits, [blocks, heads]
    importance: Tensor | None = None  # of each position / norm of its block, [blocks, patches]


def draw_model(maps: ModelMaps, *, title: str = "", subtitle: str = "") -> Figure:
    """Draw the figure of a network.

    From the top: the heads of each block, its positions in the order of the tokens, its neurons if some were removed,
    and the positions where they are in the image. Scores are coloured where kept, grey and hatched where removed.
    """
    depth, (rows, columns) = maps.plan.depth, maps.grid
    per_line = min(depth, 12)
    small_height = min((_CONTENT - _MODEL_GAP * (per_line - 1)) / per_line * rows / columns, 1.6)
    lines = -(-depth // per_line)
    heights = [depth * _ROW, depth * _ROW, lines * (small_height + 0.2)]
    neurons = depth * _ROW + _TITLE if maps.plan.neurons else 0.0
    with mpl.rc_context(FONT):
        sheet = Sheet(_LEFT + _CONTENT + _MODEL_RIGHT, _MODEL_HEADER + sum(heights) + neurons + 3 * _TITLE + 0.3)
        header_text(sheet, title, subtitle)
        top = sheet.height - _MODEL_HEADER - _TITLE
        _draw_heads(sheet, top, maps)
        top -= heights[0] + _TITLE
        norm = _draw_positions(sheet, top, maps)
        top -= heights[1] + 0.3 + _TITLE
        if maps.plan.neurons:
            _draw_neurons(sheet, top, maps.plan)
            top -= neurons
        _draw_grids(sheet, top, maps, norm, per_line, small_height)
    return sheet.figure


def _draw_heads(sheet: Sheet, top: float, maps: ModelMaps) -> None:
    """The heads of each block."""
    plan, entropy = maps.plan, None if maps.entropy is None else maps.entropy.numpy()
    heads, height = max(plan.num_heads), plan.depth * _ROW
    width = min(_CONTENT - 1.6, heads * 0.42)
    axes = sheet.panel(_LEFT, top - height, width, height)
    kept = kept_heads(plan).numpy()
    exists = np.arange(heads)[None] < np.array(plan.num_heads)[:, None]
    norm = _entropy_norm(entropy)
    _draw_matrix(axes, entropy, kept, norm, exists)
    _block_axis(axes, plan.depth)
    axes.vlines(np.arange(1, heads) - 0.5, *axes.get_ylim(), color="white", linewidth=1.2)
    axes.set_xticks(range(heads))
    axes.tick_params(axis="x", top=True, bottom=False, labeltop=True, labelbottom=False, length=0, pad=1)
    _caption(axes, "Heads" if entropy is None else "Heads: entropy of the mean attention map", 0.2)
    for block, head in zip(*np.nonzero(exists & ~kept), strict=True):
        cross(axes, head, block)
    _draw_counts(sheet.panel(_LEFT + width + 0.2, top - height, 1.1, height), plan.heads_per_block, plan.num_heads)
    if norm is not None:
        label = "bits (bottom: or less)" if np.nanmin(entropy) < norm.vmin else "bits"
        _two_bars(sheet, _LEFT + width + 1.62, top - height, height, norm, label)
    else:
        removed = Patch(facecolor=REMOVED, edgecolor=HATCH_LINES, linewidth=0, hatch=HATCH, label="removed")
        marks = [Patch(facecolor=KEPT, label="kept"), removed]
        sheet.legend(_LEFT + width + 1.75, top, marks, loc="upper left", handlelength=1.2)


def _draw_positions(sheet: Sheet, top: float, maps: ModelMaps) -> Normalize | None:
    """The positions of each block in the order of the tokens; gives the scale of their importance."""
    plan, importance = maps.plan, None if maps.importance is None else maps.importance.numpy()
    height, columns = plan.depth * _ROW, maps.grid[1]
    axes = sheet.panel(_LEFT, top - height, _CONTENT - 1.3, height)
    kept = kept_tokens(plan).numpy()
    norm = None if importance is None else PowerNorm(_GAMMA, 0, float(np.nanmax(importance)))
    _draw_matrix(axes, importance, kept, norm, np.ones_like(kept))
    _block_axis(axes, plan.depth)
    axes.set_xticks(np.arange(0, plan.num_patches, columns) - 0.5, labels=[])
    axes.tick_params(axis="x", top=False, bottom=True, length=2.5, width=0.4)
    axes.set_xlabel(f"patch positions in the order of the tokens; ticks: rows of the image, {columns} each", labelpad=2)
    _caption(axes, "Positions" if importance is None else "Positions: importance / norm of the block", 0.06)
    counts = sheet.panel(_LEFT + _CONTENT - 1.1, top - height, 1.1, height)
    _draw_counts(counts, plan.tokens_per_block, [plan.num_patches] * plan.depth)
    if norm is not None:
        _two_bars(sheet, _LEFT + _CONTENT + 0.1, top - height, height, norm, "importance")
    return norm


def _draw_neurons(sheet: Sheet, top: float, plan: PruningPlan) -> None:
    """The neurons of each block in their order, several to a cell."""
    height = plan.depth * _ROW
    axes = sheet.panel(_LEFT, top - height, _CONTENT - 1.3, height)
    shares = kept_neurons(plan, _CELLS).numpy()
    colours = LinearSegmentedColormap.from_list("kept", [REMOVED, KEPT])
    axes.imshow(shares, cmap=colours, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    axes.spines[:].set_visible(False)
    axes.set_xticks([])
    _block_axis(axes, plan.depth)
    _caption(axes, "Neurons (hidden units of the MLP) in their order: the darker, the more of a cell are kept", 0.06)
    counts = sheet.panel(_LEFT + _CONTENT - 1.1, top - height, 1.1, height)
    _draw_counts(counts, plan.neurons_per_block, plan.num_neurons)


def _draw_grids(
    sheet: Sheet, top: float, maps: ModelMaps, norm: Normalize | None, per_line: int, height: float
) -> None:
    """The same positions where they are in the image, a small panel for each block."""
    merged = "; lines: patches of one token" if maps.plan.groups else ""
    sheet.text(_LEFT, top + 0.2, f"Positions in the image{merged}", weight="bold", fontsize=8.5)
    width = height * maps.grid[1] / maps.grid[0]
    for block, kept in enumerate(kept_tokens(maps.plan).numpy()):
        line, column = divmod(block, per_line)
        axes = sheet.panel(_LEFT + column * (width + _MODEL_GAP), top - line * (height + 0.2) - height, width, height)
        values = None if maps.importance is None else maps.importance[block].numpy().reshape(maps.grid)
        _draw_matrix(axes, values, kept.reshape(maps.grid), norm, np.ones(maps.grid, dtype=bool))
        if maps.plan.groups:
            _draw_borders(axes, group_numbers(maps.plan)[block].numpy().reshape(maps.grid), 1, 1, -0.5)
        bare(axes)
        axes.set_title(f"block {block}" if per_line <= 8 else str(block), fontsize=7.5, pad=2)


def _entropy_norm(entropy: np.ndarray | None) -> Normalize | None:
    if entropy is None:
        return None
    # A single sure head would otherwise take most of the colours.
    low, high = float(np.nanquantile(entropy, 0.05)), float(np.nanmax(entropy))
    return Normalize(low, high if high > low else low + 1)


def _draw_matrix(
    axes: Axes, values: np.ndarray | None, kept: np.ndarray, norm: Normalize | None, exists: np.ndarray
) -> None:
    """Scores, coloured where kept, grey where removed, which is hatched; without scores just the two."""
    options = {"aspect": "auto", "interpolation": "nearest"}
    if values is None:
        colours = ListedColormap([REMOVED, KEPT]).with_extremes(bad="white")
        axes.imshow(np.ma.array(kept.astype(float), mask=~exists), cmap=colours, vmin=0, vmax=1, **options)
    else:
        hidden = np.isnan(values)
        axes.imshow(np.ma.array(values, mask=kept | hidden), cmap=faded_map(), norm=norm, **options)
        # What is masked stays transparent, so that the layer below shows.
        colours = heat_map().with_extremes(bad=(0, 0, 0, 0))
        axes.imshow(np.ma.array(values, mask=~kept | hidden), cmap=colours, norm=norm, **options)
    hatch(axes, exists & ~kept, corner=-0.5)
    axes.set(xlim=(-0.5, kept.shape[1] - 0.5), ylim=(kept.shape[0] - 0.5, -0.5))
    axes.spines[:].set_visible(False)


def _block_axis(axes: Axes, depth: int) -> None:
    axes.set_yticks(range(depth), labels=[f"block {block}" for block in range(depth)])
    axes.tick_params(axis="y", length=0, pad=3)
    axes.hlines(np.arange(1, depth) - 0.5, *axes.get_xlim(), color="white", linewidth=1.2)


def _caption(axes: Axes, text: str, pad: float) -> None:
    axes.set_title(text, loc="left", fontsize=8.5, weight="bold", pad=72 * pad)


def _draw_counts(axes: Axes, kept: list[int], totals: list[int] | tuple[int, ...]) -> None:
    """Bars: how many of how many are kept."""
    places = np.arange(len(kept))
    axes.barh(places, [1] * len(kept), color="#ededed", height=0.62)
    axes.barh(places, [count / total for count, total in zip(kept, totals, strict=True)], color=KEPT, height=0.62)
    for place, (count, total) in enumerate(zip(kept, totals, strict=True)):
        axes.text(1.04, place, f"{count}/{total}", va="center", fontsize=7)
    axes.set_ylim(len(kept) - 0.5, -0.5)
    axes.set_xlim(0, 1.6)
    bare(axes)
    axes.set_title("kept", fontsize=7.5, pad=2, loc="left")


def _two_bars(sheet: Sheet, x: float, y: float, height: float, norm: Normalize, label: str) -> None:
    """Colour bars of what is kept and what is removed, side by side over the same values."""
    height = min(height, 1.9)
    faded = sheet.panel(x, y, _BAR, height)
    colour_bar(faded, norm, faded_map(), "")
    faded.tick_params(right=False, labelright=False)
    heat = sheet.panel(x + _BAR + 0.03, y, _BAR, height)
    colour_bar(heat, norm, heat_map(), label)
    for axes, text in ((faded, "removed"), (heat, "kept")):
        axes.text(0.5, 1.03, text, transform=axes.transAxes, rotation=60, fontsize=7, ha="left", va="bottom")
