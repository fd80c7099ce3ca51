"""A run that is killed anywhere and resumed ends as if nothing had happened, bit for bit."""

import json
import os
import random
import shutil
import signal
import sys

import pytest
import torch
from killing import KILLED, NO_DISK, Runs
from tiny_run import settings

from amg_plugin.checkpoint import read_checkpoint
from amg_plugin.data.layout import GALLERY_DIR

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes are looked for in /proc")

ENGINE = "amg_plugin.engine.hooked:HookedEngine"
#: Where a run is killed: function, number of the call, after it, end of the last argument.
STEP = (f"{ENGINE}.forward_backward", 2)
BETWEEN_CUT_AND_OPTIMISER = (f"{ENGINE}.rebuild_optimizer", 1)
SCORING = ("amg_plugin.pruning.cut:plan_cut", 1, True)
WRITTEN_NOT_READ_BACK = ("amg_plugin.models.saving:load_data", 1)
BETWEEN_TWO_NAMES = ("pathlib:Path.replace", 1, False, "/state.pth")
EVALUATING = ("amg_plugin.engine.hooked:_RunEvaluator.extract", 1)
EVALUATED = (f"{ENGINE}.save_model", 1)
RESULT_WRITTEN = ("amg_plugin.runs.result:write_result", 1, True)

RANDOM = {
    "data.transforms": "['random_flip', 'pad_crop', 'random_erase']",
    "amg.drop_path": "0.2",
    "train.optim": "adamw",
    "amg.lr_per_step": "True",
    "test.eval_freq": "1",
    "amg.report": "False",
}


@pytest.fixture(scope="module")
def runs():
    with Runs() as runs:
        yield runs


def pairs(values):
    return [word for pair in values.items() for word in pair]


def command(name, root, folder, values):
    words = settings(root, folder) if name == "train" else ["data.save_dir", str(folder)]
    return [name, *words, *pairs(values)]


def files(folder):
    """What a run leaves, apart from times and its own folder."""
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    del result["seconds"], result["arguments"]  # with the name of the folder
    result["config"]["data"].pop("save_dir")
    result["details"] = json.loads((folder / "details.json").read_text(encoding="utf-8"))
    checkpoints = [read_checkpoint(folder / name) for name in ("last.pth", "best.pth")]
    return result, checkpoints


def assert_same(folder, other):
    (ours, models), (theirs, others) = files(folder), files(other)
    assert ours == theirs
    for one, two in zip(models, others, strict=True):
        assert (one.plan, one.history, one.spec) == (two.plan, two.history, two.spec)
        assert one.weights.keys() == two.weights.keys()
        assert all(torch.equal(value, two.weights[name]) for name, value in one.weights.items())
    left = {path.name for path in folder.iterdir()} - {path.name for path in other.iterdir()}
    assert all(".log-" in name or name.startswith("events.") for name in left)


def assert_chain(runs, words, folder, places):
    """Kill a run at every place, each time going on with what is left, and let it end."""
    for at, *rest in places:
        options = dict(zip(("call", "after", "last"), rest, strict=False))
        killed = runs.run(*words, "--resume", "data.save_dir", folder, at=at, **options)
        assert killed.status == KILLED, (at, killed.output)
    ended = runs.run(*words, "--resume", "data.save_dir", folder)
    assert ended.status == 0, ended.output
    return ended


TRAININGS = {
    "0 workers": (
        {"data.workers": "0", "amg.unfreeze.every": "1"},
        (STEP, WRITTEN_NOT_READ_BACK, (STEP[0], 5), BETWEEN_TWO_NAMES, EVALUATING, EVALUATED, RESULT_WRITTEN),
    ),
    "2 workers that are kept": ({"data.workers": "2", "amg.cache_images": "auto"}, ((STEP[0], 5), EVALUATED)),
}


