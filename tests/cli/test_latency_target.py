"""A latency target through the commands; how long networks take is made up here."""

import json

import pytest
from tiny_run import settings

from amg_plugin.bench import latency
from amg_plugin.bench.latency import Timing
from amg_plugin.checkpoint import read_checkpoint
from amg_plugin.cli.main import main
from amg_plugin.config.load import load_config
from amg_plugin.engine import AMGPruningHook
from amg_plugin.errors import RunError
from amg_plugin.runs import latency_target

FORM = "[{target: heads}, {target: tokens}]"
FINE = ["amg.override.patch_size", "4", "amg.stride", "2", "train.max_epoch", "1"]  # 105 patches
TARGET, PAID = 0.2, 0.8


@pytest.fixture(scope="module")
def dense(tiny_root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fine") / "dense"
    assert main(["train", *settings(tiny_root, folder), *FINE]) == 0
    return folder / "last.pth"


@pytest.fixture
def paying(monkeypatch):
    """Makes time saved a share of the MACs saved, and notes how it was asked for."""
    calls = []

    def install(share=PAID):
        def timings(spec, plans, settings, progress):
            calls.append(settings)
            saved = [1 - measured_macs(spec, plan) for plan in plans]
            found = [Timing(one, share * one, (share * one - 0.01, share * one + 0.01)) for one in saved]
            return found, {"device": "made up"}

        monkeypatch.setattr(latency, "timings", timings)
        return calls

    return install


def measured_macs(spec, plan):
    from amg_plugin.models import complexity
    from amg_plugin.models.build import build_network
    from amg_plugin.pruning import apply_plan

    model = build_network(spec).eval()
    whole = complexity.count(model, *spec.image_size)["macs"]
    return complexity.count(apply_plan(model, plan), *spec.image_size)["macs"] / whole


def words_for(dense, folder, *more):
    words = ["--weights", dense, "data.save_dir", folder, "amg.schedule", FORM]
    return [str(word) for word in (*words, "amg.target_latency_saving", TARGET, *more)]


@pytest.fixture
def run(paying, dense, tmp_path, capsys):
    calls = paying()
    assert main(["prune", *words_for(dense, tmp_path, "amg.latency.threads", 2, "amg.latency.batch", 4)]) == 0
    return json.loads((tmp_path / "result.json").read_text(encoding="utf-8")), calls, capsys.readouterr().out, tmp_path


def test_the_target_in_macs_is_found_by_measuring_and_met(run):
    result, calls, out, _ = run
    assert result["latency"]["target_macs_saving"] == pytest.approx(TARGET / PAID, abs=1e-3)
    assert abs(1 - result["pruned"]["macs"] / result["dense"]["macs"] - TARGET / PAID) <= 0.006
    assert "takes amg.target_macs_saving 0.25" in out
    assert {(call.threads, call.batches, call.forms) for call in calls} == {((2,), (4,), ("fast",))}


def test_the_result_says_what_was_expected_and_what_was_reached(run):
    found = run[0]["latency"]
    assert found["target"] == TARGET
    assert len(found["expected"]) == len(latency.LADDER)
    assert found["reached"]["time_saved"] == pytest.approx(TARGET, abs=0.01)
    assert (found["form"], found["threads"], found["batch"]) == ("fast", 2, 4)


def test_the_checkpoint_holds_the_target_in_macs_in_its_place(run):
    result, _, _, folder = run
    amg = read_checkpoint(folder / "last.pth").config["amg"]
    assert amg["target_latency_saving"] == 0
    assert amg["target_macs_saving"] == result["latency"]["target_macs_saving"]


def test_the_preview_prints_the_target_in_macs_and_writes_nothing(paying, dense, amg_reid, tmp_path):
    paying()
    outcome = amg_reid("prune", "--preview", *words_for(dense, tmp_path / "log"))
    assert outcome.status == 0, outcome.err
    assert "takes amg.target_macs_saving 0.25" in outcome.out
    assert "(chosen)" in outcome.out
    assert not (tmp_path / "log").exists()


def test_a_target_that_pruning_does_not_reach_is_refused(paying, dense, refused, tmp_path):
    paying(share=0.1)
    assert "amg.target_latency_saving 0.2 cannot be met" in refused("prune", *words_for(dense, tmp_path))


@pytest.mark.parametrize("key", ["data.root", "amg.distill.teacher"])
def test_what_is_missing_is_named_before_anything_is_measured(paying, dense, refused, tmp_path, key):
    calls = paying()
    assert "nowhere" in refused("prune", *words_for(dense, tmp_path / "log", key, tmp_path / "nowhere"))
    assert not calls


def test_the_result_is_written_before_the_last_measuring(paying, dense, amg_reid, tmp_path, monkeypatch):
    paying()

    def failing(*given):
        raise RunError("it broke")

    monkeypatch.setattr(latency_target, "compare", failing)
    outcome = amg_reid("prune", *words_for(dense, tmp_path))
    assert outcome.status == 1
    assert "pruned" in json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))


