"""The documents as a site: built with warnings as errors, and looked at in Chromium."""

import functools
import http.server
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from browser import needs_browser, opened

pytest.importorskip("mkdocs", reason="mkdocs is not installed (extra [docs])")

CHECKOUT = Path(__file__).resolve().parents[2]
#: A page of each kind.
PAGES = ("index", "readme", "visualize", "configuration", "help", "api/amg_plugin.pruning", "results/index")
#: Types into the search of a page and shows what is found; the picture keeps the browser waiting until then.
SEARCH = """<p id="found"></p><iframe src="/index.html"></iframe><img src="/wait"><script>
const frame = document.querySelector("iframe")
frame.onload = () => {
  const page = frame.contentDocument, words = page.querySelector("input[name=query]")
  words.focus()
  words.value = "entropy"
  words.dispatchEvent(new Event("input", {bubbles: true}))
  words.dispatchEvent(new KeyboardEvent("keyup", {bubbles: true}))
  const timer = setInterval(() => {
    const said = page.querySelector(".md-search-result").textContent
    if (!said.includes("key dimension")) return // results come in one by one
    clearInterval(timer)
    found.textContent = said
    fetch("/found")
  }, 100)
}
</script>"""


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves the site, and keeps what was asked for in vain."""

    def do_GET(self):
        if self.path == "/wait":
            self.server.found.wait(timeout=60)
        elif self.path == "/found":
            self.server.found.set()
        if self.path in ("/wait", "/found", "/search.html"):
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(SEARCH.encode() if self.path == "/search.html" else b"")
        else:
            super().do_GET()

    def log_message(self, *_):
        pass

    def send_error(self, code, *words):
        if self.path != "/favicon.ico":
            self.server.missing.append(self.path)
        super().send_error(code, *words)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder]
    quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(words, cwd=CHECKOUT, capture_output=True, text=True, env=quiet)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def server(site):
    handler = functools.partial(Handler, directory=site)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        running.missing, running.found = [], threading.Event()
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


def address(server, name):
    return f"http://127.0.0.1:{server.server_port}/{name}.html"


def test_pages_fetch_nothing_from_elsewhere(site):
    fetching = re.compile(
        r"<(?:script|img|iframe|source)[^>]*\ssrc=[\"']?https?:|<link[^>]*rel=[\"']?(?:stylesheet|icon|preconnect)[^>]*https?:"
    )
    assert [page.name for page in site.rglob("*.html") if fetching.search(page.read_text(encoding="utf-8"))] == []


def test_pictures_have_captions(site):
    pages = [page.read_text(encoding="utf-8") for page in site.rglob("*.html")]
    pictures = [
        re.findall(r"<img[^>]*>", re.sub(r"<figure>.*?</figcaption>", "", page, flags=re.DOTALL)) for page in pages
    ]
    assert not any(pictures)
    assert any("<figcaption>" in page for page in pages)


def test_public_names_have_their_signatures(site):
    page = (site / "api" / "amg_plugin.html").read_text(encoding="utf-8")
    assert {"load_model", "save_checkpoint", "FeatureExtractor"} <= set(
        re.findall(r'id="amg_plugin[\w.]*\.(\w+)"', page)
    )


@needs_browser
@pytest.mark.parametrize("name, scheme", [("index", 0), *((name, 1) for name in PAGES)])
def test_pages_open_without_errors(server, name, scheme):
    page = opened(
        address(server, name), "--virtual-time-budget=3000", f"--blink-settings=preferredColorScheme={scheme}"
    )
    assert page.console == []
    assert server.missing == []
    assert f'data-md-color-scheme="{("slate", "default")[scheme]}"' in page.document


@needs_browser
def test_the_search_finds_pages(server):
    page = opened(address(server, "search"))
    found = re.search(r'<p id="found">(.*?)</p>', page.document, re.DOTALL)[1]
    assert "Heads: entropy in the key dimension" in found
