"""How the launcher treats scripts, options and mistakes; the scripts here need no torchreid."""

import json
import sys

import pytest

from amg_plugin.cli.main import COMMANDS, main
from amg_plugin.config.active import active_amg_config, set_active_amg_config


@pytest.fixture(autouse=True)
def _defaults_afterwards():
    yield
    set_active_amg_config(None)


@pytest.fixture
def script(tmp_path, monkeypatch):
    """Write a script below the working folder; returns a function that takes its text."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scripts").mkdir()

    def write(text: str) -> str:
        (tmp_path / "scripts" / "main.py").write_text(text, encoding="utf-8")
        return "scripts/main.py"

    return write


def test_a_script_sees_what_it_would_see_without_the_launcher(script, tmp_path):
    name = script(
        "import json, sys\nimport beside\nfrom pathlib import Path\n"
        "Path('seen.json').write_text(json.dumps([__name__, sys.argv, sys.path[0], beside.VALUE]))\n"
    )
    (tmp_path / "scripts" / "beside.py").write_text("VALUE = 7\n", encoding="utf-8")
    assert main([name, "--amg-config", "x", "-h", "model.name", "vit_amg"]) == 0
    seen = json.loads((tmp_path / "seen.json").read_text(encoding="utf-8"))
    arguments = ["--amg-config", "x", "-h", "model.name", "vit_amg"]
    assert seen == ["__main__", [name, *arguments], str((tmp_path / "scripts").resolve()), 7]


def test_arguments_and_search_path_are_restored_even_after_an_error(script):
    argv, path = list(sys.argv), list(sys.path)
    with pytest.raises(ZeroDivisionError):
        main([script("import sys\nsys.path.append('left behind')\n1 / 0\n"), "word"])
    assert (sys.argv, sys.path) == (argv, path)


@pytest.mark.parametrize("form", [["--amg-config", "amg.yaml"], ["--amg-config=amg.yaml"]])
def test_the_amg_node_of_the_file_is_in_force_in_the_script(script, tmp_path, form):
    (tmp_path / "amg.yaml").write_text("amg:\n  arch: deit_tiny_patch16_224\n", encoding="utf-8")
    name = script(
        "from amg_plugin.config.active import active_amg_config\n"
        "assert active_amg_config().arch == 'deit_tiny_patch16_224'\n"
    )
    assert main([*form, name]) == 0
    assert active_amg_config().arch == "deit_tiny_patch16_224"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["scripts/absent.py"], "'scripts/absent.py' is neither a command nor a script"),
        (["prone"], "did you mean 'prune'?"),
        (["scripts"], "'scripts' is a folder"),
        (["--amg-config", "amg.yaml"], "--amg-config amg.yaml needs a script"),
        (["--amg-config", "absent.yaml", "scripts/main.py"], "absent.yaml"),
        (["--amg-config", "amg.yaml", "doctor"], "--amg-config is for scripts and for commands that read checkpoints"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_sentence_and_exit_status_2(script, capsys, words, expected):
    script("")
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("amg-reid: error: ")
    assert expected in error
    assert error.count("\n") == 1


def test_an_unknown_key_in_the_amg_file_is_named(script, tmp_path, capsys):
    (tmp_path / "amg.yaml").write_text("amg:\n  archh: x\n", encoding="utf-8")
    assert main(["--amg-config", "amg.yaml", script("")]) == 2
    assert "archh" in capsys.readouterr().err


@pytest.mark.parametrize(("kind", "status"), [("InputError", 2), ("RunError", 1)])
def test_the_plugins_errors_inside_the_script_give_their_message_and_status(script, capsys, kind, status):
    name = script(f"from amg_plugin.errors import {kind}\nraise {kind}('what is wrong')\n")
    assert main([name]) == status
    assert capsys.readouterr().err == "amg-reid: error: what is wrong\n"


def test_the_scripts_own_errors_pass_through(script):
    with pytest.raises(ValueError, match="my own"):
        main([script("raise ValueError('my own')\n")])


def test_the_scripts_exit_status_passes_through(script):
    with pytest.raises(SystemExit) as caught:
        main([script("raise SystemExit(7)\n")])
    assert caught.value.code == 7


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_teaches_with_an_example_and_lists_the_commands(capsys, option):
    with pytest.raises(SystemExit) as caught:
        main([option])
    assert not caught.value.code
    text = capsys.readouterr().out
    assert "--amg-config my_amg.yaml" in text
    assert all(command in text for command in COMMANDS)


def test_the_example_of_the_help_is_a_valid_amg_file(capsys, tmp_path):
    from amg_plugin.config.load import apply_amg_node

    main([])
    text = capsys.readouterr().out
    file = tmp_path / "my_amg.yaml"
    file.write_text(text[text.index("  amg:\n") :], encoding="utf-8")
    assert list(apply_amg_node(file).image_size) == [224, 112]


def test_a_command_is_a_command_even_where_a_file_has_its_name(script, tmp_path, capsys):
    script("")
    (tmp_path / "configs").write_text("raise AssertionError\n", encoding="utf-8")
    assert main(["configs"]) == 0
    assert "market1501/vit_small" in capsys.readouterr().out