def test_a_later_target_takes_the_place_of_the_one_in_the_checkpoint(run, paying, amg_reid, tmp_path):
    paying()
    pruned = run[3] / "last.pth"
    words = ["--weights", pruned, "amg.target_latency_saving", 0.35, "amg.distill.enabled", "False"]
    outcome = amg_reid("prune", "--preview", *words)
    assert outcome.status == 0, outcome.err
    assert "takes amg.target_macs_saving 0.4375" in outcome.out


def test_rates_take_the_place_of_the_target_in_the_checkpoint(run):
    stored = read_checkpoint(run[3] / "last.pth").config
    stages = [{"target": "tokens", "rate": 0.5}]
    cfg = load_config(None, ["amg.schedule", stages], base=without_size(stored))
    assert (cfg.amg.target_macs_saving, cfg.amg.schedule[0]["rate"]) == (0, 0.5)


def test_a_reducer_leaves_the_stages_of_the_checkpoint_behind(run):
    stored = read_checkpoint(run[3] / "last.pth").config
    words = ["amg.reducer", "tome", "amg.target_macs_saving", 0.2]
    cfg = load_config(None, words, use_schedule=False, base=without_size(stored))
    assert cfg.amg.schedule == []


def without_size(stored):
    return {**stored, "amg": {key: value for key, value in stored["amg"].items() if key != "image_size"}}


def test_a_missed_target_is_a_warning(paying, dense, amg_reid, tmp_path, monkeypatch):
    paying()
    measured = latency.timings
    plans_before = []

    def slower_afterwards(spec, plans, settings, progress):
        found, environment = measured(spec, plans, settings, progress)
        plans_before.append(plans)
        if len(plans_before) == 1:
            return found, environment
        return [Timing(one.macs_saved, 0.05, (0.04, 0.06)) for one in found], environment

    monkeypatch.setattr(latency, "timings", slower_afterwards)
    outcome = amg_reid("prune", *words_for(dense, tmp_path))
    assert outcome.status == 0, outcome.err
    assert "amg.target_latency_saving 0.2 was missed" in outcome.out + outcome.err


def test_an_impossible_device_is_refused(dense, refused, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert "cuda is impossible" in refused("prune", *words_for(dense, tmp_path, "amg.latency.device", "cuda"))


def test_what_was_measured_counts_for_a_run_that_goes_on(paying, dense, amg_reid, tmp_path, monkeypatch):
    def fails(*_):
        raise RunError("cut off")

    paying()
    with monkeypatch.context() as patch:
        patch.setattr(AMGPruningHook, "carry_out", fails)
        assert amg_reid("prune", *words_for(dense, tmp_path)).status == 1
    paying(share=0.5)  # another day, another measurement
    outcome = amg_reid("prune", *words_for(dense, tmp_path), "--resume")
    assert outcome.status == 0, outcome.err
    result = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert result["latency"]["target_macs_saving"] == pytest.approx(TARGET / PAID, abs=1e-3)
    assert result["config"]["amg"]["target_macs_saving"] == result["latency"]["target_macs_saving"]
