"""A report in a browser: nothing in the console, everything drawn."""

import re

import pytest
from browser import needs_browser, opened

pytestmark = needs_browser


@pytest.fixture(scope="module")
def page(pruned):
    """What the browser made of the report of a run, and what it said."""
    return opened((pruned.folder / "report.html").as_uri())


def test_the_console_stays_empty(page):
    assert page.console == []


def test_tables_and_figures_are_there(page):
    assert len(re.findall(r"<table", page.document)) >= 3
    assert len(re.findall(r'<svg[^>]*class="chart"', page.document)) >= 5
    assert "</html>" in page.document
