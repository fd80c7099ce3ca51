"""What an installation outside the checkout contains."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The files of a non-editable installation, made without network and without touching the checkout."""
    pytest.importorskip("setuptools")
    if not (CHECKOUT / "setup.py").is_file():
        pytest.skip("the tests do not run from a checkout")
    source, library = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("library")
    for name in ("setup.py", "pyproject.toml"):
        shutil.copy(CHECKOUT / name, source)
    for name in ("amg_plugin", "configs"):
        shutil.copytree(CHECKOUT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "setup.py", "--quiet", "build_py", "--build-lib", str(library)]
    built = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return library


def _files(folder, pattern):
    return {path.relative_to(folder).as_posix() for path in folder.rglob(pattern)}


def test_every_module_is_installed(installed):
    assert _files(installed / "amg_plugin", "*.py") == _files(CHECKOUT / "amg_plugin", "*.py")


def test_templates_are_installed_inside_the_package(installed):
    shipped = _files(CHECKOUT / "amg_plugin", "*.html")
    assert shipped
    assert _files(installed / "amg_plugin", "*.html") == shipped


@pytest.mark.parametrize("pattern", ["*.yaml", "splits/*.json"])
def test_every_configuration_and_split_is_installed_inside_the_package(installed, pattern):
    shipped = _files(CHECKOUT / "configs", pattern)
    assert shipped
    assert _files(installed / "amg_plugin" / "configs", pattern) == shipped


def _run(code, library, folder):
    env = {**os.environ, "PYTHONPATH": str(library), "PYTHONDONTWRITEBYTECODE": "1", "PYTHONWARNINGS": "ignore"}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=env, capture_output=True, text=True, check=False
    )


def test_configurations_are_found_outside_the_checkout(installed, tmp_path):
    code = (
        "import amg_plugin.config as c; print(c.configs_root()); print(*c.list_configs());"
        "c.load_config(c.list_configs()[0])"
    )
    run = _run(code, installed, tmp_path)
    assert run.returncode == 0, run.stderr
    root, names = run.stdout.splitlines()[-2:]
    assert Path(root) == installed / "amg_plugin" / "configs"
    assert "market1501/vit_base" in names.split()


def test_missing_configurations_name_the_folder_that_was_expected(installed, tmp_path):
    library = tmp_path / "library"
    shutil.copytree(installed, library, ignore=lambda folder, names: {"configs"} & set(names))
    run = _run("import amg_plugin.config as c; c.list_configs()", library, tmp_path)
    assert run.returncode == 1
    expected = library / "amg_plugin" / "configs"
    assert run.stderr.endswith(f"The shipped configurations are missing: expected the folder {expected}.\n")
