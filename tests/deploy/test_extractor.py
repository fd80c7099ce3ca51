"""One call gives the features of images, for checkpoints and exported files alike."""

import importlib
import io
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from small_models import NETWORKS, preprocessing, save
from torchvision.transforms import Compose, InterpolationMode, Normalize, Resize, ToTensor

import amg_plugin
from amg_plugin.deploy.exported_file import first_line
from amg_plugin.deploy.images import as_image, prepare
from amg_plugin.errors import CheckpointError, DataError, InputError

FORMATS = ["checkpoint", "torchscript", "exported_program", "onnx"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Five images of other sizes than the network's, on disk."""
    folder, random = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    paths = [folder / f"{index}.png" for index in range(5)]
    for index, path in enumerate(paths):
        Image.fromarray(random.integers(0, 256, (50 + index, 30, 3), dtype=np.uint8)).save(path)
    return paths


def transformed(paths, values):
    """What torchreid's test transform makes of the files."""
    kind = InterpolationMode.BICUBIC if values.interpolation == "bicubic" else InterpolationMode.BILINEAR
    steps = [Resize(values.image_size, interpolation=kind), ToTensor(), Normalize(values.mean, values.std)]
    return torch.stack([Compose(steps)(Image.open(path).convert("RGB")) for path in paths])


@pytest.fixture
def extractor(checkpoint, exported):
    """Gives the extractor of a file of a format; the keywords are its own."""

    def of(form, kind="block", **options):
        if form != "checkpoint" and form != "torchscript":
            pytest.importorskip("onnxruntime" if form == "onnx" else "torch")
        path = checkpoint(kind) if form == "checkpoint" else exported(kind, form, dynamic_batch=True)[0]
        return amg_plugin.FeatureExtractor(path, trusted=True, **options)

    return of


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_images_are_prepared_as_by_torchreids_transform(files, interpolation):
    values = replace(preprocessing(NETWORKS["block"]()), interpolation=interpolation)
    ours = prepare(files, values)
    assert ours.dtype == np.float32
    assert np.abs(ours - transformed(files, values).numpy()).max() < 1e-6


@pytest.mark.parametrize("form", FORMATS)
def test_features_are_the_networks(extractor, files, form):
    extract = extractor(form)
    with torch.no_grad():
        expected = NETWORKS["block"]()(transformed(files, extract.info.preprocessing)).numpy()
    found = np.asarray(extract([str(path) for path in files]))
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
    assert extract.feature_dim == expected.shape[1]


@pytest.mark.parametrize("given", ["unit", "raw255", "imagenet"])
def test_normalisation_inside_the_file_gives_the_same_features(extractor, exported, files, given):
    path, _ = exported("kv", "torchscript", dynamic_batch=True, input=given, l2_normalize=True)
    plain = extractor("checkpoint", "kv", normalize=True)
    inside = amg_plugin.FeatureExtractor(path, trusted=True)
    assert torch.allclose(inside(files), plain(files), atol=1e-5)
    assert torch.allclose(inside(transformed(files, inside.info.preprocessing)), plain(files), atol=1e-5)


def test_tensors_of_other_precisions_are_taken(extractor, files):
    extract = extractor("checkpoint")
    images = transformed(files, extract.info.preprocessing)
    for other in (images.bfloat16(), images.double()):
        assert torch.equal(extract(other), extract(other.float()))


@pytest.mark.parametrize("form", ["checkpoint", "torchscript"])
def test_every_kind_of_input_gives_the_same_features(extractor, files, form):
    extract = extractor(form)
    expected = extract(files)
    images = [Image.open(path) for path in files]
    arrays = [np.asarray(image) for image in images]
    for given in (images, arrays, tuple(files), [str(files[0]), files[1], images[2], arrays[3], arrays[4]]):
        assert torch.equal(extract(given), expected)
    one = expected[:1]
    with files[0].open("rb") as opened:
        for given in (str(files[0]), files[0], images[0], arrays[0], opened, io.BytesIO(files[0].read_bytes())):
            assert torch.allclose(extract(given), one, atol=1e-6)
    assert torch.allclose(extract(transformed(files, extract.info.preprocessing)), expected, atol=1e-5)
    assert torch.allclose(extract(transformed(files, extract.info.preprocessing)[0]), one, atol=1e-5)
    same = np.stack([np.asarray(image.resize((40, 60))) for image in images])
    assert torch.equal(extract(same), extract(list(same)))


def test_the_batch_size_changes_nothing(extractor, files):
    assert torch.allclose(extractor("checkpoint", batch_size=2)(files), extractor("checkpoint")(files), atol=1e-5)


def test_grey_images_count_as_grey_colours(extractor, files):
    grey = np.asarray(Image.open(files[0]).convert("L"))
    assert torch.equal(extractor("checkpoint")(grey), extractor("checkpoint")(np.stack([grey] * 3, axis=-1)))


def test_no_images_give_no_features(extractor):
    extract = extractor("checkpoint")
    assert extract([]).shape == (0, extract.feature_dim)


def test_what_runs_in_pytorch_gives_tensors_and_other_files_arrays(extractor, files):
    assert isinstance(extractor("checkpoint")(files), torch.Tensor)
    assert isinstance(extractor("torchscript")(files), torch.Tensor)
    assert isinstance(extractor("checkpoint", output="numpy")(files), np.ndarray)
    assert isinstance(extractor("onnx")(files), np.ndarray)
    assert isinstance(extractor("onnx", output="torch")(files), torch.Tensor)


@pytest.mark.parametrize("form", ["checkpoint", "torchscript"])
def test_cameras_can_be_given_once_or_per_image(extractor, files, form):
    extract = extractor(form, "transreid")
    each = extract(files, camids=[0, 1, 2, 0, -1])
    assert torch.allclose(extract(files[1:2], camids=1), each[1:2], atol=1e-5)
    assert torch.allclose(extract(files[4]), each[4:], atol=1e-5)
    assert not torch.allclose(extract(files[0], camids=1), each[:1], atol=1e-3)
    with pytest.raises(InputError, match="5 of them"):
        extract(files, camids=[1, 2])
    with pytest.raises(InputError, match="5 of them"):
        extract(files, camids=[[1], [2, 3]])


def test_lengths_can_be_one(extractor, files):
    assert torch.allclose(extractor("checkpoint", normalize=True)(files).norm(dim=1), torch.ones(5))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.zeros((4, 4, 4), dtype=np.uint8), "RGB"),
        (np.zeros((2, 2, 4, 4, 3), dtype=np.float32), "prepared batch"),
        (np.zeros((4, 4, 3), dtype=np.int64), "uint8"),
        (3, "not a int"),
        ([None], "not a NoneType"),
        (np.zeros((1, 3, 8, 8), dtype=np.float32), "takes images"),
    ],
)
def test_what_is_no_image_is_refused(extractor, given, message):
    with pytest.raises(InputError, match=message):
        extractor("checkpoint")(given)


