"""The tutorial that is a notebook, executed from the first cell to the last."""

import pytest
from pages import CHECKOUT

nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed (extra [docs])")
nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed (extra [docs])")
pytest.importorskip("ipykernel", reason="ipykernel is not installed (extra [docs])")


def test_the_notebook_runs(tmp_path):
    book = nbformat.read(CHECKOUT / "docs" / "tutorials" / "library.ipynb", as_version=4)
    nbclient.NotebookClient(book, timeout=600, kernel_name="python3").execute(cwd=tmp_path)
    assert (tmp_path / "mine.pth").is_file()
    shown = [kind for cell in book.cells for output in cell.get("outputs", []) for kind in output.get("data", {})]
    assert "image/png" in shown
