"""Fixtures that several test modules use."""

import os
from pathlib import Path

# Before torch is imported, for started processes too: DataParallel around a CPU model fails where it sees a GPU.
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import runpy
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator

import pytest
from torchreid_layouts import Layout, make_layout

import amg_plugin

#: Fixtures that several folders use.
pytest_plugins = ["finished_runs", "tiny_engine"]


def pytest_report_header() -> str:
    """Say what is tested: the installed package, unless the checkout was put in front of it."""
    return f"amg_plugin: {amg_plugin.__version__} from {Path(amg_plugin.__file__).parent}"


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Run the whole suite in several processes, and chosen files in this one: a further process starts in seconds."""
    cores = os.cpu_count() or 1
    whole = config.args_source == pytest.Config.ArgsSource.TESTPATHS
    return min(cores, 4) if whole and cores > 1 else 0


@pytest.fixture(scope="session", autouse=True)
def own_cache_folder() -> Iterator[None]:
    """Keep tests out of the user's cache folder, in started processes too."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", folder)
        yield


@pytest.fixture
def run_script(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Does in this process what ``python FILE WORDS...`` does, since importing torch anew takes seconds."""

    def run(file: Path, *words: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        status = 0
        argv = [str(file), *map(str, words)]
        capsys.readouterr()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", argv)
            if cwd is not None:
                patch.chdir(cwd)
            try:
                runpy.run_path(str(file), run_name="__main__")
            except SystemExit as exit_:
                status = exit_.code or 0
        return subprocess.CompletedProcess(argv, status, *capsys.readouterr())

    return run


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
