"""A report in a browser: nothing in the console, everything drawn."""

import re
import shutil
import subprocess

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_OPTIONS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
            "--disable-background-networking", "--disable-component-update", "--enable-logging=stderr")  # fmt: skip


@pytest.fixture(scope="module")
def opened(pruned, tmp_path_factory):
    """What the browser made of the report of a run, and what it said."""
    if CHROMIUM is None:
        pytest.skip("reports are looked at in Chromium, which is not installed (Debian's package chromium)")
    profile = tmp_path_factory.mktemp("profile")
    page = pruned.folder / "report.html"
    words = [CHROMIUM, *_OPTIONS, f"--user-data-dir={profile}", "--dump-dom", page.as_uri()]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done


def test_the_console_stays_empty(opened):
    assert [line for line in opened.stderr.splitlines() if "CONSOLE" in line] == []


def test_tables_and_figures_are_there(opened):
    assert len(re.findall(r"<table", opened.stdout)) >= 3
    assert len(re.findall(r'<svg[^>]*class="chart"', opened.stdout)) >= 5
    assert "</html>" in opened.stdout
