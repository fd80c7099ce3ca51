"""``--preview``: what a run would do and how long it would take, with nothing written."""

import re

import pytest
from finished_runs import SCHEDULE
from tiny_run import settings

ROUND = re.compile(r"^(\d+) +(\S.*?) +([\d-]+) +(\d+) +(\d+) +(\d+) +(\d+) +([\d.]+) G(?: +(\S.*))?$")


def rounds(text):
    return [match.groups() for line in text.splitlines() if (match := ROUND.match(line))]


@pytest.fixture
def previewed(amg_reid, tmp_path):
    """Runs a preview; gives what it prints."""

    def run(command, *words):
        folder = tmp_path / "not" / "there"
        outcome = amg_reid(command, "--preview", *words, "data.save_dir", folder)
        assert outcome.status == 0, outcome.err
        assert not folder.parent.exists()
        return outcome.out

    return run


def test_the_rounds_of_pruning_are_those_of_the_run(previewed, trained, pruned):
    words = ["--weights", trained.last, "amg.schedule", SCHEDULE, "amg.final_epochs", 1, "amg.repair", "mean"]
    text = previewed("prune", *words)
    found = rounds(text)
    assert [row[1] for row in found] == ["heads 1/2", "heads 2/2", "tokens 1/1"]
    assert [row[2] for row in found] == ["1-1", "2-2", "3-3"]
    events = [event["event"] for event in pruned.result["history"]]
    assert sum(int(row[3]) for row in found) == events.count("test")
    for column, target in ((4, "heads"), (5, "tokens"), (6, "neurons")):
        assert int(found[-1][column]) == sum(pruned.result["finetuned"][f"{target}_per_block"])
    assert all(row[8] for row in found)
    assert re.search(
        r"About \S+ \S+ in all on cpu .* s a batch, .* to score and cut heads, .* to score and cut tokens", text
    )


def test_training_has_one_round(previewed, tiny_root, tmp_path):
    words = [*settings(tiny_root, tmp_path), "train.max_epoch", 7, "test.eval_freq", 2]
    ((number, cut, epochs, evaluations, *_, seconds),) = rounds(previewed("train", *words))
    assert (number, cut, epochs, evaluations) == ("1", "-", "1-7", "4")
    assert seconds


def test_without_data_everything_but_the_time_is_shown(previewed, trained, tmp_path):
    words = ["--weights", trained.last, "amg.schedule", SCHEDULE, "data.root", tmp_path / "nowhere"]
    text = previewed("prune", *words)
    assert [row[8] for row in rounds(text)] == [None] * 3
    assert re.search(r"The time is not estimated: .*nowhere", text)


def test_what_stands_in_the_way_of_the_run_ends_the_preview_with_2(amg_reid, trained, tmp_path):
    words = [
        "--weights",
        trained.last,
        "amg.schedule",
        "[{target: heads, rate: 0.9}]",
        "data.save_dir",
        tmp_path / "new",
    ]
    outcome = amg_reid("prune", "--preview", *words)
    assert outcome.status == 2
    assert "schedule    problem: amg.schedule asks for" in outcome.out
    assert "amg.schedule asks for" in outcome.err
