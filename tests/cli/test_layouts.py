"""The commands with torchreid's other layout; the remaining tests use the installed one."""

import json

import pytest
from tiny_run import settings


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["git"], indirect=True)
def test_training_and_pruning_work_in_the_git_layout(layout, tiny_root, tmp_path):
    def run(command, folder, *words):
        outcome = layout.run(
            "-m", "amg_plugin", command, *words, *settings(tiny_root, folder), *schedule[command], cwd=tmp_path
        )
        assert outcome.returncode == 0, outcome.stderr
        return json.loads((folder / "result.json").read_text(encoding="utf-8"))

    schedule = {
        "train": ("train.max_epoch", 1),
        "prune": ("amg.schedule", "[{target: heads, rate: 0.25, epochs: 1}, {target: tokens, rate: 0.25}]"),
    }
    run("train", tmp_path / "dense")
    result = run("prune", tmp_path / "pruned", "--weights", tmp_path / "dense" / "last.pth")
    assert sum(result["finetuned"]["heads_per_block"]) == 6
    assert sum(result["finetuned"]["tokens_per_block"]) == 12
