"""Two processes that share a run, started as torchrun starts them; ``tests/two_processes.py`` says what they do."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import two_processes
from two_processes import PRUNINGS, TRIPLET

from amg_plugin.checkpoint import read_checkpoint
from amg_plugin.cli.main import COMMANDS, SEVERAL_PROCESSES
from amg_plugin.registries import HOOKS, register_hook

BOTH = (0, 1)


@pytest.fixture(scope="module")
def shared(tiny_root, tmp_path_factory):
    """What two processes left: ``said(name)`` gives what both told, ``err`` what they wrote to stderr."""
    folder = tmp_path_factory.mktemp("two")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    tests = Path(two_processes.__file__)
    path = os.pathsep.join([str(tests.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    common = {"WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    started = []
    for rank in BOTH:
        here = {key: str(value) for key, value in {**common, "RANK": rank, "LOCAL_RANK": rank}.items()}
        environment = {**os.environ, "PYTHONPATH": path, **here}
        words = [sys.executable, str(tests), str(tiny_root), str(folder)]
        piped = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(words, env=environment, **piped))
    # The first one first: when the other dies, that is what it waits for.
    output = [process.communicate(timeout=600) for process in started]

    def said(name):
        return [json.loads((folder / f"{name}_{rank}.json").read_text(encoding="utf-8")) for rank in BOTH]

    return SimpleNamespace(folder=folder, said=said, out=[out for out, _ in output], err=[err for _, err in output])


@pytest.fixture(scope="module")
def steps_hook():
    """The hook that notes the steps, in this process as well."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HOOKS, "rows", dict(HOOKS.rows))
        register_hook("steps", two_processes.Steps, summary="notes the steps")
        yield


@pytest.fixture(scope="module")
def alone(shared, steps_hook, tiny_root, tmp_path_factory):
    """The same runs in this process; each begins with the shared run's dense model."""
    folder = tmp_path_factory.mktemp("one")
    last = shared.folder / "trained" / "run" / "last.pth"
    assert two_processes.run("trained", tiny_root, folder) == 0
    for name in (*PRUNINGS, "tested"):
        assert two_processes.run(name, tiny_root, folder, last) == 0
    return folder


def result(folder, name):
    """``result.json`` of a run."""
    return json.loads((folder / name / "run" / "result.json").read_text(encoding="utf-8"))


def steps(folder, name, rank=0):
    """Loss of every step, as a process saw it."""
    steps = json.loads((folder / name / f"steps_{rank}.json").read_text(encoding="utf-8"))
    return [sum(value * (TRIPLET if term == "loss_t" else 1) for term, value in step.items()) for step in steps]


def test_every_run_of_two_processes_ends_well(shared):
    assert shared.said("status_of") == [dict.fromkeys(("trained", "resumed", *PRUNINGS, "tested"), 0)] * 2, shared.err


def test_the_loss_of_two_processes_is_that_of_one_over_twenty_steps(shared, alone):
    expected = steps(alone, "trained")
    assert len(expected) == 21
    assert steps(shared.folder, "trained") == pytest.approx(expected, abs=1e-5)
    assert sum(expected[-3:]) < sum(expected[:3])


def test_shared_steps_are_those_of_one_process_but_for_rounding(shared):
    expected = two_processes.double_losses()
    for losses in shared.said("double_losses"):
        assert losses == pytest.approx(expected, rel=1e-11)


def test_both_processes_see_the_same_losses(shared):
    for name in ("trained", *PRUNINGS):
        assert steps(shared.folder, name, 0) == steps(shared.folder, name, 1)


@pytest.mark.parametrize("name", PRUNINGS)
def test_two_processes_prune_what_one_prunes(shared, alone, name):
    ours, expected = (read_checkpoint(folder / name / "run" / "last.pth") for folder in (shared.folder, alone))
    assert not ours.plan.is_dense
    assert ours.plan == expected.plan
    assert steps(shared.folder, name) == pytest.approx(steps(alone, name), abs=1e-4)
    for key, value in ours.weights.items():
        assert value.double().numpy() == pytest.approx(expected.weights[key].double().numpy(), abs=1e-3), key


def test_the_balance_that_is_found_is_that_of_one_process(shared, alone):
    ours, expected = (result(folder, "balanced")["balance"] for folder in (shared.folder, alone))
    assert ours["found"] == expected["found"]
    distances = [[one["distance"] for one in tried["tried"]] for tried in (ours, expected)]
    assert distances[0] == pytest.approx(distances[1], rel=1e-4)


