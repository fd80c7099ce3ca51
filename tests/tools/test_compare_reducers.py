"""``tools/compare_reducers.py``: methods side by side at equal MACs, over several seeds."""

import json
from pathlib import Path

import pytest
from tiny_run import settings

TOOL = Path(__file__).resolve().parents[2] / "tools" / "compare_reducers.py"
pytestmark = pytest.mark.skipif(not TOOL.is_file(), reason="the tests do not run from a checkout")


@pytest.fixture
def tool(trained, tiny_root, tmp_path, run_script):
    (tmp_path / "dense1.pth").write_bytes(trained.last.read_bytes())
    (tmp_path / "dense2.pth").write_bytes(trained.last.read_bytes())

    def run(*words):
        command = ["--weights", tmp_path / "dense{seed}.pth", "--config-file", tmp_path / "empty.yaml"]
        command += ["--root", tiny_root, "--save-dir", tmp_path / "runs", *words]
        command += ["--saving", "0.21", "--output", tmp_path / "table"]
        keys = settings(tiny_root, tmp_path / "unused")
        for key in ("data.root", "data.save_dir"):
            place = keys.index(key)
            del keys[place : place + 2]
        return run_script(TOOL, *command, *keys, "train.max_epoch", "1")

    (tmp_path / "empty.yaml").write_text("train: {max_epoch: 1}\n")
    return run


def test_methods_are_compared_over_seeds_and_runs_are_not_repeated(tool, tmp_path):
    outcome = tool("--methods", "tome,dense", "--seeds", "1", "2")
    assert outcome.returncode == 0, outcome.stderr
    text = (tmp_path / "table.md").read_text(encoding="utf-8")
    (tome,) = (line for line in text.splitlines() if line.startswith("| ToMe |"))
    assert tome.count("±") == 4
    assert "seeds 1, 2 (mean ± standard deviation over them)" in text
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


@pytest.mark.parametrize(
    ("words", "said"),
    [(["--methods", ""], "holds no finished run of --seeds 1"), (["--seeds", "7"], "dense7.pth' does not exist")],
)
def test_bad_input_ends_with_one_sentence(tool, words, said):
    outcome = tool(*words)
    assert outcome.returncode == 2
    assert said in outcome.stderr
