"""Drawing: what is on the figures, and files that are whole or absent."""

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from amg_plugin.errors import RunError
from amg_plugin.plots.attention import ImageAttention, kept_heads, kept_tokens
from amg_plugin.plots.figures import ModelMaps, draw_image, draw_model
from amg_plugin.plots.style import FORMATS, faded_map, heat_map, save_figure
from amg_plugin.pruning import PruningPlan

GRID = (4, 2)
PLAN = PruningPlan("block", [3, 3], 8, [[0, 2], [1]], [range(8), [2, 3, 4]])
PICTURE = np.full((32, 16, 3), 120, dtype=np.uint8)


def attention(plan):
    maps = torch.full((2, 3, 8), torch.nan)
    heads, tokens = kept_heads(plan), kept_tokens(plan)
    shown = heads[:, :, None] & tokens[:, None, :]
    maps[shown] = torch.rand(int(shown.sum()), generator=torch.Generator().manual_seed(1))
    return ImageAttention(maps, plan, GRID, "class token")


def texts(figure):
    return [text.get_text() for text in figure.findobj(lambda item: hasattr(item, "get_text"))]


def heats(figure):
    """Values of the panels with a heat map."""
    images = [image for axes in figure.axes for image in axes.images]
    return [image.get_array() for image in images if image.get_array().ndim == 2 and image.get_array().shape == GRID]


def test_the_figure_of_an_image_has_a_panel_for_every_head_and_mean():
    after = attention(PLAN)
    figure = draw_image(PICTURE, after, attention(PruningPlan.dense([3, 3], 8)), title="A title")
    words = texts(figure)
    assert {"A title", "block 0", "block 1", "head", "0", "1", "2", "kept", "mean\nbefore", "mean\nafter"} <= set(words)
    assert len(heats(figure)) == 3 + 2 * 2  # kept heads; means of two blocks before and after
    masked = [int(np.ma.getmaskarray(values).sum()) for values in heats(figure)]
    assert masked == [0, 0, 0, 0, 5, 0, 5]
    crosses = [line for axes in figure.axes for line in axes.lines if line.get_marker() == "x"]
    assert len(crosses) == 3


def test_the_means_of_a_block_share_their_scale_and_a_head_has_its_own():
    before, after = attention(PruningPlan.dense([3, 3], 8)), attention(PLAN)
    figure = draw_image(PICTURE, after, before)
    images = [image for axes in figure.axes for image in axes.images if image.get_array().shape == GRID]
    limits = [image.norm.vmax for image in images]
    assert (
        limits[2]
        == limits[3]
        == pytest.approx(max(float(part.mean()[0].nan_to_num().max()) for part in (before, after)))
    )
    assert limits[0] == pytest.approx(float(after.maps[0, 0].max()))


def test_without_a_dense_network_there_is_one_mean():
    figure = draw_image(PICTURE, attention(PLAN), after_title="mean")
    assert "mean" in texts(figure)
    assert "mean\nbefore" not in texts(figure)
    assert len(heats(figure)) == 3 + 2


def test_positions_that_are_not_kept_are_hatched_in_the_image():
    figure = draw_image(PICTURE, attention(PLAN))
    veils = [image.get_array() for axes in figure.axes for image in axes.images if image.get_array().ndim == 3]
    hidden = [(veil[..., 3] > 0.5).reshape(-1).nonzero()[0].tolist() for veil in veils if veil.shape[-1] == 4]
    assert hidden == [[], [0, 1, 5, 6, 7]]
    kept = [axes for axes in figure.axes if axes.get_ylabel().startswith("block")]
    assert [[patch.get_hatch() is not None for patch in axes.patches] for axes in kept] == [[], [True]]


def test_attention_is_laid_over_the_image():
    figure = draw_image(PICTURE, attention(PLAN))
    panels = [axes for axes in figure.axes if any(image.get_array().shape == GRID for image in axes.images)]
    for axes in panels:
        below, heat = axes.images
        assert below.get_array().shape == PICTURE.shape
        assert 0 < np.min(heat.get_alpha()[~np.ma.getmaskarray(heat.get_array())]) < np.max(heat.get_alpha()) < 1


@pytest.mark.parametrize("heads", [1, 3, 12])
def test_the_legend_lies_beside_the_colour_bar(heads):
    plan = PruningPlan.dense([heads, heads], 8)
    maps = torch.rand(2, heads, 8)
    figure = draw_image(PICTURE, ImageAttention(maps, plan, GRID, "class token"))
    figure.canvas.draw()
    (legend,) = figure.legends
    bar = next(axes for axes in figure.axes if "0.25" in [text.get_text() for text in axes.get_xticklabels()])
    assert not legend.get_window_extent().overlaps(bar.get_tightbbox())