def test_scores_are_those_of_one_process(shared, alone):
    ours, expected = (result(folder, "tested")["dense"]["targets"] for folder in (shared.folder, alone))
    assert ours == expected


def test_a_result_says_how_many_processes_made_it(shared, alone):
    assert result(shared.folder, "trained")["processes"] == 2
    assert "processes" not in result(alone, "trained")


def test_only_the_first_process_prints_and_keeps_a_log(shared):
    assert "=> Start training" in shared.out[0]
    assert shared.out[1] == ""
    assert len(list((shared.folder / "trained" / "run").glob("train.log-*"))) == 1
    assert len(list((shared.folder / "trained" / "run").glob("events.out.tfevents.*"))) == 1


def test_the_processes_share_every_batch_without_overlap(shared):
    first, second = shared.said("order")
    assert first["length"] == second["length"] == [4]
    assert [*first["places"][:2], *second["places"][:2], *first["places"][2:], *second["places"][2:]] == [*range(8)]
    assert len({*first["seeds"], *second["seeds"]}) == 8


def test_norms_see_the_global_batch(shared):
    assert shared.said("norms") == [{"output": True, "gradient": True, "weight": True}] * 2


def test_networks_draw_other_numbers_in_every_process(shared):
    first, second = shared.said("random_numbers")
    assert first[0] == first[1]  # the run's own numbers, which go on
    assert len({first[0], *second}) == 3
    assert second[0] == second[2]


def test_processes_that_disagree_stop(shared):
    for rank, said in enumerate(shared.said("refusals")):
        assert said[0] == (
            f"RunError: The plan of process {rank} is not that of process {1 - rank}, but all processes of a run must "
            "have the same; they may see other files, or run other versions."
        )


def test_what_the_first_process_cannot_do_ends_both(shared):
    first, second = shared.said("refusals")
    assert (first[1], second[1]) == ("InputError: The disk is a square.", "ToldError: The disk is a square.")


def test_a_process_that_dies_ends_the_run_with_a_message_and_the_last_good_model(shared):
    folder = shared.folder
    assert json.loads((folder / "status_of_the_survivor_0.json").read_text(encoding="utf-8")) == 1
    assert "amg-reid: error: Process 0 of 2 has lost another process of the run" in shared.err[0]
    epochs = [entry["epoch"] for entry in read_checkpoint(folder / "dying" / "run" / "last.pth").history]
    assert max(epochs) == 0


PREVIEWS = [["prune", "--preview"], ["train", "--preview"]]


def losses_of_epochs(folder):
    """Mean loss terms of every epoch of a finished training, one after the other."""
    history = json.loads((folder / "result.json").read_text(encoding="utf-8"))["history"]
    return [value for entry in history if entry["event"] == "epoch" for value in entry["loss"].values()]


def test_a_signal_to_one_process_stops_all_after_the_same_step_and_they_go_on(shared):
    log = "\n".join(path.read_text(encoding="utf-8") for path in (shared.folder / "stopped" / "run").glob("*.log-*"))
    assert "The run goes on after batch 2 of epoch 2." in log
    expected = losses_of_epochs(shared.folder / "trained" / "run")
    assert losses_of_epochs(shared.folder / "stopped" / "run") == pytest.approx(expected, abs=1e-4)


def test_one_process_goes_on_where_one_of_two_has_died(shared, tiny_root):
    assert two_processes.resume("dying", tiny_root, shared.folder) == 0
    expected = losses_of_epochs(shared.folder / "trained" / "run")
    assert losses_of_epochs(shared.folder / "dying" / "run") == pytest.approx(expected, abs=1e-4)


ALONE = [[name] for name in COMMANDS if name not in SEVERAL_PROCESSES]


@pytest.mark.parametrize("words", [*ALONE, *PREVIEWS, ["script.py"], []])
def test_what_runs_in_one_process_is_refused_under_torchrun(refused, monkeypatch, words):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert "torchrun started 2 processes" in refused(*words)


def test_one_process_of_torchrun_is_a_run_as_any(amg_reid, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert amg_reid("configs").status == 0


@pytest.mark.parametrize("rank", ["", "two", "2"])
def test_an_environment_that_makes_no_sense_is_refused(refused, monkeypatch, rank):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", rank)
    assert "take WORLD_SIZE out of the environment" in refused("train")
