"""Files for programs of others give, after those programs' preprocessing, the features that the plugin gives."""

import json

import numpy as np
import pytest
import torch
import yaml
from small_models import NETWORKS, preprocessing
from torch.nn.functional import interpolate

from amg_plugin import FeatureExtractor, save_checkpoint
from amg_plugin.deploy.export import ExportOptions, export
from amg_plugin.errors import InputError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def crop(height, width):
    """A smooth uint8 image [height, width, 3]."""
    random = np.random.default_rng(0)
    small = torch.from_numpy(random.integers(0, 256, (1, 3, 4, 2), dtype=np.uint8)).float()
    large = interpolate(small, (height, width), mode="bilinear", align_corners=False)
    return large.round().byte()[0].permute(1, 2, 0).numpy()


def resized(image, size):
    """[3, height, width] from 0 to 255 by OpenCV's and torch's linear interpolation, in whole numbers."""
    batch = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    return interpolate(batch, size, mode="bilinear", align_corners=False)[0].round()


def boxmot(image, size):
    """What BoxMOT 25.0.0 makes of a crop (in RGB here)."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (resized(image, size) / 255 - mean) / std


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A pruned network whose images are resized with bilinear interpolation, and its extractor."""
    from dataclasses import replace

    path = tmp_path_factory.mktemp("checkpoint") / "vit.pth"
    model = NETWORKS["block"]()
    save_checkpoint(path, model, preprocessing=replace(preprocessing(model), interpolation="bilinear"))
    return path


def cosine(first, second):
    return float(torch.nn.functional.cosine_similarity(torch.as_tensor(first), torch.as_tensor(second)).min())


@pytest.mark.parametrize("size", [(32, 16), (20, 11)])
def test_boxmot_gets_the_plugins_features(checkpoint, tmp_path, size):
    path = tmp_path / "vits.torchscript"
    outcome = export(checkpoint, ExportOptions("torchscript", path, client="boxmot"))
    batch = torch.stack([boxmot(image, (32, 16)) for image in (crop(*size), crop(*size)[:, ::-1].copy())])
    found = torch.jit.load(path)(batch)
    assert cosine(found[:1], FeatureExtractor(checkpoint)([crop(*size)])) >= 0.9999
    assert len(found) == 2
    assert (outcome["for"], outcome["info"]["input"]) == ("BoxMOT 25.0.0", "imagenet")


def test_boxmot_finds_the_size_beside_the_file(checkpoint, tmp_path):
    export(checkpoint, ExportOptions("torchscript", tmp_path / "vits.torchscript", client="boxmot"))
    metadata = json.loads((tmp_path / "vits.torchscript.metadata.json").read_text(encoding="utf-8"))
    assert metadata["model_kwargs"] == {"img_size": [32, 16]}
    assert (metadata["schema_version"], metadata["model_kwargs_schema_version"]) == (1, 1)


@pytest.mark.parametrize("word", ["veri", "VehicleID", "lmbn", "hacnn", "clip"])
def test_names_by_which_boxmot_chooses_otherwise_are_refused(checkpoint, tmp_path, word):
    options = ExportOptions("torchscript", tmp_path / f"vit_{word}.torchscript", client="boxmot")
    with pytest.raises(InputError, match=f"has '{word.lower()}' in its name"):
        export(checkpoint, options)


@pytest.mark.parametrize(
    ("form", "name", "options", "sentence"),
    [
        ("torchscript", "vits.pt", {}, "not a file of torchscript that BoxMOT"),
        ("exported_program", "vits.pt2", {}, "not a file of exported_program that BoxMOT"),
        ("torchscript", "vits.torchscript", {"input": "unit"}, "--input unit is not what BoxMOT"),
    ],
)
def test_what_boxmot_does_not_take_is_refused(checkpoint, tmp_path, form, name, options, sentence):
    with pytest.raises(InputError, match=sentence):
        export(checkpoint, ExportOptions(form, tmp_path / name, client="boxmot", **options))


def test_deepstream_gets_the_plugins_features_with_the_section_beside_the_file(checkpoint, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    export(checkpoint, ExportOptions("onnx", tmp_path / "vits.onnx", client="deepstream"))
    section = yaml.safe_load((tmp_path / "vits.onnx.deepstream.yml").read_text(encoding="utf-8"))["ReID"]
    image, (_, *size) = crop(20, 11), section["inferDims"]
    offsets = torch.tensor(section["offsets"])[:, None, None]
    batch = torch.stack([section["netScaleFactor"] * (resized(image, size) - offsets)] * 2).numpy()
    session = runtime.InferenceSession(tmp_path / section["onnxFile"], providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"images": batch})
    assert found.shape == (2, section["reidFeatureSize"])
    assert cosine(found[:1], FeatureExtractor(checkpoint)([image])) >= 0.9999
    assert (section["colorFormat"], section["inputOrder"], section["keepAspc"]) == (0, 0, 0)
    assert section["addFeatureNormalization"] == 1


@pytest.mark.parametrize(
    ("form", "name", "options", "sentence"),
    [
        ("torchscript", "vits.pt", {}, "not a file of torchscript that DeepStream"),
        ("onnx", "vits.onnx", {"fp16": True}, "--fp16 is not for DeepStream"),
        ("onnx", "vits.onnx", {"input": "imagenet"}, "--input imagenet is not what DeepStream"),
    ],
)
def test_what_deepstream_does_not_take_is_refused(checkpoint, tmp_path, form, name, options, sentence):
    with pytest.raises(InputError, match=sentence):
        export(checkpoint, ExportOptions(form, tmp_path / name, client="deepstream", **options))


def test_networks_that_need_cameras_are_refused(tmp_path):
    model = NETWORKS["transreid"]()
    save_checkpoint(tmp_path / "vit.pth", model, preprocessing=preprocessing(model))
    options = ExportOptions("torchscript", tmp_path / "vits.torchscript", client="boxmot")
    with pytest.raises(InputError, match="takes camids with images, which BoxMOT"):
        export(tmp_path / "vit.pth", options)


def test_unknown_programs_are_refused(checkpoint, tmp_path):
    with pytest.raises(InputError, match="--for 'sort' is unknown"):
        export(checkpoint, ExportOptions("torchscript", tmp_path / "vits.pt", client="sort"))
