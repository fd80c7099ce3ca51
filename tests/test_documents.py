"""What README and docs/ promise: links, command lines and the Python example."""

import re
import runpy
import shlex
from pathlib import Path

import pytest

from amg_plugin import compat
from amg_plugin.cli import main as cli
from amg_plugin.config.load import find_config

CHECKOUT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted(path for path in (*CHECKOUT.glob("*.md"), *CHECKOUT.glob("docs/**/*.md")))
if not DOCUMENTS:
    pytest.skip("the tests do not run from a checkout", allow_module_level=True)


def blocks(path, language):
    found = re.findall(r"^```(\w*)\n(.*?)^```$", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [text for name, text in found if name == language]


def command_lines():
    for path in DOCUMENTS:
        for block in blocks(path, ""):
            for line in block.replace("\\\n", " ").splitlines():
                for command in line.split("&&"):
                    program, _, rest = command.strip().partition(" ")
                    if program.removeprefix(".venv/bin/") == "amg-reid":
                        yield pytest.param(shlex.split(rest), id=f"{path.name}: {rest[:40]}")


def links():
    for path in DOCUMENTS:
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8")):
            if "://" not in target:
                yield pytest.param(path.parent / target, id=f"{path.name}: {target}")


@pytest.mark.parametrize("target", list(links()))
def test_links_within_the_repository_lead_somewhere(target):
    assert target.exists()


@pytest.mark.parametrize("words", list(command_lines()))
def test_command_lines_are_understood(words):
    args = cli.build_parser(words[0]).parse_args(words)
    if getattr(args, "config_file", None):
        find_config(args.config_file)


@pytest.mark.skipif(not compat.is_installed(), reason="torchreid is not installed")
def test_the_python_example_of_the_readme_prints_what_it_says(tmp_path, monkeypatch, capsys):
    (code,) = (block for block in blocks(CHECKOUT / "README.md", "python") if "apply_plan" in block)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    promised = re.findall(r"^print\(.*# (\d+)$", code, re.MULTILINE)
    assert promised
    assert capsys.readouterr().out.split() == promised
    assert names["features"].shape == (2, 192)


def test_the_picture_of_the_readme_is_what_its_script_draws():
    picture = runpy.run_path(str(CHECKOUT / "tools" / "draw_method.py"))["picture"]
    assert (CHECKOUT / "docs" / "figures" / "method.svg").read_text(encoding="utf-8") == picture()
