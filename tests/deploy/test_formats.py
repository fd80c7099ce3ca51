"""Exported files give PyTorch's features, in every format and for every kind of network."""

import importlib.util
import json
import shutil

import numpy as np
import pytest
import torch
from small_models import ALL, FRAGILE, MEAN, NETWORKS, REDUCED, ROTARY, STD, STRUCTURES, preprocessing, save

from amg_plugin.checkpoint import save_checkpoint
from amg_plugin.deploy import parity as comparison
from amg_plugin.deploy.export import ExportOptions, export
from amg_plugin.deploy.exported_file import open_exported
from amg_plugin.deploy.probe import crashes
from amg_plugin.deploy.writers import failing_as
from amg_plugin.errors import CheckpointError, RunError
from amg_plugin.pruning import current_plan
from amg_plugin.registries.formats import FORMATS as ROWS
from amg_plugin.registries.formats import file_format
from amg_plugin.utils.files import sha256
from amg_plugin.version import __version__

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

no_openvino = pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="openvino is not installed")
FORMATS = ["onnx", "torchscript", "exported_program", pytest.param("openvino", marks=no_openvino)]
#: What is recorded takes seconds a network; the variants of an export are tried on few of them.
VARIED = [("onnx", "transreid"), ("torchscript", "kv"), pytest.param("openvino", "la", marks=no_openvino)]


def reference(kind, images, **labels):
    with torch.no_grad():
        return ALL[kind]()(images, **labels).numpy()


def some_images(kind, count):
    return torch.randn(count, 3, *ALL[kind]().spec.image_size, generator=torch.Generator().manual_seed(count))


def assert_close(found, expected, limit=1e-5):
    assert np.abs(found - expected).max() <= limit * np.abs(expected).max()


@pytest.mark.parametrize(
    ("form", "kind"),
    [
        *((form, kind) for form in FORMATS[:-1] for kind in [*NETWORKS, *REDUCED]),
        *(pytest.param("openvino", kind, marks=no_openvino) for kind in [*NETWORKS, *REDUCED, *FRAGILE]),
    ],
)
def test_features_are_pytorchs_for_any_batch_size(exported, form, kind):
    path, outcome = exported(kind, form, dynamic_batch=True)
    file = open_exported(path, trusted=True)
    assert file.info.batch is None
    for count in (1, 2, 5):
        images = some_images(kind, count)
        labels = {"camids": torch.arange(count) % 3} if kind == "transreid" else {}
        found = file.features(images.numpy(), {name: value.numpy() for name, value in labels.items()})
        assert_close(found, reference(kind, images, **labels))
    assert outcome["comparison"]["batches"] == [1, 2, 5]
    assert outcome["comparison"]["relative_difference"] < 1e-5


@pytest.mark.parametrize("kind", STRUCTURES)
def test_onnx_files_of_every_structure_agree_with_pytorch(exported, kind):
    path, _ = exported(kind, "onnx", dynamic_batch=True)
    images = some_images(kind, 3)
    assert_close(open_exported(path).features(images.numpy(), {}), reference(kind, images))


@pytest.mark.parametrize("kind", ROTARY)
@pytest.mark.parametrize("form", FORMATS)
def test_files_of_networks_with_rotary_positions_agree_with_pytorch(exported, form, kind):
    path, _ = exported(kind, form, dynamic_batch=True)
    images = some_images(kind, 3)
    assert_close(open_exported(path, trusted=True).features(images.numpy(), {}), reference(kind, images))


@pytest.mark.parametrize("form", ["onnx", "exported_program", pytest.param("openvino", marks=no_openvino)])
def test_without_dynamic_batch_the_file_takes_one_image_and_many_in_turn(exported, form):
    path, _ = exported("block", form)
    file = open_exported(path, trusted=True)
    assert file.info.batch == 1
    images = some_images("block", 3)
    assert_close(file.features(images.numpy()), reference("block", images))
    with pytest.raises(Exception, match=r"(?i)dimension|shape|size"):
        file.run([images.numpy()])