def test_removed_neurons_have_a_panel():
    plan = PruningPlan.dense([3, 3], 8, num_neurons=[8, 8]).narrow(neurons=[range(6), range(2)])
    figure = draw_model(ModelMaps(plan, GRID))
    assert {"6/8", "2/8"} <= set(texts(figure))
    assert any(text.startswith("Neurons") for text in texts(figure))
    positions, shares = (image.get_array() for image in matrices(figure, (2, 8)))
    assert positions.all()
    assert shares.tolist() == [[1] * 6 + [0] * 2, [1] * 2 + [0] * 6]


MERGED = PruningPlan.dense([3, 3], 8, "merge").merge(
    [range(8), [0, 3, 4]], [[[n] for n in range(8)], [[0, 1, 2], [3], [4, 5, 6, 7]]]
)


def test_merged_positions_have_their_common_colour_and_borders():
    picture = np.zeros((32, 16, 3), dtype=np.uint8)
    picture[:8, :8, 0] = 255  # the first patch is red
    maps = torch.rand(2, 3, 8)
    figure = draw_image(picture, ImageAttention(maps, MERGED, GRID, "class token"))
    veils = [image.get_array() for axes in figure.axes for image in axes.images if image.get_array().ndim == 3]
    first, second = (veil.reshape(8, 4) for veil in veils if veil.shape[-1] == 4)
    assert not first[:, 3].any()
    assert second[:, 3].tolist() == [1, 1, 1, 0, 1, 1, 1, 1]
    assert second[:3, 0].tolist() == pytest.approx([1 / 3] * 3)
    assert second[4:, 0].tolist() == [0] * 4
    rows = [axes for axes in figure.axes if axes.get_ylabel().startswith("block")]
    assert [sum(len(lines.get_segments()) for lines in axes.collections) for axes in rows] == [0, 1 + 3]
    assert "patches of one token" in texts(figure)


def test_the_figure_of_a_merged_network_shows_the_groups():
    figure = draw_model(ModelMaps(MERGED, GRID, importance=torch.rand(2, 8, dtype=torch.float64)))
    grids = [axes for axes in figure.axes if axes.images and axes.images[0].get_array().shape == GRID]
    assert [sum(len(lines.get_segments()) for lines in axes.collections) for axes in grids] == [0, 1 + 3]
    assert "Positions in the image; lines: patches of one token" in texts(figure)


def test_heads_whose_numbers_are_unknown_are_not_passed_off_as_known():
    plan = PruningPlan("block", [3, 3], 8, [[0, 1], [0]], [range(8)] * 2, heads_known=False)
    assert any("not recorded" in text for text in texts(draw_image(PICTURE, attention(plan))))


def matrices(figure, shape):
    return [image for axes in figure.axes for image in axes.images if image.get_array().shape == shape]


def test_the_figure_of_a_network_shows_what_is_kept():
    figure = draw_model(ModelMaps(PLAN, GRID), title="Network")
    (heads,), (tokens,) = matrices(figure, (2, 3)), matrices(figure, (2, 8))
    assert heads.get_array().astype(int).tolist() == kept_heads(PLAN).int().tolist()
    assert tokens.get_array().astype(int).tolist() == kept_tokens(PLAN).int().tolist()
    assert len(matrices(figure, GRID)) == 2
    assert {"Network", "Heads", "Positions", "2/3", "1/3", "3/8", "removed"} <= set(texts(figure))


def test_scores_are_coloured_where_kept_and_grey_where_removed():
    entropy = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, torch.nan]], dtype=torch.float64)
    figure = draw_model(ModelMaps(PLAN, GRID, entropy, torch.rand(2, 8, dtype=torch.float64)))
    grey, coloured = matrices(figure, (2, 3))
    assert grey.get_cmap().name == faded_map().name
    assert coloured.get_cmap().name == heat_map().name
    assert grey.get_array().compressed().tolist() == [2, 4]
    assert coloured.get_array().compressed().tolist() == [1, 3, 5]
    assert any("entropy" in text for text in texts(figure))


@pytest.mark.parametrize("kind", FORMATS)
def test_the_same_figure_gives_the_same_file(tmp_path, kind):
    for name in ("a", "b"):
        save_figure(draw_image(PICTURE, attention(PLAN)), tmp_path / "new" / f"{name}.{kind}", 60)
    a, b = ((tmp_path / "new" / f"{name}.{kind}").read_bytes() for name in "ab")
    assert a == b
    assert a.startswith({"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}[kind])
    assert len(list((tmp_path / "new").iterdir())) == 2


def test_a_file_that_cannot_be_written_is_an_error_and_leaves_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        save_figure(Figure(), tmp_path / "file" / "x.png", 60)


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x.png"
    path.write_bytes(b"old")

    def fail(self, target, **options):
        target.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(RunError, match="No space left"):
        save_figure(Figure(), path, 60)
    assert [file.name for file in tmp_path.iterdir()] == ["x.png"]
    assert path.read_bytes() == b"old"
