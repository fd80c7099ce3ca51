"""``tools/ablate_recipe.py``: variants of the training recipe side by side."""

import json
from pathlib import Path

import pytest
from tiny_run import settings

TOOL = Path(__file__).resolve().parents[2] / "tools" / "ablate_recipe.py"
pytestmark = pytest.mark.skipif(not TOOL.is_file(), reason="the tests do not run from a checkout")


@pytest.fixture
def tool(tiny_root, tmp_path, run_script):
    def run(*words):
        keys = settings(tiny_root, tmp_path / "unused")
        for key in ("data.root", "data.save_dir"):
            place = keys.index(key)
            del keys[place : place + 2]
        command = ["--root", tiny_root, "--config-file", tmp_path / "empty.yaml", "--save-dir", tmp_path / "runs"]
        return run_script(TOOL, *command, "--epochs", "1", "--output", tmp_path / "table", *words, "--keys", *keys)

    (tmp_path / "empty.yaml").write_text("train: {max_epoch: 1}\n")
    return run


def test_variants_are_compared_and_runs_are_not_repeated(tool, tmp_path):
    outcome = tool("--variants", "recipe", "before_even", "--seeds", "1", "2")
    assert outcome.returncode == 0, outcome.stderr
    stored = json.loads((tmp_path / "table.json").read_text(encoding="utf-8"))
    assert set(stored["variants"]) == {"recipe", "before_even"}
    even = stored["variants"]["before_even"]
    assert set(even["runs"]) == {"1", "2"}
    assert even["config"]["amg"]["even_batches"] is True
    assert even["config"]["train"]["optim"] == "adam"
    assert str(tmp_path) not in json.dumps(stored["variants"])
    text = (tmp_path / "table.md").read_text(encoding="utf-8")
    (recipe,) = (line for line in text.splitlines() if line.startswith("| the recipe |"))
    assert recipe.count("±") == 2 and "+0.0" in recipe

    finished = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("result.json")}
    outcome = tool("--variants", "recipe", "--seeds", "1")
    assert outcome.returncode == 0, outcome.stderr
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("result.json")} == finished


def test_without_any_run_there_is_no_table(tool):
    outcome = tool("--variants")
    assert outcome.returncode == 2
    assert "holds no finished run of --seeds 1" in outcome.stderr