@pytest.mark.parametrize("case", TRAININGS)
def test_a_training_that_is_killed_everywhere_ends_as_an_undisturbed_one(runs, tiny_root, tmp_path, case):
    values, places = TRAININGS[case]
    words = command("train", tiny_root, tmp_path / "whole", {**RANDOM, "train.max_epoch": "3", **values})
    whole = runs.run(*words)
    assert whole.status == 0, whole.output
    assert_chain(runs, words, tmp_path / "killed", places)
    assert_same(tmp_path / "killed", tmp_path / "whole")


CUTS = {
    "heads, neurons and tokens, repaired": (
        {
            "amg.schedule": "[{target: heads, rate: 0.25, iterations: 2, epochs: 1}, {target: neurons, rate: 0.25}, "
            "{target: tokens, rate: 0.25}]",
            "amg.final_epochs": "1",
            "amg.repair": "mean",
            "amg.distill.features": "0.5",
        },
        (SCORING, BETWEEN_CUT_AND_OPTIMISER, STEP, WRITTEN_NOT_READ_BACK, EVALUATING, BETWEEN_TWO_NAMES, EVALUATED),
    ),
    "a budget whose balance is found": (
        {
            "amg.target_macs_saving": "0.15",
            "amg.balance": "auto",
            "amg.schedule": "[{target: heads, epochs: 1}, {target: neurons}]",
            "amg.final_epochs": "1",
        },
        (BETWEEN_CUT_AND_OPTIMISER, STEP, EVALUATED),
    ),
    "merging, cuts at the end, 2 workers": (
        {
            "amg.token_variant": "merge",
            "amg.schedule": "[{target: heads, rate: 0.25, epochs: 1}, {target: tokens, rate: 0.25}]",
            "amg.final_epochs": "0",
            "data.workers": "2",
        },
        (STEP, SCORING, BETWEEN_CUT_AND_OPTIMISER),
    ),
    "no epochs": (
        {"amg.schedule": "[{target: heads, rate: 0.25}, {target: tokens, rate: 0.25}]"},
        (BETWEEN_TWO_NAMES, BETWEEN_CUT_AND_OPTIMISER, EVALUATING, RESULT_WRITTEN),
    ),
}


@pytest.mark.parametrize("case", CUTS)
def test_a_pruning_that_is_killed_everywhere_ends_as_an_undisturbed_one(runs, trained, tmp_path, case):
    values, places = CUTS[case]
    words = command("prune", None, tmp_path / "whole", {**RANDOM, "amg.calibration.batches": "2", **values})
    whole = runs.run(*words, "--weights", trained.last)
    assert whole.status == 0, whole.output
    words += ["--weights", trained.last]
    assert_chain(runs, words, tmp_path / "killed", places)
    assert_same(tmp_path / "killed", tmp_path / "whole")


@pytest.fixture(scope="module")
def whole(runs, tiny_root, tmp_path_factory):
    """The words of a training with 2 workers, and the folder of an undisturbed one."""
    folder = tmp_path_factory.mktemp("whole")
    words = command("train", tiny_root, folder, {**RANDOM, "train.max_epoch": "2", "data.workers": "2"})
    ended = runs.run(*words)
    assert ended.status == 0, ended.output
    return words, folder


@pytest.fixture(scope="module")
def killed(runs, whole, tmp_path_factory):
    """The folder of the same training, killed in its second epoch."""
    folder = tmp_path_factory.mktemp("killed")
    assert runs.run(*whole[0], "data.save_dir", folder, at=STEP[0], call=5).status == KILLED
    return folder


@pytest.fixture
def interrupted(killed, tmp_path):
    """A copy of that folder."""
    return shutil.copytree(killed, tmp_path / "interrupted")


