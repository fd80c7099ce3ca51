"""LiteRT and ExecuTorch: PyTorch's features at 1e-6, for one image at a time; where their packages are installed."""

import importlib.util
import zipfile

import numpy as np
import pytest
import torch
from small_models import ALL

from amg_plugin import FeatureExtractor
from amg_plugin.deploy.export import ExportOptions, export
from amg_plugin.deploy.exported_file import EXTRA_FILE, open_exported
from amg_plugin.errors import AMGError, CheckpointError, InputError, RunError
from amg_plugin.registries.formats import FORMATS, file_format


def only_with(form, package):
    missing = importlib.util.find_spec(package) is None
    return pytest.param(form, marks=pytest.mark.skipif(missing, reason=f"{package} is not installed"))


FORMS = [only_with("litert", "litert_torch"), only_with("executorch", "executorch")]
#: Heads and tokens, heads and neurons, merged tokens, cameras as an input.
KINDS = ["block", "heads", "merge", "transreid"]


def features_of(kind, images, **labels):
    with torch.no_grad():
        return ALL[kind]()(images, **labels).numpy()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_features_are_pytorchs(exported, form, kind):
    path, outcome = exported(kind, form)
    file = open_exported(path, trusted=True, threads=1)
    assert (file_format(path), file.info.batch) == (form, 1)
    images = torch.randn(3, 3, *file.info.image_size, generator=torch.Generator().manual_seed(1))
    labels = {"camids": torch.arange(3) - 1} if kind == "transreid" else {}
    found = file.features(images.numpy(), {name: column.numpy() for name, column in labels.items()})
    expected = features_of(kind, images, **labels)
    assert np.abs(found - expected).max() <= 1e-6 * np.abs(expected).max()
    assert outcome["comparison"]["relative_difference"] <= 1e-6


@pytest.mark.parametrize("form", FORMS)
def test_int8_is_smaller_and_close(exported, form, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    from PIL import Image

    for index in range(8):
        array = np.random.default_rng(index).integers(0, 256, (40, 20, 3), dtype=np.uint8)
        Image.fromarray(array).save(folder / f"{index}.png")
    path, outcome = exported("block", form, int8=str(folder))
    assert open_exported(path, trusted=True).info.precision == "int8"
    assert outcome["comparison"]["cosine"] >= 0.99
    assert outcome["comparison"]["relative_difference"] > 1e-6
    assert outcome["bytes"] < exported("block", form)[1]["bytes"]


@pytest.mark.parametrize("form", FORMS)
def test_a_file_without_a_description_or_with_another_graphs_is_refused(exported, form, tmp_path):
    path, _ = exported("block", form)
    copy = tmp_path / path.name
    content = path.read_bytes()
    copy.write_bytes(content[: content.rindex(b"PK\x03\x04")])
    with pytest.raises(CheckpointError, match="was not written by 'amg-reid export'"):
        open_exported(copy, trusted=True)
    with zipfile.ZipFile(path) as archive:
        text = archive.read(EXTRA_FILE).decode()
    with zipfile.ZipFile(copy, "a") as archive:
        archive.writestr(EXTRA_FILE, text.replace('"height": 32', '"height": 48'))
    with pytest.raises(CheckpointError, match=r"The graph in .* has images \[1, 3, 32, 16\]"):
        open_exported(copy, trusted=True)


@pytest.mark.parametrize("form", [only_with("litert", "litert_torch")])
def test_a_damaged_litert_file_ends_in_one_sentence(exported, form, tmp_path):
    content = bytearray(exported("block", form)[0].read_bytes())
    copy, random = tmp_path / "m.tflite", np.random.default_rng(0)
    content[8:200] = random.integers(0, 256, 192, dtype=np.uint8).tobytes()
    copy.write_bytes(content)
    with pytest.raises(AMGError):
        open_exported(copy)  # tried in a process of its own


@pytest.mark.parametrize("form", FORMS)
def test_other_devices_are_refused(exported, form):
    with pytest.raises(InputError, match=r"'cuda', but .* on 'cpu' here"):
        open_exported(exported("block", form)[0], "cuda", trusted=True)


@pytest.mark.parametrize("form", FORMS)
def test_the_extractor_opens_them(exported, checkpoint, form):
    images = [np.random.default_rng(index).integers(0, 256, (40, 20, 3), dtype=np.uint8) for index in range(3)]
    found = FeatureExtractor(exported("block", form)[0], trusted=True, output="numpy")(images)
    expected = FeatureExtractor(checkpoint("block"), output="numpy")(images)
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("form", [only_with("executorch", "executorch")])
def test_what_the_runtime_cannot_run_is_not_written(checkpoint, form, tmp_path):
    with pytest.raises(RunError):  # ToMe sorts
        export(checkpoint("tome"), ExportOptions(form, tmp_path / "m.pte"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("form", ["litert", "executorch"])
def test_they_take_one_image_at_a_time(form, tmp_path, monkeypatch):
    monkeypatch.setattr("amg_plugin.deploy.export.need", lambda *given: None)
    output = tmp_path / f"m{FORMATS.row(form).suffixes[0]}"
    with pytest.raises(InputError, match=f"--dynamic-batch is not for {form}: its runtime plans its memory"):
        ExportOptions(form, output, dynamic_batch=True).check()
    with pytest.raises(InputError, match=f"--fp16 is not for {form}"):
        ExportOptions(form, output, fp16=True).check()
