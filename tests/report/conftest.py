import re
from types import SimpleNamespace

import pytest

from amg_plugin.report.page import render
from amg_plugin.report.reading import read_runs


def taken_apart(text):
    """The text of a page, and its words without tags."""
    words = re.sub(r"<style>.*?</style>|<[^>]+>", " ", text, flags=re.DOTALL)
    return SimpleNamespace(html=text, words=" ".join(words.split()))


@pytest.fixture
def page():
    """Writes the page of some runs."""
    return lambda *folders, **options: taken_apart(render(read_runs(folders, **options)))


@pytest.fixture(scope="session")
def own_page(pruned):
    """The page that pruning wrote."""
    return taken_apart((pruned.folder / "report.html").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def copied(pruned, trained, tmp_path_factory):
    """Folders with the texts of the finished runs, to change: two that were pruned."""
    made = []
    for name in ("one", "two"):
        folder = tmp_path_factory.mktemp("copies") / name
        folder.mkdir()
        for file in ("result.json", "details.json"):
            (folder / file).write_text((pruned.folder / file).read_text(encoding="utf-8"), encoding="utf-8")
        made.append(folder)
    return made