def test_signals_end_a_run_behind_its_step_and_it_goes_on_from_there(runs, whole, tmp_path):
    words = [*whole[0], "data.save_dir", tmp_path / "run", "--resume"]
    teardown = "torch.utils.data.dataloader:_MultiProcessingDataLoaderIter._shutdown_workers"
    for at, call, number, said in (
        (STEP[0], 2, signal.SIGTERM, "state after batch 2 of epoch 1"),
        (teardown, 1, signal.SIGINT, "state after epoch 1"),  # by __del__, where exceptions are lost
        (EVALUATING[0], 1, signal.SIGTERM, "The run goes on after epoch 1."),
    ):
        ended = runs.run(*words, at=at, call=call, signals=(number,))
        assert (ended.status, ended.left_processes()) == (128 + number, [])
        assert said in ended.output
        assert "--resume goes on with it" in ended.output
        assert "Traceback" not in ended.output
    assert runs.run(*words).status == 0
    assert_same(tmp_path / "run", whole[1])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_a_run_at_once_without_unfinished_files(runs, whole, tmp_path, number):
    words = [*whole[0], "data.save_dir", tmp_path]
    ended = runs.run(*words, at=WRITTEN_NOT_READ_BACK[0], signals=(number, number))
    assert ended.status == 128 + number
    assert not [path.name for path in tmp_path.iterdir() if "state" in path.name]


def test_no_worker_is_left_when_a_run_is_killed(runs, whole, tmp_path):
    ended = runs.run(*whole[0], "data.save_dir", tmp_path, at=STEP[0], call=2)
    assert (ended.status, ended.left_processes()) == (KILLED, [])


def test_a_disk_that_fills_up_ends_a_run_and_leaves_the_last_good_state(runs, whole, tmp_path):
    ended = runs.run(*whole[0], "data.save_dir", tmp_path, at=STEP[0], signals=(), disk=(str(tmp_path), 64 << 20))
    if ended.status == NO_DISK:
        pytest.skip("no small file system can be made here")
    lines = ended.output.splitlines()
    (error,) = (line for line in lines if line.startswith("amg-reid: error: "))
    assert ended.status == 1
    assert "The disk is full" in error
    assert "'state.pth'" in error
    assert str(tmp_path) in error
    names, position = json.loads(lines[-1])
    assert position == "before the first epoch"
    assert [name for name in names if "state" in name] == ["state.pth"]


def test_a_damaged_state_falls_back_to_the_one_before(runs, whole, interrupted):
    path = interrupted / "state.pth"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    ended = runs.run(*whole[0], "data.save_dir", interrupted, "--resume")
    assert ended.status == 0
    assert "state.pth' is damaged" in ended.output
    assert "The state before it, before the first epoch, takes its place" in ended.output
    assert_same(interrupted, whole[1])


def test_a_folder_with_an_interrupted_run_is_refused(refused, whole, interrupted):
    sentence = refused(*whole[0], "data.save_dir", interrupted)
    assert "--resume goes on with it, --overwrite starts anew" in sentence
    assert "give one of them" in refused(*whole[0], "data.save_dir", interrupted, "--resume", "--overwrite")


def test_other_settings_are_listed_and_accepted_only_if_the_network_stays(refused, amg_reid, whole, interrupted):
    words = [*whole[0], "data.save_dir", interrupted, "data.workers", "0", "train.lr", "0.002"]
    sentence = refused(*words, "--resume")
    assert "train.lr was 0.001 and is 0.002" in sentence
    assert "--resume-anyway goes on like that" in sentence
    assert "data.workers" not in sentence
    sentence = refused(*words, "amg.override.depth", "3", "--resume-anyway")
    assert "--resume-anyway does not help, as the network depends on amg.override.depth" in sentence
    outcome = amg_reid(*words, "--resume-anyway")
    assert outcome.status == 0, outcome.err
    assert "The run goes on, although train.lr was 0.001 and is 0.002" in outcome.out


def test_other_images_are_refused(refused, whole, interrupted, tiny_root, tmp_path):
    root = shutil.copytree(tiny_root, tmp_path / "data")
    next((root / "synthetic_reid" / GALLERY_DIR).glob("*.jpg")).unlink()
    words = [*whole[0], "data.save_dir", interrupted, "data.root", root, "--resume"]
    assert "the list of images (SHA-256) was" in refused(*words)


