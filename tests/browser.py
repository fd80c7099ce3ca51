"""Pages opened in headless Chromium, for tests of what people look at."""

import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass

import pytest

#: Names under which distributions install it.
PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--enable-logging=stderr"),
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",  # a page that asks for more shows it
)

needs_browser = pytest.mark.skipif(PROGRAM is None, reason="Chromium is not installed: nothing was looked at in it")


@dataclass(frozen=True)
class Page:
    """What the browser made of an address: the document after its scripts ran, and the console's lines."""

    document: str
    console: list[str]


def opened(address: str, *options: str) -> Page:
    """Open an address in a browser of its own, which has no profile and reaches nothing but this machine."""
    with tempfile.TemporaryDirectory() as profile:
        words = [PROGRAM, *OPTIONS, f"--user-data-dir={profile}", *options, "--dump-dom", address]
        done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=True)
    return Page(done.stdout, re.findall(r":CONSOLE[^\]]*\] (.*)", done.stderr))
