"""``tools/ablate_recipe.py``: variants of the training recipe side by side."""

import importlib.util
import json
import sys
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
import torch
from tiny_run import settings

from amg_plugin.registries import HOOKS

TOOL = Path(__file__).resolve().parents[2] / "tools" / "ablate_recipe.py"
pytestmark = pytest.mark.skipif(not TOOL.is_file(), reason="the tests do not run from a checkout")


@pytest.fixture(autouse=True)
def own_hooks(monkeypatch):
    """What the tool registers is forgotten after the test."""
    monkeypatch.setattr(HOOKS, "rows", dict(HOOKS.rows))


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
    assert even["config"]["amg"]["hooks"] == ["even_batches"]
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


@pytest.fixture
def sampler(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOL.parent))
    spec = importlib.util.spec_from_file_location("ablate_recipe", TOOL)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "ablate_recipe", module)
    spec.loader.exec_module(module)
    return module.EvenBatches


def test_even_batches_take_every_identity_equally_often(sampler):
    identities = [0] * 3 + [1] * 9 + [2] * 4 + [3] * 20 + [4] * 4
    torch.manual_seed(0)
    made = sampler(identities, per_batch=2, images=4, batches=50)
    drawn = iter(made)
    seen = Counter()
    for _ in range(50):
        batch = list(islice(drawn, 8))
        counts = Counter(identities[place] for place in batch)
        assert sorted(counts.values()) == [4, 4]
        assert all(len({place for place in batch if identities[place] == one}) == 4 for one in counts if one)
        seen.update(counts)
    assert not list(drawn)
    assert len(made) == 400
    assert set(seen.values()) == {80}