def test_another_version_is_refused(refused, whole, interrupted):
    path = interrupted / "state.pth"
    content = torch.load(path, weights_only=True)
    content["facts"]["versions"]["timm"] = "0.1"
    torch.save(content, path)
    assert "the version of timm was '0.1' and is" in refused(*whole[0], "data.save_dir", interrupted, "--resume")


def test_a_state_is_enough_to_go_on_in_another_folder(amg_reid, whole, interrupted, tmp_path):
    words = ["model.resume", interrupted / "state.pth", "data.save_dir", tmp_path / "other"]
    outcome = amg_reid("train", *words)
    assert outcome.status == 0, outcome.err
    assert_same(tmp_path / "other", whole[1])


def test_what_is_no_state_is_refused(refused, whole, tmp_path):
    words = [*whole[0], "data.save_dir", tmp_path, "model.resume"]
    assert "is not the state of a run of amg-reid" in refused(*words, whole[1] / "last.pth")


@pytest.mark.parametrize("name", ["command", "asked", "kept", "versions", "threads"])
def test_a_state_without_its_facts_is_refused(refused, whole, interrupted, name):
    path = interrupted / "state.pth"
    content = torch.load(path, weights_only=True)
    del content["facts"][name]
    torch.save(content, path)
    assert f"'{name}' in its facts" in refused(*whole[0], "data.save_dir", interrupted, "model.resume", path)


def test_a_run_that_has_ended_has_nothing_to_go_on_with(amg_reid, refused, whole):
    outcome = amg_reid(*whole[0], "--resume")
    assert (outcome.status, outcome.err) == (0, "")
    assert "has ended; there is nothing to go on with" in outcome.out
    for flag in ("--resume", "--resume-anyway"):
        assert "has ended, and was another one: train.lr was" in refused(*whole[0], "train.lr", "0.002", flag)


def test_overwriting_forgets_an_interrupted_run(amg_reid, whole, interrupted):
    outcome = amg_reid(*whole[0], "data.save_dir", interrupted, "--overwrite")
    assert outcome.status == 0, outcome.err
    assert_same(interrupted, whole[1])


#: How often runs are killed in a row at places drawn at random, in a longer run; see docs/reliability.md.
KILLS = int(os.environ.get("AMG_KILLS", "0"))
ANYWHERE = (
    f"{ENGINE}.forward_backward",
    f"{ENGINE}.begin_steps",
    f"{ENGINE}.test",
    f"{ENGINE}.rebuild_optimizer",
    f"{ENGINE}.save_model",
    "amg_plugin.engine.hooked:_RunEvaluator.extract",
    "amg_plugin.engine.state_files:save_data",
    "amg_plugin.models.saving:load_data",
    "amg_plugin.pruning.cut:plan_cut",
    "amg_plugin.utils.files:_flush",
    "pathlib:Path.replace",
)


@pytest.mark.skipif(not KILLS, reason="a longer run: AMG_KILLS=20")
def test_runs_that_are_killed_in_a_row_end_as_an_undisturbed_one(runs, trained, tmp_path):
    values, _ = CUTS["heads, neurons and tokens, repaired"]
    words = [*command("prune", None, tmp_path / "whole", {**RANDOM, **values}), "--weights", trained.last]
    assert runs.run(*words).status == 0
    drawn, kills, ended = random.Random(KILLS), 0, 0
    while kills < KILLS:
        place = {"at": drawn.choice(ANYWHERE), "call": drawn.randint(1, 6), "after": drawn.random() < 0.5}
        run = runs.run(*words, "--resume", "data.save_dir", tmp_path / str(ended), **place)
        assert run.status in (0, KILLED), run.output
        kills += run.status == KILLED
        if run.status == 0:  # the next one begins anew
            assert_same(tmp_path / str(ended), tmp_path / "whole")
            ended += 1
    assert runs.run(*words, "--resume", "data.save_dir", tmp_path / str(ended)).status == 0
    assert_same(tmp_path / str(ended), tmp_path / "whole")
