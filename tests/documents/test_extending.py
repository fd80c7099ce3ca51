"""The recipes of docs/extending.md, run as they are printed: files written, shell lines run, from top to bottom."""

import re

import pytest
from pages import CHECKOUT, blocks, programs, run_shell

from amg_plugin import compat

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


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """Runs the page in a folder of its own; gives the folder and, per section, what its shell lines said."""
    folder = tmp_path_factory.mktemp("page")
    environment = programs(tmp_path_factory.mktemp("bin"))
    said = {}
    for title, section in SECTIONS.items():
        for name, language, text in blocks(section):
            if language != "sh":
                (folder / name).write_text(text, encoding="utf-8")
            else:
                said[title] = run_shell(text, folder, environment)
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
