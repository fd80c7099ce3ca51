import re
from types import SimpleNamespace

import pytest

from amg_plugin.report.page import render
from amg_plugin.report.reading import read_runs


@pytest.fixture
def page():
    """Writes the page of some runs; gives its text, and its words without tags."""

    def write(*folders, **options):
        text = render(read_runs(folders, **options))
        words = re.sub(r"<style>.*?</style>|<[^>]+>", " ", text, flags=re.DOTALL)
        return SimpleNamespace(html=text, words=" ".join(words.split()))

    return write


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
