"""The recipes of docs/extending.md, run as they are printed: files written, shell lines run, from top to bottom."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from amg_plugin import compat

CHECKOUT = Path(__file__).resolve().parents[1]
PAGE = (CHECKOUT / "docs" / "extending.md").read_text(encoding="utf-8")
SECTIONS = {text.partition("\n")[0]: text for text in re.split(r"^## ", PAGE, flags=re.M)}
#: Section -> what a run of it leaves behind or says.
RECIPES = {
    "A data set": "log/dense/result.json",
    "A head scorer": "log/pruned/result.json",
    "An export format": "log/pruned.gz.json",
    "A configuration key": "0.1",
    "A hook": "mAP {'my_data': ",
    "An own training loop": "own.pth",
}

pytestmark = pytest.mark.skipif(not compat.is_installed(), reason="torchreid is not installed")


def blocks(section):
    """Fenced blocks of a section: name of the file in the line before, if any, language and text."""
    return re.findall(r"(?:^`(\S+)`\n\n)?^```(\w+)\n(.*?)^```$", section, flags=re.M | re.DOTALL)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """Runs the page in a folder of its own; gives the folder and, per section, what its shell lines said."""
    folder, programs = tmp_path_factory.mktemp("page"), tmp_path_factory.mktemp("bin")
    for name, call in (("python", f'"{sys.executable}"'), ("amg-reid", f'"{sys.executable}" -m amg_plugin')):
        (programs / name).write_text(f'#!/bin/sh\nexec {call} "$@"\n', encoding="utf-8")
        (programs / name).chmod(0o755)
    paths = {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(CHECKOUT)}
    said = {}
    for title, section in SECTIONS.items():
        for name, language, text in blocks(section):
            if language != "sh":
                (folder / name).write_text(text, encoding="utf-8")
                continue
            done = subprocess.run(
                ["sh", "-e", "-c", text], cwd=folder, env={**os.environ, **paths}, capture_output=True, text=True
            )
            said[title] = (done.returncode, done.stdout + done.stderr)
    return folder, said


@pytest.mark.parametrize("title", RECIPES)
def test_the_recipe_runs_as_printed(outcomes, title):
    folder, said = outcomes
    status, text = said[title]
    assert status == 0, text
    assert RECIPES[title] in text or (folder / RECIPES[title]).exists(), text


def test_the_page_has_no_other_recipe():
    assert {title for title, section in SECTIONS.items() if any(block[1] == "sh" for block in blocks(section))} == set(
        RECIPES
    )


def test_an_own_training_loop_is_short():
    ((_, _, text),) = [block for block in blocks(SECTIONS["An own training loop"]) if block[1] == "python"]
    assert len(text.splitlines()) <= 40
    assert "torchreid" not in text
