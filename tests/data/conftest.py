from pathlib import Path

import pytest
from drawn import SEED, TINY

from amg_plugin.data.synthetic.reid import write_synthetic_reid


@pytest.fixture(scope="session")
def drawn_root(tmp_path_factory) -> Path:
    """A data root with a tiny drawn data set; tests must not change it."""
    root = tmp_path_factory.mktemp("data-root")
    write_synthetic_reid(root, TINY, SEED)
    return root


@pytest.fixture
def own_root(tmp_path) -> Path:
    """The same data set in a folder that the test may damage."""
    write_synthetic_reid(tmp_path, TINY, SEED)
    return tmp_path
