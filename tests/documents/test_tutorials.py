"""The tutorials, run as they are printed: in one folder, since later ones go on where the first one ends."""

import re

import pytest
from pages import CHECKOUT, blocks, programs, run_shell

TUTORIALS = CHECKOUT / "docs" / "tutorials"
#: The order of the index, and what each leaves behind.
PAGES = {
    "prune": ("log/pruned/best.pth", "pictures/last_scores.png"),
    "device": ("gallery.npz",),
    "budget": ("log/saving50/result.json", "budgets.html"),
    "occlusion": ("log/occluded/result.json",),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tutorials")


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    return programs(tmp_path_factory.mktemp("bin"))


def shape(text):
    """The lines of an output without what differs from run to run: numbers, and the widths of columns."""
    lines = (re.sub(r"[+-]?\d[\d.:,]*", "#", line) for line in text.splitlines())
    return {re.sub(r"(# )+", "# ", re.sub(r"[ -]+", " ", f"{line} ")).strip() for line in lines} - {"", "..."}


@pytest.mark.parametrize("page", PAGES)
def test_the_tutorial_runs_and_says_what_it_shows(page, folder, environment):
    said = ""
    for name, language, text in blocks((TUTORIALS / f"{page}.md").read_text(encoding="utf-8")):
        if language == "sh":
            status, said = run_shell(text, folder, environment)
            assert status == 0, said
        elif language == "text":
            assert shape(text) - shape(said) == set(), said
        else:
            (folder / name).write_text(text, encoding="utf-8")
    assert [name for name in PAGES[page] if not (folder / name).exists()] == []


def test_every_tutorial_is_run():
    assert {page.stem for page in TUTORIALS.glob("*.md")} == set(PAGES)
