"""The figure of accuracy over cost."""

import json

import pytest

from amg_plugin.plots.pareto import Axis, draw_pareto, pareto_front, read_curves


def entry(label, before, after=(), macs=1e9):
    steps = {
        step: {str(seed): {"mAP": value, "macs": macs} for seed, value in enumerate(values)}
        for step, values in (("before", before), ("after", after))
    }
    return {"label": label, **steps}


def times(**milliseconds):
    return {
        name: {form: {"1": {"median": value}, "16": {"median": 10 * value}} for form in ("onnx", "fast")}
        for name, value in milliseconds.items()
    }


@pytest.fixture
def files(tmp_path):
    """Two sizes; one of them was trained and timed."""
    dense = entry("dense", [0.9], [0.8], 2e9)
    small = {"dense": dense, "amg": entry("AMG", [0.4]), "tome": entry("ToMe", [0.5])}
    large = {
        "dense": dense,
        "amg": entry("AMG", [0.6, 0.8], [0.85], 1.5e9),
        "tome": entry("ToMe", [0.85], [0.86], 1.5e9),
    }
    where = {"device": "a computer", "threads": 1}
    timed = {"latency": times(dense=20, amg=14, tome=15, osnet_x1_0=30), "latency_on": where}
    (tmp_path / "small.json").write_text(json.dumps({"methods": small}))
    (tmp_path / "large.json").write_text(json.dumps({"methods": large, **timed}))
    return tmp_path


def test_a_method_is_a_line_over_its_sizes_and_the_mean_over_its_seeds(files):
    curves = read_curves([files / "large.json", files / "small.json"], Axis("macs"), "before")
    assert curves.points == {
        "dense": [(2.0, 90.0)],
        "AMG": [(1.0, 40.0), (1.5, pytest.approx(70.0))],
        "ToMe": [(1.0, 50.0), (1.5, 85.0)],
    }
    assert not curves.marks


@pytest.mark.parametrize(("batch", "scale"), [(1, 1), (16, 10)])
def test_costs_are_measured_times_and_light_networks_are_marked(files, batch, scale):
    curves = read_curves([files / "large.json"], Axis("fast", batch), "after", ["dense", "amg"])
    assert curves.points == {"dense": [(20 * scale, 90.0)], "AMG": [(14 * scale, 85.0)]}
    assert curves.marks == {"osnet_x1_0": 30 * scale}
    assert curves.conditions == "a computer, 1 thread"


def test_methods_differ_in_colour_and_shape_in_the_same_way_in_every_panel(files):
    panels = [(axis, read_curves([files / "large.json"], axis, "before")) for axis in (Axis("onnx"), Axis("macs"))]
    figure = draw_pareto(panels, "before")
    first, second = (
        {line.get_label(): (line.get_color(), line.get_marker()) for line in axes.lines if line.get_label()[0] != "_"}
        for axes in figure.axes
    )
    assert first == second and set(first) == {"dense", "AMG", "ToMe"}
    assert len({colour for colour, _ in first.values()}) == len({shape for _, shape in first.values()}) == 3
    assert "osnet_x1_0" in [text.get_text().strip() for text in figure.axes[0].texts]
    assert figure.axes[0].get_xlabel() == "milliseconds per pass of 1 image (onnx)"


def run(folder, mean=0.7, macs=1e9, times=(), dense=None):
    """The result of a pruning run, and the times that were measured of it."""
    folder.mkdir()
    sections = {"dense": dense or {"mAP": 0.8, "macs": 2e9}, "pruned": {"mAP": mean - 0.2, "macs": macs}}
    sections["finetuned"] = {"mAP": mean, "macs": macs}
    (folder / "result.json").write_text(json.dumps({"config": {}, **sections}))
    case = {"form": "fast", "batch": 1, "threads": 1}
    rows = [
        {**case, "milliseconds": value, **extra} for value, extra in zip(times, ({}, {"baseline": "d"}), strict=False)
    ]
    content = {"subjects": [], "cases": [], "environment": {"device": "a CPU", "rounds": 5}, "rows": rows}
    (folder / "bench.json").write_text(json.dumps(content))


def test_any_set_of_runs_is_drawn_and_labels_join_them_to_lines(tmp_path):
    for name, mean, macs in (("a", 0.7, 1e9), ("b", 0.6, 0.5e9), ("c", 0.65, 1.2e9)):
        run(tmp_path / name, mean, macs, (20, 12))
    words = [f"AMG={tmp_path / 'a'}", f"AMG={tmp_path / 'b' / 'result.json'}", str(tmp_path / "c")]
    curves = read_curves(words, Axis("macs"), "after")
    assert curves.points == {"AMG": [(0.5, 60.0), (1.0, 70.0)], "dense": [(2.0, 80.0)], "c": [(1.2, 65.0)]}
    assert read_curves(words[2:], Axis("macs"), "before").points["c"] == [(1.2, pytest.approx(45.0))]
    timed = read_curves([tmp_path / "c"], Axis("fast"), "after")
    assert timed.points == {"c": [(12, 65.0)], "dense": [(20, 80.0)]}
    assert timed.conditions == "a CPU, 5 rounds, 1 thread"


def test_the_front_joins_what_nothing_beats():
    assert pareto_front([(2, 80), (1, 70), (1.2, 65), (0.5, 60), (1, 71)]) == [(0.5, 60), (1, 71), (2, 80)]


@pytest.mark.parametrize("name", ["figure.svg", "figure.png"])
def test_the_command_writes_a_figure(files, amg_reid, name):
    words = ["plot", "pareto", files / "large.json", "--over", "onnx", "fast", "--batch", 1, 16]
    outcome = amg_reid(*words, "--output", files / name)
    assert outcome.status == 0 and outcome.out.strip() == str(files / name)
    assert (files / name).stat().st_size > 1000


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["missing.json"], "cannot be read"),
        (["other.json"], "is neither the folder of a run nor a file of tools/compare_methods.py"),
        (["folder"], "holds no result.json"),
        (["run", "--over", "fast"], "has no times of fast at batch 1 for its last network"),
        (["broken", "--over", "macs"], "has no accuracy and cost to draw"),
        (["large.json", "--methods", "evit"], "No file has the method 'evit'; there are amg, dense, tome."),
        (["small.json"], "has no times of onnx at batch 1"),
        (["large.json", "--batch", "2"], "has no times of onnx at batch 2"),
        (["small.json", "--over", "macs", "--methods", "amg"], "No file has figures of the step 'after'"),
        (["large.json", "--output", "figure.bmp"], "must end in .svg, .png, .pdf"),
    ],
)
def test_what_cannot_be_drawn_is_refused(files, refused, monkeypatch, words, said):
    (files / "other.json").write_text("[]")
    (files / "folder").mkdir()
    run(files / "run")
    run(files / "broken", dense={"macs": "many"})
    monkeypatch.chdir(files)
    message = refused("plot", "pareto", *words)
    assert said in message and "InputError" not in message
