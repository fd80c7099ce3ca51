"""A run that fails inside the engine goes on from its last state; hooks keep what is theirs."""

from dataclasses import replace

import pytest
import torch

from amg_plugin.engine import BestModelHook, Hook
from amg_plugin.engine.state import restore
from amg_plugin.engine.state_files import StateKeeper, newest_state
from amg_plugin.errors import AMGError, InputError, RunError


class RunningMean(Hook):
    """Counts steps and averages a term of the loss; fails at a step if told to."""

    def __init__(self, fails_at=0):
        self.fails_at = fails_at

    def before_run(self, engine):
        self.mean, self.count = torch.zeros(()), 0

    def after_step(self, engine, summary):
        self.count += 1
        self.mean += (summary["loss"] - self.mean) / self.count
        if self.count == self.fails_at:
            raise RunError("it was told to")

    def state(self):
        return {"mean": self.mean, "count": self.count}

    def restore(self, engine, state):
        super().restore(engine, state)
        self.mean, self.count = state["mean"].clone(), state["count"]


class Unsayable(Hook):
    def state(self):
        return {"engine": object()}


def keeper(folder, state=None):
    return StateKeeper(folder, {}, state)


def test_a_hook_goes_on_with_its_own_state(make_engine, run, tmp_path):
    whole = RunningMean()
    expected = run(make_engine([whole], epochs=3), 3).model.state_dict()
    engine = make_engine([RunningMean(fails_at=8)], epochs=3)
    engine.keeper = keeper(tmp_path)
    with pytest.raises(RunError, match="told to"):
        run(engine, 3)
    state = newest_state(tmp_path)
    assert (state.position.epoch, state.position.phase) == (1, "epoch")
    resumed = RunningMean()
    engine = make_engine([resumed], epochs=3, model=state.checkpoint().build())
    engine.keeper = keeper(tmp_path, state)
    weights = run(engine, 3).model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in weights.items())
    assert (resumed.mean, resumed.count) == (whole.mean, whole.count)


def test_what_is_no_plain_data_is_refused_by_name(make_engine, run, tmp_path):
    engine = make_engine([Unsayable()])
    engine.keeper = keeper(tmp_path)
    with pytest.raises(
        RunError, match=r"The state of the hook Unsayable cannot be saved: it holds something of type object"
    ):
        run(engine, 1)


def test_other_hooks_are_refused(make_engine, run, tmp_path):
    engine = make_engine([RunningMean()])
    engine.keeper = keeper(tmp_path)
    run(engine, 1)
    engine = make_engine([BestModelHook(tmp_path)])
    engine.keeper = keeper(tmp_path, newest_state(tmp_path))
    with pytest.raises(InputError, match=r"the hooks BestModelHook, but its state those of RunningMean"):
        run(engine, 1)


@pytest.mark.parametrize("part", ["noted", "numbers", "optimisation", "network"])
def test_a_state_with_foreign_entries_is_refused(make_engine, run, tmp_path, part):
    engine = make_engine()
    engine.keeper = keeper(tmp_path)
    run(engine, 1)
    state = newest_state(tmp_path)
    for value in ("x", None, 5):
        foreign = replace(state, **{part: dict.fromkeys(getattr(state, part), value)})
        with pytest.raises(AMGError, match="state"):
            foreign.checkpoint()
            restore(make_engine(), foreign)


def test_a_state_that_was_damaged_while_it_was_written_is_thrown_away(make_engine, run, tmp_path, monkeypatch, caplog):
    save, written = torch.save, []

    def broken(content, path):
        save(content, path)
        written.append(path)
        if len(written) == 2:
            path.write_bytes(path.read_bytes()[:-50])

    monkeypatch.setattr(torch, "save", broken)
    engine = make_engine(epochs=1)
    engine.keeper = keeper(tmp_path)
    run(engine, 1)
    assert "state.pth' was not read back as it was written. The state before it, if there is one, stays." in caplog.text
    assert newest_state(tmp_path).position.phase == "before_run"


def test_nothing_is_left_of_a_run_that_has_ended(make_engine, run, tmp_path):
    engine = make_engine()
    engine.keeper = keeper(tmp_path)
    run(engine, 1)
    (tmp_path / ".state.pth.abcdefgh.pth").write_bytes(b"half of one")
    engine.keeper.clear()
    engine.keeper.remove()
    assert [path.name for path in tmp_path.iterdir()] == ["log"]
