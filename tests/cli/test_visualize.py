"""``amg-reid visualize``."""

import pytest
from PIL import Image

QUICK = ("--dpi", "50")


@pytest.fixture
def query(tiny_root):
    return sorted((tiny_root / "synthetic_reid" / "query").glob("*.jpg"))


def test_every_image_gets_a_figure(amg_reid, pruned, trained, query, tmp_path):
    words = ("--dense", trained.last, "--images", *query[:2], "--output", tmp_path / "figures", *QUICK)
    outcome = amg_reid("visualize", pruned.last, *words)
    assert outcome.status == 0, outcome.err
    figures = [tmp_path / "figures" / f"{path.stem}.png" for path in query[:2]]
    assert outcome.out.splitlines() == list(map(str, figures))
    assert all(Image.open(path).size[1] > 100 for path in figures)


def test_folders_stand_for_their_images_and_equal_names_are_told_apart(amg_reid, trained, query, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "same.jpg").write_bytes(query[0].read_bytes())
    (tmp_path / "a" / "notes.txt").write_text("no image")
    (tmp_path / "a" / "._same.jpg").write_bytes(b"what macOS adds")
    words = ("--images", tmp_path / "a", tmp_path / "b", "--output", tmp_path / "out", "--format", "pdf", *QUICK)
    assert amg_reid("visualize", trained.last, *words).status == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["same-2.pdf", "same.pdf"]


def test_without_images_the_network_is_drawn_beside_the_checkpoint(amg_reid, pruned):
    outcome = amg_reid("visualize", pruned.best, *QUICK)
    assert outcome.status == 0, outcome.err
    assert outcome.out.strip() == str(pruned.folder / "visualize" / "best_model.png")
    assert (pruned.folder / "visualize" / "best_model.png").is_file()


@pytest.mark.parametrize("dense", [True, False])
def test_calibration_scores_the_dense_network_or_the_pruned_one(
    amg_reid, pruned, trained, tmp_path, monkeypatch, dense
):
    from amg_plugin.plots import checkpoints

    drawn = []
    plain = checkpoints.draw_model
    monkeypatch.setattr(checkpoints, "draw_model", lambda maps, **words: drawn.append(maps) or plain(maps, **words))
    words = ("--dense", trained.last) if dense else ()
    outcome = amg_reid(
        *("visualize", pruned.last, *words, "--calibrate", "--output", tmp_path, *QUICK),
        *("amg.calibration.batches", "1"),
    )
    assert outcome.status == 0, outcome.err
    (maps,) = drawn
    kept = sum(maps.plan.heads_per_block), sum(maps.plan.tokens_per_block)
    everything = sum(maps.plan.num_heads), maps.plan.num_patches * maps.plan.depth
    known = int((~maps.entropy.isnan()).sum()), int((~maps.importance.isnan()).sum())
    assert known == (everything if dense else kept)
    assert kept < everything
    assert [path.name for path in tmp_path.iterdir()] == ["last_scores.png"]  # beside the plain figure, last_model.png


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--images", "nowhere.jpg"), "nowhere.jpg"),
        (("--images", "{folder}"), "holds no images"),
        (("--images", "{text}"), "cannot be read"),
        (("--images", "{text}", "--calibrate"), "--calibrate"),
        (("--dpi", "7"), "50 to 600"),
        (("--dense", "nowhere.pth"), "nowhere.pth"),
        (("--dense", "{pruned}"), "lacks heads, tokens or neurons"),
    ],
)
def test_bad_words_are_refused(refused, trained, pruned, tmp_path, words, expected):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.jpg").write_text("no image")
    names = {"folder": tmp_path / "empty", "text": tmp_path / "text.jpg", "pruned": pruned.last}
    given = [word.format(**names) for word in words]
    assert expected in refused("visualize", trained.last, *given, "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_networks_that_choose_tokens_for_each_image_are_refused(refused, trained, tmp_path):
    from dataclasses import replace

    from amg_plugin.checkpoint import read_checkpoint, save_checkpoint
    from amg_plugin.models.build import build_network
    from amg_plugin.models.spec import ReducerSpec

    spec = replace(read_checkpoint(trained.last).spec, reducer=ReducerSpec("tome", (8, 6)))
    save_checkpoint(tmp_path / "tome.pth", build_network(spec))
    assert "no fixed positions" in refused("visualize", tmp_path / "tome.pth")
