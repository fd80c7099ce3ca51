"""``tools/results.py``: figures of several runs in one table."""

import copy
import json
from pathlib import Path

import pytest

from amg_plugin.utils.tables import per_cent

TOOL = Path(__file__).resolve().parents[2] / "tools" / "results.py"
pytestmark = pytest.mark.skipif(not TOOL.is_file(), reason="the tests do not run from a checkout")


@pytest.fixture
def results(trained, pruned, tmp_path):
    """Files of two seeds: ``dense1``, ``dense2``, ``pruned1``, ``pruned2``; the second seed scores 10 points less."""
    for name, run in (("dense", trained.result), ("pruned", pruned.result)):
        for seed in (1, 2):
            changed = copy.deepcopy(run)
            changed["seed"] = seed
            for section in ("dense", "pruned", "finetuned"):
                if section in changed:
                    changed[section].update(rank1=0.9 - 0.1 * seed, mAP=(0.7 if name == "dense" else 0.6) - 0.1 * seed)
            (tmp_path / f"{name}{seed}.json").write_text(json.dumps(changed))
    return tmp_path


@pytest.fixture
def tool(results, run_script):
    def run(*words):
        return run_script(TOOL, "seeds", *words, "--title", "T", "--output", results / "table", cwd=results)

    return run


ROWS = ["dense=dense1.json", "dense=dense2.json", "cut=pruned1.json#finetuned", "cut=pruned2.json#finetuned"]


def test_rows_are_means_over_seeds_and_differences_are_paired(tool, results):
    outcome = tool(*ROWS, "--reference", "dense")
    assert outcome.returncode == 0, outcome.stderr
    text = (results / "table.md").read_text(encoding="utf-8")
    (dense,) = (line for line in text.splitlines() if line.startswith("| dense |"))
    (cut,) = (line for line in text.splitlines() if line.startswith("| cut |"))
    assert dense.startswith("| dense | 75.0 ± 7.1 | 55.0 ± 7.1 |")
    assert cut.startswith("| cut | 75.0 ± 7.1 | 45.0 ± 7.1 |")
    assert cut.endswith("| +0.0 ± 0.0 | -10.0 ± 0.0 |")
    assert "seeds 1, 2." in text
    stored = json.loads((results / "table.json").read_text(encoding="utf-8"))
    assert stored["cut"]["2"]["section"] == "finetuned"
    assert str(results) not in json.dumps(stored)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["dense"], "must be ROW=RESULT"),
        (["dense=missing.json"], "cannot be read"),
        (["dense=dense1.json#finetuned"], "has no section 'finetuned', only dense"),
        (["dense=dense1.json", "dense=dense1.json"], "two results of seed 1"),
        (ROWS[:3], "has other seeds than"),
        ([*ROWS, "--reference", "nothing"], "is not a row; rows are dense, cut"),
    ],
)
def test_what_does_not_fit_is_refused(tool, words, said):
    outcome = tool(*words)
    assert outcome.returncode == 2
    assert outcome.stderr.startswith("results: error: ")
    assert said in outcome.stderr


def test_intervals_come_from_what_the_queries_of_finished_runs_gave(trained, pruned, run_script, tmp_path):
    words = [f"dense={trained.last.parent}", f"cut={pruned.last.parent}#finetuned", "--target", "synthetic_reid"]
    outcome = run_script(TOOL, "intervals", *words, "--output", tmp_path / "intervals.json")
    assert outcome.returncode == 0, outcome.stderr
    models = json.loads((tmp_path / "intervals.json").read_text(encoding="utf-8"))["models"]
    for name, section in (("dense", trained.result["dense"]), ("cut", pruned.result["finetuned"])):
        for score in ("mAP", "rank1"):
            low, high = models[name][f"{score}_interval"]
            assert models[name][score] == pytest.approx(section[score], abs=1e-6)
            assert low <= models[name][score] <= high
    assert models["dense"]["mAP_difference"] == 0


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("dense", "Every model is given as NAME=RUN"),
        ("dense=nowhere", "The run in 'nowhere' has no queries of 'market1501' in its details.json."),
        ("dense=nowhere#pruned", "has no queries of 'market1501' in its section 'pruned'"),
    ],
)
def test_intervals_of_what_has_no_queries_are_refused(run_script, tmp_path, row, said):
    outcome = run_script(TOOL, "intervals", row, "--output", tmp_path / "intervals.json")
    assert outcome.returncode == 2
    assert said in outcome.stderr


@pytest.mark.parametrize(
    ("fractions", "sign", "text"), [([0.5], "", "50.0"), ([0.5], "+", "+50.0"), ([0.4, 0.6], "", "50.0 ± 14.1")]
)
def test_one_figure_has_no_spread(fractions, sign, text):
    assert per_cent(fractions, sign) == text
