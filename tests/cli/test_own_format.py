"""An export format of a user's own, in a file given by --import, is known wherever built-in ones are."""

import json
import sys
from dataclasses import replace

import pytest
import torch

import amg_plugin
from amg_plugin.errors import InputError
from amg_plugin.registries import FORMATS, register_format
from amg_plugin.registries.imports import LOADED

SOURCE = """
import io

import numpy as np
import torch

from amg_plugin.deploy.exported_file import ExportedFile, ExportInfo
from amg_plugin.registries import ExportFormat, register_format


def write(graph, path, info):
    archive = io.BytesIO()
    torch.jit.save(torch.jit.trace(graph, torch.zeros(2, 3, *info.image_size)), archive)
    with path.open("wb") as file:
        np.savez(file, graph=np.frombuffer(archive.getvalue(), np.uint8), info=info.to_json())


class NpzFile(ExportedFile):
    runtime = "a runtime of mine"

    def __init__(self, path, device, threads):
        with np.load(path) as stored:
            super().__init__(path, ExportInfo.from_json(str(stored["info"]), path))
            self.module = torch.jit.load(io.BytesIO(stored["graph"].tobytes()))

    def run(self, columns):
        with torch.no_grad():
            return self.module(*map(torch.from_numpy, columns)).numpy()


register_format(
    ExportFormat(
        name="npz",
        summary="an archive of NumPy in a runtime of mine",
        suffixes=(".npz",),
        writer=write,
        opener=NpzFile,
        runtime=("torch",),
        batch="any",
    )
)
"""


@pytest.fixture
def own_format(tmp_path, monkeypatch):
    """A file that registers the format 'npz'; the format is forgotten afterwards."""
    path = tmp_path / "my_format.py"
    path.write_text(SOURCE, encoding="utf-8")
    monkeypatch.setattr(FORMATS, "rows", dict(FORMATS.rows))
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield path
    sys.modules.pop("my_format", None)
    LOADED.clear()


@pytest.fixture
def exported(own_format, pruned, amg_reid):
    """A file of the format, of the pruned model."""
    path = own_format.parent / "model.npz"
    outcome = amg_reid("export", pruned.last, "--import", own_format, "--format", "npz", "--output", path)
    assert outcome.status == 0, outcome.err
    assert "run by a runtime of mine" in outcome.out
    return path


def test_an_exported_file_evaluates_and_embeds_as_its_checkpoint(exported, pruned, tiny_root, amg_reid):
    outcome = amg_reid("test", "--weights", exported, "--root", tiny_root)
    assert outcome.status == 0, outcome.err
    (result,) = exported.parent.rglob("result.json")
    section = json.loads(result.read_text(encoding="utf-8"))["exported"]
    assert section["mAP"] == pytest.approx(pruned.result["finetuned"]["mAP"])
    assert (section["file_format"], section["runtime"]) == ("npz", "a runtime of mine")
    images = sorted((tiny_root / "synthetic_reid").rglob("*.jpg"))[:4]
    expected = amg_plugin.FeatureExtractor(pruned.last)(images)
    assert torch.allclose(amg_plugin.FeatureExtractor(exported)(images), expected, atol=1e-5)


def test_bench_measures_it_in_a_process_of_its_own(exported, amg_reid):
    words = ("--rounds", "1", "--warmup", "1", "--no-memory", "--device", "cpu")
    outcome = amg_reid("bench", exported, *words)
    assert outcome.status == 0, outcome.err
    assert "npz, 1 thread, batch 1" in outcome.out


def test_help_and_messages_name_it(exported, own_format, pruned, refused, amg_reid):
    said = " ".join(amg_reid("export", "--help").out.split())
    assert "npz (.npz)" in said
    words = ("export", pruned.last, "--output", own_format.parent / "m.npz")
    assert "npz" in refused(*words, "--format", "tflite")
    assert "not for npz" in refused(*words, "--format", "npz", "--int8", "images")
    assert "is an exported file (npz), not a checkpoint" in refused("inspect", exported)
    assert "npz" in refused("bench", exported, "--forms", "tflite")


def test_a_name_or_ending_that_is_taken_is_refused():
    with pytest.raises(InputError, match="'onnx' is already taken"):
        register_format(replace(FORMATS.row("onnx"), writer=print))
    with pytest.raises(InputError, match=r"onnx end in '\.onnx' already"):
        register_format(replace(FORMATS.row("onnx"), name="mine", writer=print))
    register_format(FORMATS.row("onnx"))
    assert "mine" not in FORMATS
