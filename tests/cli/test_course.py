"""The course of a run in its log and in TensorBoard."""

import re

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from amg_plugin.config.load import from_plain_dict
from amg_plugin.engine.timeline import hyperparameters
from amg_plugin.utils.tables import duration

LINE = re.compile(
    r"^epoch (\d+)/(\d+): loss [\d.]+(?:, loss_d [\d.e-]+)?, accuracy [\d.]+%, lr \S+, \S+ \S+; left: (.*) \((.*)\)$",
    re.MULTILINE,
)


@pytest.fixture(params=["trained", "pruned"])
def finished_run(request):
    return request.getfixturevalue(request.param)


def log_of(run):
    (log,) = run.folder.glob("*.log-*")
    return log.read_text(encoding="utf-8")


def curves_of(run):
    return EventAccumulator(str(run.folder)).Reload()


def test_the_log_has_a_line_per_epoch_that_counts_what_follows(finished_run):
    history = [event["event"] for event in finished_run.result["history"]]
    places = [place for place, event in enumerate(history) if event == "epoch"]
    lines = LINE.findall(log_of(finished_run))
    assert [int(epoch) for epoch, *_ in lines] == list(range(1, len(places) + 1))
    for place, (_, epochs, seconds, counted) in zip(places, lines, strict=True):
        assert int(epochs) == len(places)
        follows = history[place + 1 :]
        names = {"epoch": "epoch", "test": "evaluation", "cut": "cut"}
        wanted = [f"{n} {name}{'s' * (n != 1)}" for event, name in names.items() if (n := follows.count(event))]
        assert counted == ", ".join(wanted)
        assert re.search(r"\d", seconds)


def test_a_warning_is_given_once(finished_run):
    assert log_of(finished_run).count("are clamped to") == 1


def test_curves_show_the_structure_of_every_epoch(pruned):
    curves = curves_of(pruned)
    for target in ("heads", "tokens", "neurons"):
        values = [point.value for point in curves.Scalars(f"Structure/{target}")]
        assert len(values) == 3
        assert values == sorted(values, reverse=True)
        assert values[-1] == sum(pruned.result["finetuned"][f"{target}_per_block"])
    assert curves.Scalars("Structure/MACs")[-1].value == pruned.result["finetuned"]["macs"]


def test_tensorboard_knows_what_a_run_is_made_with(pruned):
    assert "_hparams_/session_start_info" in curves_of(pruned).PluginTagToContent("hparams")


def test_hyperparameters_are_what_differs_from_the_defaults(pruned):
    found = hyperparameters(from_plain_dict(pruned.result["config"]))
    assert found["train.lr"] == 0.001
    assert found["amg.final_epochs"] == 1
    assert "heads" in found["amg.schedule"]
    assert not {"data.root", "data.save_dir", "train.optim"} & set(found)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.414, "0.41 s"), (95, "95 s"), (150, "3 min"), (7199, "2 h 00 min"), (7201, "2 h 01 min")]
)
def test_durations_are_written_as_people_say_them(seconds, text):
    assert duration(seconds) == text