@no_openvino
@pytest.mark.parametrize("kind", [*NETWORKS, *FRAGILE])
def test_openvino_runs_every_kind_of_network_without_dynamic_batch(exported, kind):
    path, _ = exported(kind, "openvino")
    images = some_images(kind, 2)
    labels = {"camids": torch.arange(2)} if kind == "transreid" else {}
    found = open_exported(path, trusted=True).features(
        images.numpy(), {name: value.numpy() for name, value in labels.items()}
    )
    assert_close(found, reference(kind, images, **labels))


@no_openvino
def test_a_network_that_openvino_crashes_on_is_written_for_any_number_of_images(checkpoint, tmp_path, monkeypatch):
    answers, said = iter([True, False]), []
    monkeypatch.setattr("amg_plugin.deploy.export.crashes", lambda path: next(answers))
    outcome = export(checkpoint("dense"), ExportOptions("openvino", tmp_path / "m.xml"), said.append)
    assert outcome["info"]["batch"] is None
    assert outcome["comparison"]["batches"] == [1, 2, 5]
    assert "crashes on this network" in said[1]


@no_openvino
@pytest.mark.parametrize("dynamic_batch", [True, False])
def test_a_crash_of_openvino_ends_the_export_and_leaves_nothing(checkpoint, tmp_path, monkeypatch, dynamic_batch):
    monkeypatch.setattr("amg_plugin.deploy.probe._CODE", "import os; os.abort()")
    with pytest.raises(RunError, match="openvino crashes"):
        export(checkpoint("dense"), ExportOptions("openvino", tmp_path / "m.xml", dynamic_batch=dynamic_batch))
    assert not list(tmp_path.iterdir())


def test_a_crash_is_told_from_an_exception(checkpoint, monkeypatch):
    assert not crashes(checkpoint("dense"))
    monkeypatch.setattr("amg_plugin.deploy.probe._CODE", "import os; os.abort()")
    assert crashes(checkpoint("dense"))


def ancestors(graph, names):
    """Names of everything that ``names`` are computed from, themselves included."""
    made_by = {output: node for node in graph.node for output in node.output}
    found, todo = set(), list(names)
    while todo:
        name = todo.pop()
        if name not in found:
            found.add(name)
            todo += list(made_by[name].input) if name in made_by else []
    return found


@pytest.mark.parametrize("kind", list(NETWORKS))
def test_tokens_are_gathered_by_constant_indices(exported, kind):
    graph = onnx.load(str(exported(kind, "onnx", dynamic_batch=True)[0])).graph
    constants = {tensor.name for tensor in graph.initializer}
    constants |= {node.output[0] for node in graph.node if node.op_type == "Constant"}
    gathers = [node for node in graph.node if node.op_type.startswith("Gather")]
    if kind in ("block", "kv", "merge"):
        assert any(node.input[0] not in constants for node in gathers)
    for node in gathers:
        # Camera labels, which look up a row of a constant, are the one exception.
        assert node.input[1] in constants or ("camids" in ancestors(graph, node.input[1:2]) - {"images"})
    dynamic = {"NonZero", "Where", "Loop", "If", "Scan", "TopK", "ScatterND", "ScatterElements", "Compress", "Unique"}
    used = {node.op_type for node in graph.node if "images" in ancestors(graph, node.input)}
    assert not used & dynamic


@pytest.mark.parametrize("kind", ["block", "kv", "merge", "la"])
def test_only_the_number_of_images_is_ever_asked_for(exported, kind):
    graph = onnx.load(str(exported(kind, "onnx", dynamic_batch=True)[0])).graph
    for node in graph.node:
        if node.op_type == "Shape":
            span = {attribute.name: attribute.i for attribute in node.attribute}
            assert (span.get("start", 0), span.get("end")) == (0, 1)
    fixed = onnx.load(str(exported("block", "onnx")[0])).graph
    assert "Shape" not in {node.op_type for node in fixed.node}