def test_images_that_are_missing_or_damaged_are_named(tmp_path):
    with pytest.raises(DataError, match=r"gone\.jpg' does not exist"):
        as_image(tmp_path / "gone.jpg")
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"broken\.jpg' cannot be read"):
        as_image(tmp_path / "broken.jpg")


def test_arguments_are_checked(checkpoint):
    impossible = (
        ({"output": "list"}, "auto, numpy, torch"),
        ({"batch_size": 0}, "whole number from 1"),
        ({"batch_size": 2.5}, "whole number from 1"),
        ({"threads": -5}, "at least 0"),
    )
    for options, message in impossible:
        with pytest.raises(InputError, match=message):
            amg_plugin.FeatureExtractor(checkpoint("dense"), **options)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("device", ["nonsense", "meta", "", "cuda:x", "xpu"])
def test_devices_that_cannot_be_used_are_refused_with_those_that_can(extractor, form, device):
    with pytest.raises(InputError, match=f"device.*'{device}'.*'cpu'") as caught:
        extractor(form, device=device)
    assert not isinstance(caught.value, CheckpointError)


@pytest.mark.parametrize("text", ["Exception from a/b.cpp:84:", "Check 'size > 0' failed at a/b.cpp:887:"])
def test_places_in_the_source_of_a_runtime_are_left_out_of_messages(text):
    error = RuntimeError(f"Exception from src/core.cpp:84:\n{text}\nEmpty weights!\n\n")
    assert first_line(error) == "Empty weights!"
    assert first_line(RuntimeError(text)) == text


def test_a_checkpoint_that_does_not_say_how_images_are_prepared_is_refused(tmp_path):
    importlib.import_module("amg_plugin.checkpoint").save_checkpoint(tmp_path / "bare.pth", NETWORKS["dense"]())
    with pytest.raises(CheckpointError, match="does not record how images are prepared"):
        amg_plugin.FeatureExtractor(tmp_path / "bare.pth")


def test_files_that_are_not_there_or_foreign_are_refused(tmp_path):
    for name in ("gone.onnx", "gone.pth"):
        with pytest.raises(CheckpointError, match="does not exist"):
            amg_plugin.FeatureExtractor(tmp_path / name)
    torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)).save(tmp_path / "foreign.pt")
    with pytest.raises(CheckpointError, match="was not written by 'amg-reid export'"):
        amg_plugin.FeatureExtractor(tmp_path / "foreign.pt", trusted=True)
    program = torch.export.export(torch.nn.Linear(2, 2), (torch.zeros(1, 2),))
    torch.export.save(program, tmp_path / "foreign.pt2")
    with pytest.raises(CheckpointError, match="was not written by 'amg-reid export'"):
        amg_plugin.FeatureExtractor(tmp_path / "foreign.pt2", trusted=True)


def test_a_foreign_onnx_file_is_refused(tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy"]
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    graph = onnx.helper.make_graph([node], "foreign", ends[:1], ends[1:])
    onnx.save(
        onnx.helper.make_model(graph, ir_version=10, opset_imports=[onnx.helper.make_opsetid("", 18)]),
        str(tmp_path / "foreign.onnx"),
    )
    with pytest.raises(CheckpointError, match="was not written by 'amg-reid export'"):
        amg_plugin.FeatureExtractor(tmp_path / "foreign.onnx")
    (tmp_path / "broken.onnx").write_bytes(b"\x08no graph")
    with pytest.raises(CheckpointError, match="cannot be opened by ONNX Runtime"):
        amg_plugin.FeatureExtractor(tmp_path / "broken.onnx")


def test_copies_of_a_checkpoint_give_the_same_features(tmp_path, checkpoint, files):
    again = save(NETWORKS["block"](), tmp_path / "again.pth")
    first, second = (amg_plugin.FeatureExtractor(path)(files) for path in (again, checkpoint("block")))
    assert torch.equal(first, second)


@pytest.mark.parametrize("form", FORMATS)
def test_a_pickled_extractor_opens_its_file_again(extractor, files, form, tmp_path, monkeypatch):
    extract = extractor(form, normalize=True, batch_size=2, output="numpy")
    content = pickle.dumps(extract)
    assert len(content) < 100_000
    monkeypatch.chdir(tmp_path)
    again = pickle.loads(content)
    assert np.array_equal(again(files), extract(files))
