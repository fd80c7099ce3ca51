"""Files of weights are read as data: numbers of numpy are fine, code is refused and does not run."""

from __future__ import annotations

import os
import pickle
import sys
import types

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from amg_plugin.errors import CheckpointError
from amg_plugin.models.weights import read_state_dict


@pytest.fixture
def state():
    return {"weight": torch.arange(3.0), "mask": nn.Parameter(torch.tensor([True, False]), requires_grad=False)}


def test_boolean_parameters_are_read(state, tmp_path):
    torch.save(state, tmp_path / "model.pth")
    read = read_state_dict(tmp_path / "model.pth")
    assert read["mask"].tolist() == [True, False]
    assert torch.equal(read["weight"], state["weight"])


@pytest.mark.parametrize("number", [np.int64(3), np.int32(3), np.float64(0.5), np.float32(0.5), np.bool_(True)])
@pytest.mark.parametrize("wrapper", ["state_dict", "model", "net", "teacher"])
def test_numbers_of_numpy_are_read_and_left_out(state, number, wrapper, tmp_path):
    torch.save({wrapper: {**state, "count": number}, "epoch": number}, tmp_path / "model.pth")
    assert set(read_state_dict(tmp_path / "model.pth")) == {"weight", "mask"}


@pytest.mark.parametrize("module", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_numpys_old_and_new_module_names_are_read(state, module, tmp_path, monkeypatch):
    def scalar(*arguments):
        raise AssertionError("only its name is used")

    scalar.__module__, scalar.__qualname__ = module, "scalar"
    for part in (module.rpartition(".")[0], module):
        if part not in sys.modules:
            monkeypatch.setitem(sys.modules, part, types.ModuleType(part))
    monkeypatch.setattr(sys.modules[module], "scalar", scalar, raising=False)

    class Number:
        def __reduce__(self):
            return scalar, (np.dtype("int64"), b"\x05" + bytes(7))

    torch.save({**state, "heads": Number()}, tmp_path / "model.pth")
    monkeypatch.undo()
    assert module.encode() in (tmp_path / "model.pth").read_bytes()
    assert set(read_state_dict(tmp_path / "model.pth")) == {"weight", "mask"}


def test_safetensors_are_read(state, tmp_path):
    save_file({name: value.detach() for name, value in state.items()}, tmp_path / "model.safetensors")
    assert set(read_state_dict(tmp_path / "model.safetensors")) == {"weight", "mask"}


class Code:
    """A pickle that makes a folder when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("place", ["alone", "beside the tensors"])
def test_a_pickle_with_code_is_refused_and_the_code_does_not_run(state, tmp_path, legacy, place):
    code = Code(tmp_path / "it ran")
    content = code if place == "alone" else {**state, "code": code}
    torch.save(content, tmp_path / "model.pth", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match=r"refused.*mkdir"):
        read_state_dict(tmp_path / "model.pth")
    assert not (tmp_path / "it ran").exists()


def test_the_trap_of_these_tests_works(tmp_path):
    pickle.loads(pickle.dumps(Code(tmp_path / "it ran")))
    assert (tmp_path / "it ran").exists()


def test_a_whole_module_is_refused(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match=r"refused.*torch\.nn\.modules\.linear\.Linear"):
        read_state_dict(tmp_path / "model.pth")


def test_the_allow_list_ends_with_the_call(state, tmp_path):
    before = set(map(repr, torch.serialization.get_safe_globals()))  # torch keeps them in no fixed order
    torch.save(state, tmp_path / "model.pth")
    read_state_dict(tmp_path / "model.pth")
    assert set(map(repr, torch.serialization.get_safe_globals())) == before


@pytest.mark.parametrize("name", ["model.pth", "model.safetensors"])
@pytest.mark.parametrize("content", [b"", b"not weights at all"])
def test_foreign_files_are_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_state_dict(tmp_path / name)


@pytest.mark.parametrize(("name", "write"), [("model.pth", torch.save), ("model.safetensors", save_file)])
def test_a_truncated_file_is_refused(tmp_path, name, write):
    write({"weight": torch.zeros(2000)}, tmp_path / name)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_state_dict(tmp_path / name)


def test_a_missing_file_is_refused(tmp_path):
    for path in (tmp_path / "none.pth", tmp_path):
        with pytest.raises(CheckpointError, match="does not exist"):
            read_state_dict(path)


@pytest.mark.parametrize(
    "content", [[1, 2], {}, {"epoch": 3}, {"state_dict": {}}, torch.ones(1), {"weight": torch.zeros(1), "names": ["a"]}]
)
def test_a_file_without_a_state_dict_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match="state dict"):
        read_state_dict(tmp_path / "model.pth")