@pytest.mark.parametrize("form", FORMATS)
def test_the_file_says_how_images_are_prepared_and_what_it_was_made_from(exported, checkpoint, form):
    path, outcome = exported("block", form, dynamic_batch=True)
    assert file_format(path) == form
    info = open_exported(path, trusted=True).info
    model = NETWORKS["block"]()
    assert info.preprocessing == preprocessing(model)
    assert info.plan == current_plan(model).to_dict()
    assert info.spec == model.spec.to_dict()
    assert info.source == {"name": "block.pth", "sha256": sha256(checkpoint("block")), "metrics": {}}
    assert (info.file_format, info.precision, info.inputs) == (form, "fp32", ("images",))
    assert info.versions["amg_plugin"] == __version__
    assert "secret" not in info.to_json()
    assert info.config == {"data": {"height": 1}, "amg": {"weights": "vit.pth", "distill": {"teacher": "dense.pth"}}}
    assert outcome["info"] == json.loads(info.to_json())


@pytest.mark.parametrize("form", FORMATS)
def test_no_folder_of_this_machine_is_inside(exported, form):
    path, _ = exported("block", form, dynamic_batch=True)
    if form != "torchscript":  # which notes source files for its tracebacks
        assert str(__import__("amg_plugin").__path__[0]).encode() not in path.read_bytes()


@pytest.mark.parametrize("form", FORMATS)
def test_the_outcome_lies_beside_the_file_and_nothing_else(exported, form):
    path, outcome = exported("block", form, dynamic_batch=True)
    assert json.loads(path.with_name(path.name + ".json").read_text(encoding="utf-8")) == outcome
    others = {path.name, path.name + ".json"} | ({"model.bin"} if form == "openvino" else set())
    assert {entry.name for entry in path.parent.iterdir()} == others
    assert outcome["comparison"]["within"]
    assert outcome["bytes"] >= path.stat().st_size


def per_channel(values):
    return torch.tensor(values)[:, None, None]


#: What a caller does to RGB from 0 to 1.
CALLERS = {
    "network": lambda images: (images - per_channel(MEAN)) / per_channel(STD),
    "unit": lambda images: images,
    "raw255": lambda images: images * 255,
    "imagenet": lambda images: (images - per_channel((0.485, 0.456, 0.406))) / per_channel((0.229, 0.224, 0.225)),
}


@pytest.mark.parametrize(
    ("form", "kind", "given"),
    [
        ("onnx", "transreid", "imagenet"),
        *(("torchscript", "kv", given) for given in CALLERS),
        pytest.param("openvino", "la", "raw255", marks=no_openvino),
    ],
)
def test_normalisation_of_input_and_output_can_be_built_in(exported, kind, form, given):
    path, _ = exported(kind, form, dynamic_batch=True, input=given, l2_normalize=True)
    size = ALL[kind]().spec.image_size
    images = torch.rand(3, 3, *size, generator=torch.Generator().manual_seed(0))
    expected = reference(kind, CALLERS["network"](images))
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    file = open_exported(path, trusted=True)
    assert file.info.input == given
    assert_close(file.features(CALLERS[given](images).numpy()), expected)


@pytest.mark.parametrize(
    ("form", "kind"), [("onnx", "transreid"), ("onnx", "merge"), ("exported_program", "block"), *VARIED[1:]]
)
def test_half_precision_halves_the_weights_and_stays_within_its_limit(exported, form, kind):
    _, whole = exported(kind, form, dynamic_batch=True)
    path, half = exported(kind, form, dynamic_batch=True, fp16=True)
    assert open_exported(path, trusted=True).info.precision == "fp16"
    assert 1e-6 < half["comparison"]["relative_difference"] <= 1e-2
    assert half["bytes"] < whole["bytes"]


@pytest.mark.parametrize("form", FORMATS)
def test_camera_labels_are_an_input_and_unseen_ones_are_negative(exported, form):
    file = open_exported(exported("transreid", form, dynamic_batch=True)[0], trusted=True)
    assert file.info.inputs == ("images", "camids")
    images = some_images("transreid", 1)
    by_camera = [file.features(images.numpy(), {"camids": np.array([camera])}) for camera in (-1, 0, 1)]
    assert np.abs(by_camera[0] - by_camera[1]).max() > 1e-3
    assert np.abs(by_camera[1] - by_camera[2]).max() > 1e-3
    assert np.array_equal(file.features(images.numpy()), by_camera[0])


