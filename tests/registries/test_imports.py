"""Modules and files that users name are loaded; nothing else is."""

import pickle
import subprocess
import sys

import pytest

from amg_plugin.errors import InputError
from amg_plugin.registries import imports
from amg_plugin.registries.imports import load_import


@pytest.fixture(autouse=True)
def nothing_stays(monkeypatch):
    monkeypatch.setattr(imports, "LOADED", {})
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    for name in [name for name in sys.modules if name.startswith("user_")]:
        del sys.modules[name]


@pytest.fixture
def module(tmp_path):
    """Writes a module into a folder of its own and gives its path."""

    def write(text, name="user_things.py"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_a_file_is_imported_under_its_own_name(module):
    load_import(str(module("class Mine: pass")))
    assert pickle.dumps(sys.modules["user_things"].Mine())


def test_a_file_is_run_once(module):
    path = module("import os\nos.environ['RUNS'] = os.environ.get('RUNS', '') + 'x'")
    for _ in range(2):
        load_import(str(path))
    assert sys.modules["user_things"].os.environ.pop("RUNS") == "x"


def test_a_file_may_import_its_neighbours(module):
    module("VALUE = 3", "user_neighbour.py")
    load_import(str(module("from user_neighbour import VALUE")))
    assert sys.modules["user_things"].VALUE == 3


def test_a_file_is_looked_for_in_the_folder_given(module):
    path = module("VALUE = 1")
    load_import("user_things.py", folder=path.parent)
    assert {"user_things.py": str(path)} == imports.LOADED


def test_a_module_is_imported(monkeypatch, module):
    monkeypatch.syspath_prepend(str(module("VALUE = 2").parent))
    load_import("user_things")
    assert sys.modules["user_things"].VALUE == 2


def test_another_process_finds_the_file_by_the_path_it_inherits(module):
    load_import(str(module("class Mine: pass")))
    code = f"import sys; sys.path[:] = {sys.path!r}; import pickle; print(pickle.loads({{}}))"
    sent = pickle.dumps(sys.modules["user_things"].Mine)
    done = subprocess.run(
        [sys.executable, "-c", code.format(sent)], capture_output=True, text=True, check=True, cwd="/"
    )
    assert "user_things.Mine" in done.stdout


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("user_fails.py", "1 / 0", r"'.*user_fails\.py' from --import cannot be imported: ZeroDivisionError: division"),
        ("user_quits.py", "raise SystemExit(3)", r"user_quits\.py' .*SystemExit: 3"),
        ("user_syntax.py", "def", r"user_syntax\.py' .*SyntaxError"),
        ("user_lacks.py", "import nowhere_at_all", "ModuleNotFoundError: No module named 'nowhere_at_all'"),
        ("json.py", "", "Python finds the module 'json' in .*rename the file"),
        ("two words.py", "", "named as a module"),
        ("data.txt/x", None, "does not exist: expected the file"),
    ],
)
def test_what_cannot_be_imported_is_named_with_the_reason(module, tmp_path, name, text, said):
    path = tmp_path / name if text is None else module(text, name)
    with pytest.raises(InputError, match=said):
        load_import(str(path))


def test_a_module_that_is_missing_is_named():
    with pytest.raises(InputError, match=r"'user_nowhere' from --import .*with its suffix.*No module named"):
        load_import("user_nowhere")
