"""Fixtures that several test modules use."""

import pytest
from torchreid_layouts import Layout, make_layout


@pytest.fixture(scope="session", params=["pypi", "git"])
def layout(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """Each layout of torchreid in turn."""
    made = make_layout(request.param, tmp_path_factory.mktemp(request.param))
    if made is None:
        pytest.skip(f"the installed torchreid does not give the {request.param} layout")
    return made


@pytest.fixture(scope="session")
def any_layout(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """torchreid as it is installed, for what does not depend on the layout."""
    folder = tmp_path_factory.mktemp("installed")
    made = make_layout("pypi", folder / "pypi") or make_layout("git", folder / "git")
    if made is None:
        pytest.skip("torchreid is not installed")
    return made
