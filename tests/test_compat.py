"""Messages about a torchreid that is there but of no use."""

import importlib
import sys
import types

import pytest

from amg_plugin import compat
from amg_plugin.errors import InputError, MissingDependencyError


def _importing_raises(monkeypatch, error):
    def raiser(name):
        raise error

    monkeypatch.setattr(importlib, "import_module", raiser)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("operator torchvision::nms does not exist"),
        AttributeError("partially initialized module 'torchvision' has no attribute 'extension'"),
    ],
)
def test_torch_and_torchvision_of_different_builds_are_recognised(monkeypatch, error):
    _importing_raises(monkeypatch, error)
    with pytest.raises(MissingDependencyError, match="torch and torchvision do not belong together") as caught:
        compat.torchreid()
    assert caught.value.__cause__ is error


def test_any_other_failure_on_import_is_reported_with_its_type(monkeypatch):
    _importing_raises(monkeypatch, OSError("libGL.so.1: cannot open shared object file"))
    with pytest.raises(MissingDependencyError, match=r"OSError: libGL\.so\.1.*amg-reid doctor"):
        compat.torchreid()


def test_a_module_missing_from_torchreid_itself_is_an_incomplete_installation(monkeypatch):
    _importing_raises(monkeypatch, ModuleNotFoundError("No module named 'torchreid.x'", name="torchreid.x"))
    with pytest.raises(MissingDependencyError, match="installed incompletely"):
        compat.torchreid()


def test_another_package_called_torchreid_is_told_apart(monkeypatch):
    stranger = types.ModuleType("torchreid")
    stranger.__file__ = "elsewhere/torchreid.py"
    monkeypatch.setitem(sys.modules, "torchreid", stranger)
    with pytest.raises(MissingDependencyError, match=r"elsewhere/torchreid\.py is not the person re-ID library"):
        compat.torchreid()


def test_a_torchreid_without_its_model_table_is_refused(monkeypatch):
    monkeypatch.delitem(vars(compat.torchreid().models), "__model_factory")
    with pytest.raises(InputError, match="no table '__model_factory'"):
        compat.model_factory()


@pytest.mark.parametrize(("module", "expected"), [("cv2.dnn", "opencv-python-headless"), ("scipy", "scipy")])
def test_pip_names_follow_from_import_names(module, expected):
    assert compat.pip_name(module) == expected
