"""``amg-reid export``, ``amg-reid test`` of exported files, and what they refuse."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import amg_plugin
from amg_plugin.deploy.export import calibration_files
from amg_plugin.registries.formats import FORMATS
from amg_plugin.utils.files import sha256


@pytest.fixture(scope="session")
def script(pruned, tmp_path_factory):
    """A TorchScript file of the pruned model: the quickest format to write."""
    from amg_plugin.cli.main import main

    path = tmp_path_factory.mktemp("exported") / "model.pt"
    assert main(["export", str(pruned.last), "--format", "torchscript", "--output", str(path)]) == 0
    return path


@pytest.fixture(scope="session")
def int8_file(pruned, tiny_root, tmp_path_factory):
    """An int8 ONNX file of the pruned model, calibrated on the training images of a data set."""
    for package in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(package)
    from amg_plugin.cli.main import main

    path = tmp_path_factory.mktemp("exported") / "int8.onnx"
    words = ["--format", "onnx", "--output", str(path), "--int8", "synthetic_reid", "--root", str(tiny_root)]
    assert main(["export", str(pruned.last), *words, "--dynamic-batch", "--calibration-images", "20"]) == 0
    return path


def test_the_outcome_is_printed(pruned, amg_reid, tmp_path):
    outcome = amg_reid("export", pruned.last, "--format", "exported_program", "--output", tmp_path / "sub" / "m.pt2")
    assert outcome.status == 0, outcome.err
    assert "compared with PyTorch on 8 generated images" in outcome.out
    assert (tmp_path / "sub" / "m.pt2.json").is_file()


def test_real_images_can_be_compared(pruned, amg_reid, tmp_path, tiny_root):
    words = ("--format", "torchscript", "--output", tmp_path / "m.pt", "--images", tiny_root / "synthetic_reid")
    outcome = amg_reid("export", pruned.last, *words)
    assert outcome.status == 0, outcome.err
    assert "real images" in outcome.out


def only_with(form, package):
    missing = importlib.util.find_spec(package) is None
    return pytest.param(form, (), marks=pytest.mark.skipif(missing, reason=f"{package} is not installed"))


@pytest.mark.parametrize(
    ("form", "built_in"),
    [
        ("torchscript", ()),
        ("torchscript", ("--input", "raw255")),
        only_with("litert", "litert_torch"),
        only_with("executorch", "executorch"),
    ],
)
def test_an_exported_file_evaluates_as_its_checkpoint(pruned, tiny_root, amg_reid, tmp_path, form, built_in):
    path = tmp_path / f"model{FORMATS.row(form).suffixes[0]}"
    words = ("--format", form, "--output", path, *built_in)
    assert amg_reid("export", pruned.last, *words).status == 0
    outcome = amg_reid("test", "--trusted", "--weights", path, "--root", tiny_root)
    assert outcome.status == 0, outcome.err
    folder = tmp_path / f"test_model_{path.suffix[1:]}_synthetic_reid+market1501"
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    section, expected = result["exported"], pruned.result["finetuned"]
    for name in ("mAP", "rank1", "params", "macs", "heads_per_block", "tokens_per_block"):
        assert section[name] == pytest.approx(expected[name]), name
    assert section["targets"]["synthetic_reid"]["cmc"] == expected["targets"]["synthetic_reid"]["cmc"]
    scored = {name: {key: one[key] for key in ("mAP", "rank1")} for name, one in expected["targets"].items()}
    assert section["source"] == {"name": "last.pth", "sha256": sha256(pruned.last), "metrics": scored}
    assert (section["file_format"], section["precision"]) == (form, "fp32")
    assert "exported" in outcome.out


def test_int8_is_calibrated_compared_and_evaluated(int8_file, tiny_root, amg_reid):
    stored = json.loads(int8_file.with_name("int8.onnx.json").read_text(encoding="utf-8"))
    assert stored["calibration_images"] == 20
    assert stored["comparison"]["kind"] == "real"
    assert 0.99 <= stored["comparison"]["cosine"] < 1
    outcome = amg_reid("test", "--weights", int8_file, "--root", tiny_root)
    assert outcome.status == 0, outcome.err
    folder = int8_file.with_name("test_int8_onnx_synthetic_reid+market1501")
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    assert result["exported"]["precision"] == "int8"
    assert 0 < result["exported"]["mAP"] <= 1


def test_weights_of_products_are_8_bit_with_a_scale_per_channel(int8_file):
    import onnx

    graph = onnx.load(str(int8_file)).graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    matrices = [tensor for tensor in graph.initializer if len(tensor.dims) == 2 and min(tensor.dims) > 1]
    assert {tensor.data_type for tensor in matrices} == {onnx.TensorProto.INT8}
    weights = [
        node
        for node in graph.node
        if node.op_type == "DequantizeLinear"
        and node.input[0] in stored
        and stored[node.input[0]].data_type == onnx.TensorProto.INT8
    ]
    assert weights
    for node in weights:
        assert len(stored[node.input[1]].dims) == 1
        assert stored[node.input[1]].dims[0] in stored[node.input[0]].dims


def test_extracted_features_are_those_of_the_evaluation(pruned, script, tiny_root):
    images = (
        sorted((tiny_root / "synthetic_reid" / "query").glob("*.jpg"))[:4]
        or sorted((tiny_root / "synthetic_reid").rglob("*.jpg"))[:4]
    )
    from_checkpoint = amg_plugin.FeatureExtractor(pruned.last)(images)
    assert torch.allclose(from_checkpoint, amg_plugin.FeatureExtractor(script, trusted=True)(images), atol=1e-5)


def test_exported_files_and_their_checkpoint_come_into_one_table(
    pruned, script, tiny_root, amg_reid, tmp_path, run_script
):
    tool = Path(__file__).resolve().parents[2] / "tools" / "results.py"
    if not tool.is_file():
        pytest.skip("the tests do not run from a checkout")
    evaluated = tmp_path / "evaluated"
    words = ("--trusted", "--weights", script, "--root", tiny_root, "data.save_dir", evaluated)
    assert amg_reid("test", *words).status == 0
    rows = [
        f"pruned PyTorch={pruned.folder / 'result.json'}",
        f"pruned script={script},{evaluated / 'result.json'}",
    ]
    words = [*rows, "--title", "Table", "--output", str(tmp_path / "table")]
    outcome = run_script(tool, "exports", *words)
    assert outcome.returncode == 0, outcome.stderr
    table = (tmp_path / "table.md").read_text(encoding="utf-8").splitlines()
    whole, exported = (line for line in table if line.startswith("| pruned"))
    assert whole.split("|")[6:8] == exported.split("|")[6:8]
    assert exported.split("|")[8].strip() == "+0.00"
    entries = json.loads((tmp_path / "table.json").read_text(encoding="utf-8"))
    assert entries[1]["source"]["sha256"] == sha256(pruned.last)


# Bad input ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def output(tmp_path):
    """Where an export that is refused must leave nothing."""
    folder = tmp_path / "out"
    yield folder / "model.onnx"
    assert not folder.exists() or not list(folder.iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--format", "tflite"], "Unknown export format 'tflite'; allowed are onnx, torchscript"),
        (["--format", "torchscript"], "must end in .pt or .ts"),
        (["--format", "onnx", "--int8"], "--int8 needs calibration data"),
        (["--format", "onnx", "--int8", "FOLDER", "--fp16"], "cannot be combined"),
        (["--format", "onnx", "--int8", "FOLDER", "--calibration-images", "0"], "at least 1"),
        (["--format", "onnx", "--int8", "FOLDER"], "holds no images"),
        (["--format", "onnx", "--int8", "nothing"], "neither a folder of images nor a data set"),
        (["--format", "onnx", "--int8", "market1501"], "--root"),
        (["--format", "onnx", "--int8", "FOLDER", "--root", "FOLDER"], "is a folder, but --root is for the name"),
        (["--format", "onnx", "--calibration-images", "8"], "--calibration-images is for --int8 only"),
        (["--format", "onnx", "--int8", "market1501", "--root", "FOLDER"], "market1501 is expected in"),
        (["--format", "onnx", "--images", "FOLDER"], "holds no images"),
        (["--format", "onnx", "--images", "nothing"], "does not exist"),
        (["--format", "onnx", "--opset", "11"], "--opset 11 is impossible: PyTorch's exporter writes 18 to "),
        (["--format", "onnx", "--opset", "0"], "--opset 0 is impossible"),
        (["--format", "onnx", "--opset", "26"], "--opset 26 is impossible"),
        (["--format", "onnx", "--opset", "99"], "reads up to"),
    ],
)
def test_bad_options_are_refused(pruned, refused, output, tmp_path, words, message):
    for package in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(package)
    (tmp_path / "empty").mkdir()
    words = [str(tmp_path / "empty") if word == "FOLDER" else word for word in words]
    assert message in refused("export", pruned.last, *words, "--output", output)


@pytest.mark.parametrize(
    ("form", "name", "words", "message"),
    [
        ("torchscript", "m.pt", ["--opset", "18"], "--opset is for onnx only"),
        ("torchscript", "m.pt", ["--int8", "x"], "--int8 is for onnx, openvino, litert"),
        ("exported_program", "m.onnx", [], "must end in .pt2"),
        ("torchscript", "m.pt", ["--root", "x"], "--root is for --int8 only"),
    ],
)
def test_options_of_other_formats_are_refused(pruned, refused, tmp_path, form, name, words, message):
    assert message in refused("export", pruned.last, "--format", form, "--output", tmp_path / name, *words)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("form", "name", "package"),
    [("onnx", "m.onnx", "onnxruntime"), ("onnx", "m.onnx", "onnxscript"), ("openvino", "m.xml", "openvino")],
)
def test_a_missing_runtime_is_named_with_what_installs_it(pruned, refused, tmp_path, monkeypatch, form, name, package):
    monkeypatch.setitem(sys.modules, package, None)
    sentence = refused("export", pruned.last, "--format", form, "--output", tmp_path / name)
    assert f"needs '{package}'" in sentence
    assert "[export]" in sentence


def test_a_missing_runtime_is_named_when_a_file_is_evaluated(int8_file, refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    sentence = refused("test", "--weights", int8_file)
    assert "needs 'onnxruntime'" in sentence
    assert "[runtime]" in sentence


def test_a_data_set_that_is_a_folder_as_well_has_to_be_told_from_it(pruned, refused, output, tiny_root, monkeypatch):
    for package in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(package)
    monkeypatch.chdir(tiny_root)
    words = ("--format", "onnx", "--output", output, "--int8", "synthetic_reid")
    assert "is a data set and a folder here" in refused("export", pruned.last, *words)


def test_the_older_option_for_input_from_0_to_1_names_its_successor(pruned, refused, output):
    words = ("--format", "torchscript", "--output", output, "--normalize-input")
    assert "--input unit" in refused("export", pruned.last, *words)


def test_a_data_set_is_meant_where_its_root_is_given(tiny_root, monkeypatch):
    monkeypatch.chdir(tiny_root)
    files = calibration_files("synthetic_reid", ".")
    assert files
    assert {file.parent.name for file in files} == {"bounding_box_train"}
    assert len(calibration_files("./synthetic_reid", None)) > len(files)


def test_an_unreadable_calibration_image_is_named(pruned, refused, output, tmp_path):
    for package in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(package)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "broken.jpg").write_bytes(b"no image")
    words = ("--format", "onnx", "--output", output, "--int8", tmp_path / "images")
    assert "broken.jpg' cannot be read" in refused("export", pruned.last, *words)
    assert not output.parent.exists()


def test_a_checkpoint_that_is_none_is_refused(refused, tmp_path, script):
    words = ("--format", "torchscript", "--output", tmp_path / "m.pt")
    assert "does not exist" in refused("export", tmp_path / "gone.pth", *words)
    assert "is a folder" in refused("export", tmp_path, *words)
    assert "is an exported file (torchscript), not a checkpoint" in refused("export", script, *words)
    (tmp_path / "model.onnx").write_bytes(b"\x08")
    assert "is an exported file (onnx), not a checkpoint" in refused("inspect", tmp_path / "model.onnx")


def test_the_checkpoint_is_not_overwritten(trained, refused, tmp_path):
    path = tmp_path / "model.pt"
    path.write_bytes(trained.last.read_bytes())
    assert "would overwrite the checkpoint" in refused("export", path, "--format", "torchscript", "--output", path)
    weights = path.rename(tmp_path / "model.bin")
    words = ("--format", "openvino", "--output", tmp_path / "model.xml")
    if importlib.util.find_spec("openvino"):
        assert "would overwrite the checkpoint" in refused("export", weights, *words)


def test_a_folder_that_cannot_be_written_is_refused(pruned, refused, tmp_path):
    (tmp_path / "file").write_text("")
    words = ("--format", "torchscript", "--output", tmp_path / "file" / "m.pt")
    assert "cannot be written" in refused("export", pruned.last, *words)


def test_folders_in_the_place_of_what_is_written_beside_the_file_are_refused(pruned, refused, tmp_path):
    (tmp_path / "m.pt.json").mkdir()
    (tmp_path / "m.bin").mkdir()
    for form, name, folder in (("torchscript", "m.pt", "m.pt.json"), ("openvino", "m.xml", "m.bin")):
        sentence = refused("export", pruned.last, "--format", form, "--output", tmp_path / name)
        assert f"{folder}', which is written next to --output, is a folder" in sentence


def test_an_exported_file_of_another_model_than_the_configuration_is_refused(script, refused, tmp_path):
    words = ("--weights", script, "--trusted", "data.save_dir", tmp_path)
    assert "set data.height and data.width" in refused("test", *words, "data.height", "64")
    assert "of another structure" in refused("test", *words, "amg.override.depth", "4")
    assert "the mean" in refused("test", *words, "data.norm_mean", "[0.1, 0.1, 0.1]")
    assert "amg.neck_feat is 'after' inside" in refused("test", *words, "amg.neck_feat", "before")
    for option in ("--dense", "--gallery-weights"):
        assert option in refused("test", *words[:2], option, script)
        assert option in refused("test", *words[:2], option, "")


def test_a_file_of_another_program_is_refused(refused, tmp_path):
    torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)).save(tmp_path / "foreign.pt")
    sentence = refused("test", "--trusted", "--weights", tmp_path / "foreign.pt")
    assert "was not written by 'amg-reid export'" in sentence
    assert "does not exist" in refused("test", "--weights", tmp_path / "gone.onnx")


def test_a_file_over_the_limit_ends_with_status_1_and_is_removed(pruned, amg_reid, tmp_path, monkeypatch):
    from amg_plugin.deploy import parity as comparison

    monkeypatch.setitem(comparison.LARGEST_DIFFERENCE, "fp16", 1e-9)
    outcome = amg_reid("export", pruned.last, "--format", "torchscript", "--output", tmp_path / "m.pt", "--fp16")
    assert outcome.status == 1
    assert "was not written" in outcome.err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_calibration_on_a_folder_of_other_sizes(tmp_path, pruned, amg_reid):
    for package in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(package)
    folder = tmp_path / "images"
    folder.mkdir()
    random = np.random.default_rng(0)
    for index in range(6):
        array = random.integers(0, 256, (20 + index, 15, 3), dtype=np.uint8)
        Image.fromarray(array).resize((12, 30)).save(folder / f"{index}.png")
    words = ("--format", "onnx", "--output", tmp_path / "m.onnx", "--int8", folder, "--calibration-images", "4")
    outcome = amg_reid("export", pruned.last, *words)
    assert outcome.status in (0, 1), outcome.err
    assert "calibrating on 4 images" in outcome.out
    assert "2 real images" in outcome.out
    outcome = amg_reid("export", pruned.last, *words[:-2])
    assert "6 calibration images" in outcome.out
