"""``--import`` and ``amg.imports``: what the user names is loaded, what a file from outside names never is."""

import json
import sys

import pytest
import torch

import amg_plugin
from amg_plugin.checkpoint import read_checkpoint
from amg_plugin.config import from_plain_dict, load_config
from amg_plugin.config.schema import KEYS
from amg_plugin.errors import ConfigError, InputError
from amg_plugin.registries import TABLES, imports


@pytest.fixture(autouse=True)
def nothing_stays(monkeypatch):
    monkeypatch.setattr(imports, "LOADED", {})
    monkeypatch.setattr(sys, "path", list(sys.path))
    for table in TABLES:
        monkeypatch.setattr(table, "rows", dict(table.rows))
    known = set(KEYS)
    yield
    for key in set(KEYS) - known:
        del KEYS[key]
    for name in [name for name in sys.modules if name.startswith("user_")]:
        del sys.modules[name]


@pytest.fixture
def module(tmp_path):
    """Writes a module of the user and gives its path."""

    def write(name, text):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


GREY = """
from amg_plugin.registries import register_transform


@register_transform("user_grey")
def grey(image):
    \"\"\"Takes the colours away.\"\"\"
    return image.convert("L").convert("RGB")
"""
KEY = "from amg_plugin.config import register_key\nregister_key('amg.user_key', 1, 'a number')\n"


def test_help_lists_what_an_imported_file_registers(module, amg_reid):
    outcome = amg_reid("train", "--import", module("user_grey.py", GREY), "--help")
    assert outcome.status == 0
    assert "transform user_grey: Takes the colours away." in outcome.out


def test_a_file_that_fails_ends_the_command_with_one_sentence(module, refused):
    sentence = refused("inspect", "--import", module("user_fails.py", "1 / 0"), "any.pth")
    assert "user_fails.py' from --import cannot be imported: ZeroDivisionError: division by zero." in sentence


def test_a_configuration_file_names_imports_relative_to_itself(module):
    module("user_key.py", KEY)
    file = module("mine.yaml", "amg: {imports: [user_key.py], user_key: 3}")
    cfg = load_config(file, ["amg.user_key", "4"])
    assert cfg.amg.user_key == 4
    assert cfg.amg.imports == ["user_key.py"]


def test_an_import_of_a_configuration_file_that_is_missing_is_named_with_the_file(module):
    file = module("mine.yaml", "amg: {imports: [user_nowhere.py]}")
    with pytest.raises(InputError, match=r"'user_nowhere\.py' from .*mine\.yaml does not exist"):
        load_config(file)


def test_pairs_on_the_command_line_refer_to_the_option():
    with pytest.raises(ConfigError, match=r"'amg\.imports' counts in a configuration file.*use --import"):
        load_config(None, ["amg.imports", "[user_grey.py]"])


@pytest.mark.parametrize("planted", [["user_planted.py"], "user_planted.py", {"a": 1}, [3]])
def test_a_stored_configuration_loads_nothing(planted):
    assert from_plain_dict({"amg": {"imports": planted}}).amg.imports == []
    assert load_config(None, base={"amg": {"imports": planted}}).amg.imports == []


PLACE = """
import torch
from amg_plugin.registries import register_neuron_scorer


@register_neuron_scorer("user_place")
def place(model, calibration, blocks):
    return [torch.arange(model.backbone.blocks[block].mlp.fc2.in_features) for block in blocks]
"""


def test_an_imported_scorer_chooses_the_neurons(trained, module, amg_reid, tmp_path):
    words = ["--weights", trained.last, "data.save_dir", tmp_path / "out", "amg.neuron_scorer", "user_place"]
    schedule = ["amg.schedule", "[{target: neurons, rate: 0.25}]"]
    outcome = amg_reid("prune", "--import", module("user_place.py", PLACE), *words, *schedule)
    assert outcome.status == 0, outcome.err
    plan = read_checkpoint(tmp_path / "out" / "last.pth").plan
    assert [kept[-1] + 1 - kept[0] for kept in plan.neurons] == plan.neurons_per_block != list(plan.num_neurons)
    assert [kept[-1] + 1 for kept in plan.neurons] == list(plan.num_neurons)


@pytest.fixture
def planted(trained, module, tmp_path):
    """A checkpoint that names a module in ``amg.imports``, and the file that this module would write."""
    mark = tmp_path / "executed"
    evil = module("user_planted.py", f"open({str(mark)!r}, 'w')")
    content = torch.load(trained.last, weights_only=True)
    content["config"]["amg"]["imports"] = [str(evil)]
    path = tmp_path / "planted.pth"
    torch.save(content, path)
    return path, mark


SCHEDULE = "[{target: heads, rate: 0.25}]"


@pytest.mark.parametrize(
    "words",
    [
        ["test", "--weights", "FILE"],
        ["train", "--weights", "FILE", "train.max_epoch", "1"],
        ["prune", "--weights", "FILE", "amg.schedule", SCHEDULE],
        ["inspect", "FILE"],
    ],
    ids=lambda words: words[0],
)
def test_imports_planted_in_a_checkpoint_are_shown_and_not_executed(planted, words, amg_reid, tmp_path, caplog):
    path, mark = planted
    save = ["data.save_dir", tmp_path / "out"] if "--weights" in words else []
    outcome = amg_reid(*(path if word == "FILE" else word for word in words), *save)
    assert outcome.status == 0, outcome.err
    assert "user_planted.py, which is not loaded" in caplog.text
    assert not mark.exists() and "user_planted" not in sys.modules
    for result in (tmp_path / "out").glob("**/result.json"):
        assert json.loads(result.read_text(encoding="utf-8"))["config"]["amg"]["imports"] == []


def test_imports_planted_in_an_exported_file_are_shown_and_not_executed(planted, tiny_root, amg_reid, tmp_path, caplog):
    path, mark = planted
    file = tmp_path / "planted.pt"
    outcome = amg_reid("export", path, "--format", "torchscript", "--output", file)
    assert outcome.status == 0, outcome.err
    caplog.clear()
    assert amg_reid("test", "--trusted", "--weights", file, "--root", tiny_root).status == 0
    amg_plugin.FeatureExtractor(file, trusted=True)
    assert caplog.text.count("user_planted.py, which is not loaded") >= 2
    assert not mark.exists() and "user_planted" not in sys.modules