@no_openvino
@pytest.mark.parametrize("options", [{}, {"fp16": True}])
def test_weights_of_another_openvino_file_are_refused(checkpoint, exported, tmp_path, options):
    ours = exported("block", "openvino", **options)[0]
    theirs = exported("dense", "openvino", **options)[0]
    copy = tmp_path / "model.xml"
    shutil.copy(ours, copy)
    shutil.copy(ours.with_suffix(".bin"), tmp_path)
    open_exported(copy, trusted=True)
    shutil.copy(theirs.with_suffix(".bin"), tmp_path)
    with pytest.raises(CheckpointError, match=r"model.bin' does not belong to 'model.xml'"):
        open_exported(copy, trusted=True)


@pytest.mark.parametrize("form", FORMATS)
def test_a_disk_that_is_full_ends_the_export_with_one_sentence(checkpoint, tmp_path, monkeypatch, form):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    monkeypatch.setattr("onnx_ir.save", full)
    if form == "openvino":
        monkeypatch.setattr("openvino.save_model", full)
    options = ExportOptions(form, tmp_path / "new" / f"model{ROWS.row(form).suffixes[0]}")
    with pytest.raises(RunError, match="No space left on device"):
        export(checkpoint("dense"), options)
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_that_gives_no_numbers_is_blamed_itself(tmp_path):
    model = ALL["dense"]()
    torch.nn.init.constant_(model.backbone.norm.weight, float("nan"))
    path = save(model, tmp_path / "nan.pth")
    with pytest.raises(RunError, match=r"nan.pth' itself gives features that are not finite"):
        export(path, ExportOptions("torchscript", tmp_path / "model.pt"))


def test_the_innermost_error_of_an_exporter_is_told():
    with pytest.raises(RunError, match=r"failed \(ValueError\): the reason"), failing_as("ONNX"):
        try:
            raise ValueError("the reason")
        except ValueError as error:
            raise KeyError("a wrapper") from error


@pytest.mark.parametrize("opset", [18, 20])
def test_the_opset_is_the_one_asked_for(exported, opset):
    path, outcome = exported("block", "onnx", opset=opset)
    assert {entry.domain: entry.version for entry in onnx.load(str(path)).opset_import}[""] == opset
    assert outcome["opset"] == opset


def test_a_file_that_differs_by_more_than_the_limit_is_removed(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setitem(comparison.LARGEST_DIFFERENCE, "fp16", 1e-9)
    (tmp_path / "model.pt").write_text("what was there before")
    options = ExportOptions("torchscript", tmp_path / "model.pt", fp16=True)
    with pytest.raises(RunError, match="was not written"):
        export(checkpoint("dense"), options)
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.pt"]
    assert (tmp_path / "model.pt").read_text() == "what was there before"


def test_a_file_with_features_that_are_not_finite_is_removed(tmp_path, checkpoint, monkeypatch):
    def broken(self, images, labels=None):
        return np.full((len(images), self.info.feature_dim), np.nan, dtype=np.float32)

    monkeypatch.setattr("amg_plugin.deploy.runtimes.TorchScriptFile.features", broken)
    with pytest.raises(RunError, match="not finite"):
        export(checkpoint("dense"), ExportOptions("torchscript", tmp_path / "model.pt"))
    assert not list(tmp_path.iterdir())


def test_what_a_checkpoint_was_made_with_is_told_once(tmp_path, caplog):
    model = ALL["dense"]()
    config = {"amg": {"imports": ["my_scorers.py"]}}
    save_checkpoint(tmp_path / "dense.pth", model, preprocessing=preprocessing(model), config=config)
    export(tmp_path / "dense.pth", ExportOptions("torchscript", tmp_path / "dense.torchscript"))
    (told,) = [record.getMessage() for record in caplog.records if "my_scorers.py" in record.getMessage()]
    assert "dense.pth" in told
