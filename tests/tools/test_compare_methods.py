"""``tools/compare_methods.py``: methods side by side at equal MACs, over several seeds."""

import json
from pathlib import Path

import pytest
from tiny_run import settings

from amg_plugin.engine import ProgressHook

TOOL = Path(__file__).resolve().parents[2] / "tools" / "compare_methods.py"
#: What single heads and tokens of so small a network can meet.
FEASIBLE = ["--saving", "0.234", "--balance", "0.48"]
pytestmark = pytest.mark.skipif(not TOOL.is_file(), reason="the tests do not run from a checkout")


@pytest.fixture
def tool(trained, tiny_root, tmp_path, run_script):
    (tmp_path / "dense1.pth").write_bytes(trained.last.read_bytes())
    (tmp_path / "dense2.pth").write_bytes(trained.last.read_bytes())

    def run(*words, opts=()):
        command = ["--weights", tmp_path / "dense{seed}.pth", "--config-file", tmp_path / "empty.yaml"]
        command += ["--root", tiny_root, "--save-dir", tmp_path / "runs"]
        command += ["--saving", "0.21", *words, "--output", tmp_path / "table"]
        keys = settings(tiny_root, tmp_path / "unused")
        for key in ("data.root", "data.save_dir"):
            place = keys.index(key)
            del keys[place : place + 2]
        return run_script(TOOL, *command, *keys, "train.max_epoch", "1", *opts)

    (tmp_path / "empty.yaml").write_text("train: {max_epoch: 1}\n")
    return run


def test_methods_are_compared_over_seeds_and_runs_are_not_repeated(tool, tmp_path):
    outcome = tool("--methods", "tome,dense", "--seeds", "1", "2")
    assert outcome.returncode == 0, outcome.stderr
    text = (tmp_path / "table.md").read_text(encoding="utf-8")
    (tome,) = (line for line in text.splitlines() if line.startswith("| ToMe |"))
    assert tome.count("±") == 6
    assert "seeds 1, 2 (mean ± standard deviation over them; differences are taken seed by seed)" in text
    assert "1 epoch, the same for all, distillation from the dense model" in text
    stored = json.loads((tmp_path / "table.json").read_text(encoding="utf-8"))["methods"]
    assert set(stored) == {"tome", "dense"}
    assert set(stored["tome"]["before"]) == set(stored["tome"]["after"]) == {"1", "2"}
    saved = 1 - stored["tome"]["after"]["1"]["macs"] / stored["dense"]["after"]["1"]["macs"]
    assert abs(saved - 0.21) <= 0.005
    assert str(tmp_path) not in json.dumps(stored)

    finished = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("result.json")}
    outcome = tool("--methods", "dense,tome", "--seeds", "1")
    assert outcome.returncode == 0, outcome.stderr
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("result.json")} == finished
    assert "±" not in (tmp_path / "table.md").read_text(encoding="utf-8")


def test_interrupted_fine_tuning_goes_on(tool, monkeypatch):
    epochs = iter([1, 2])

    def power_cut(hook, engine):
        if next(epochs) == 2:
            raise OSError("no power")

    words, opts = ["--methods", "dense"], ["train.max_epoch", "2"]
    with monkeypatch.context() as patch, pytest.raises(OSError, match="no power"):
        patch.setattr(ProgressHook, "before_epoch", power_cut)
        tool(*words, opts=opts)
    outcome = tool(*words, opts=opts)
    assert outcome.returncode == 0, outcome.stderr
    assert "The run goes on after epoch 1." in outcome.stdout
    assert "epoch 2/2: " in outcome.stdout and "epoch 1/2: " not in outcome.stdout


@pytest.mark.parametrize(("method", "saving"), [("beyond_block", 0.234), ("beyond", 0.24)])
def test_what_goes_beyond_the_paper_saves_as_much(tool, tmp_path, method, saving):
    # There are fewer images than columns, so that least squares is out of reach.
    words = ["--methods", f"dense,{method}", "--steps", "before", *FEASIBLE, "--saving", str(saving)]
    outcome = tool(*words, opts=["amg.repair", "mean"])
    assert outcome.returncode == 0, outcome.stderr
    methods = json.loads((tmp_path / "table.json").read_text(encoding="utf-8"))["methods"]
    dense, cut = (methods[name]["before"]["1"] for name in ("dense", method))
    assert abs(1 - cut["macs"] / dense["macs"] - saving) <= 0.02  # a step of merging is large here
    assert methods[method]["config"]["before"]["amg"]["repair"] == "mean"


LATENCY = {
    "subjects": [],
    "environment": {"device": "a computer", "rounds": 3},
    "cases": [
        {"form": form, "batch": batch, "samples": {"amg": [0.001, 0.003, 0.002], "osnet_x1_0": [0.004]}}
        for form in ("onnx", "fast")
        for batch in (1, 16)
    ],
}


def test_a_cut_without_training_has_intervals_over_the_queries_and_measured_times(tool, tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "latency.json").write_text(json.dumps(LATENCY))
    outcome = tool("--methods", "dense,image_tokens,amg_heads", "--steps", "before", *FEASIBLE)
    assert outcome.returncode == 0, outcome.stderr
    text = (tmp_path / "table.md").read_text(encoding="utf-8")
    (row,) = (line for line in text.splitlines() if line.startswith("| beyond: tokens per image only |"))
    assert row.count("[") == 1 and "| not run |" in row
    assert "Milliseconds per pass: medians of 3 on a computer, 1 thread." in text
    assert "| osnet_x1_0 |" in text
    result = json.loads((tmp_path / "table.json").read_text(encoding="utf-8"))
    dense, cut, heads = (result["methods"][name] for name in ("dense", "image_tokens", "amg_heads"))
    macs = dense["before"]["1"]["macs"]
    assert abs(1 - cut["before"]["1"]["macs"] / macs - 0.234) <= 0.01
    assert cut["config"]["before"]["amg"]["token_scorer"] == "amg_image"
    assert sum(heads["before"]["1"]["tokens_per_block"]) == sum(dense["before"]["1"]["tokens_per_block"])
    low, high = cut["intervals"]["before"]["1"]["mAP"]
    assert low <= cut["before"]["1"]["mAP"] <= high
    assert dense["intervals"]["before"]["1"]["mAP_difference"] == [0, 0]
    assert result["latency"]["amg"]["onnx"]["16"]["median"] == 2
    assert set(result["methods"]) == {"dense", "image_tokens", "amg_heads"}


def test_heads_of_torch_pruning_are_removed_to_the_same_saving(tool, tmp_path):
    pytest.importorskip("torch_pruning")
    outcome = tool("--methods", "dense,torch_pruning", "--steps", "before", *FEASIBLE)
    assert outcome.returncode == 0, outcome.stderr
    methods = json.loads((tmp_path / "table.json").read_text(encoding="utf-8"))["methods"]
    dense, peer = (methods[name]["before"]["1"] for name in ("dense", "torch_pruning"))
    assert sum(peer["heads_per_block"]) < sum(dense["heads_per_block"])
    assert abs(1 - peer["macs"] / dense["macs"] - 0.234) <= 0.01


@pytest.mark.parametrize(
    ("words", "said"),
    [(["--methods", ""], "holds no finished run of --seeds 1"), (["--seeds", "7"], "dense7.pth' does not exist")],
)
def test_bad_input_ends_with_one_sentence(tool, words, said):
    outcome = tool(*words)
    assert outcome.returncode == 2
    assert said in outcome.stderr
