"""The command line itself: help, versions, flags."""

import json
import re

import pytest
from tiny_run import SPEC, settings

from amg_plugin.cli.main import COMMANDS
from amg_plugin.data.synthetic import reid as synthetic
from amg_plugin.version import __version__


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches_the_command(amg_reid, command):
    outcome = amg_reid(command, "--help")
    assert outcome.status == 0
    usage, _, text = outcome.out.partition("\n\n")
    assert f"amg-reid {command}" in usage
    description, example, _ = text.partition(f"example: amg-reid {command}")
    assert example
    assert len(description.split()) >= 8


def test_help_lists_every_command_with_what_it_does(amg_reid):
    outcome = amg_reid("--help")
    assert outcome.status == 0
    assert all(re.search(rf"^  {name} +[a-z]\w+ ", outcome.out, re.MULTILINE) for name in COMMANDS)


def test_the_version_is_told(amg_reid):
    assert amg_reid("--version").out == f"amg-reid {__version__}\n"


def test_without_words_the_help_is_printed(amg_reid):
    assert amg_reid().out == amg_reid("--help").out


@pytest.mark.parametrize("words", [("inspect",), ("inspect", "a", "b"), ("train", "--bogus"), ("--bogus", "train")])
def test_wrong_words_end_with_status_2_and_the_usage(amg_reid, words):
    outcome = amg_reid(*words)
    assert outcome.status == 2
    assert "usage: amg-reid" in outcome.err
    assert "Traceback" not in outcome.err


@pytest.mark.parametrize("order", ["flags first", "flags last", "names before words", "two dashes"])
def test_torchreids_flags_change_the_configuration(amg_reid, tiny_root, tmp_path, order):
    words = settings(tiny_root, tmp_path / "log")
    for key in ("data.root", "data.sources", "data.targets"):
        place = words.index(key)
        del words[place : place + 2]
    words += ["train.max_epoch", "1", "amg.override", "{depth: 1}"]
    flags = ["--root", tiny_root, "-s", "synthetic_reid", "--transforms", "random_flip", "bicubic"]
    targets = ["-t", "market1501", "synthetic_reid"]
    outcome = amg_reid("train", *{
        "flags first": [*targets, *flags, *words],
        "flags last": [*words, *flags, *targets],
        "names before words": [*flags, *targets, *words],
        "two dashes": [*flags, *targets, "--", *words],
    }[order])  # fmt: skip
    assert outcome.status == 0, outcome.err
    result = json.loads((tmp_path / "log" / "result.json").read_text(encoding="utf-8"))
    assert list(result["dense"]["targets"]) == ["market1501", "synthetic_reid"]
    assert result["config"]["data"]["transforms"] == ["random_flip", "bicubic"]
    assert result["config"]["data"]["root"] == str(tiny_root)
    assert len(result["dense"]["heads_per_block"]) == 1


def test_a_configuration_key_is_no_name(refused):
    assert "'train.lr'" in refused("train", "-t", "train.lr", "0.1")


def test_a_name_that_is_no_configuration_key_stays_a_name(refused, tiny_root):
    assert "train.lrr" in refused("check", "--root", tiny_root, "-t", "synthetic_reid", "train.lrr", "0.1")


def test_a_configuration_file_counts_instead_of_the_checkpoints(amg_reid, refused, trained, tmp_path):
    (tmp_path / "other.yaml").write_text("model: {name: vit_amg_tiny}\ndata: {height: 48}\n", encoding="utf-8")
    folder = ("data.save_dir", tmp_path / "log")
    assert "48x128" in refused("test", "--weights", trained.last, "--config-file", tmp_path / "other.yaml", *folder)


def test_the_demo_runs_everything(amg_reid, tmp_path, monkeypatch):
    draw = synthetic.write_synthetic_reid
    monkeypatch.setattr(synthetic, "write_synthetic_reid", lambda root, seed: draw(root, SPEC, seed))
    small = settings(tmp_path, tmp_path)
    places = [index for index, word in enumerate(small) if word.startswith("amg.override")]
    outcome = amg_reid(
        *("demo", "--root", tmp_path / "data", "--save-dir", tmp_path / "log", "--seed", "2"),
        *("data.height", "32", "data.width", "16", "train.batch_size", "8", "use_gpu", "False"),
        *(word for place in places for word in small[place : place + 2]),
        *("amg.schedule", "[{target: heads, rate: 0.25, epochs: 1}, {target: tokens, rate: 0.25}]"),
        *("amg.final_epochs", "1"),
    )
    assert outcome.status == 0, outcome.err
    result = json.loads((tmp_path / "log" / "pruned" / "result.json").read_text(encoding="utf-8"))
    assert result["seed"] == 2
    assert [sum(result[name]["heads_per_block"]) for name in ("dense", "pruned", "finetuned")] == [8, 6, 6]
    assert "finetuned" in outcome.out
    results, page = (str(tmp_path / "log" / "pruned" / name) for name in ("result.json", "report.html"))
    assert outcome.out.splitlines()[-2:] == [results, page]  # nothing between the figures and the page
    assert (tmp_path / "log" / "pruned" / "report.html").is_file()
    assert (tmp_path / "log" / "dense" / "best.pth").is_file()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["data.save_dir", "X"], "give it as --save-dir"),
        (["data.root", "X"], "give it as --root"),
        (["train.seed", "3"], "give it as --seed"),
        (["amg.reducer", "tome"], "amg.reducer"),
        (["amg.distill.teacher", "nowhere.pth"], "nowhere.pth"),
        (["amg.target_latency_saving", "0.3", "amg.schedule", "[{target: heads}, {target: tokens}]"], "amg-reid prune"),
    ],
)
def test_what_the_demo_cannot_finish_is_refused_before_anything_is_drawn(refused, tmp_path, words, said):
    folders = ["--root", tmp_path / "data", "--save-dir", tmp_path / "log"]
    assert said in refused("demo", *folders, *words)
    assert not (tmp_path / "data").exists()


def test_a_negative_seed_of_the_demo_is_refused(refused):
    assert "-1" in refused("demo", "--seed", "-1")
