"""Files of ``--plain``: fixed shapes, operators from the list, and refusals by name."""

import re
from pathlib import Path

import numpy as np
import pytest
from small_models import ALL

from amg_plugin.deploy.export import ExportOptions, export
from amg_plugin.deploy.plain import OPERATORS, check_plain
from amg_plugin.errors import InputError, RunError

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


@pytest.mark.parametrize("kind", ["block", "merge"])
def test_a_plain_file_has_fixed_shapes_and_operators_of_the_list(exported, kind):
    path, outcome = exported(kind, "onnx", plain=True)
    graph = onnx.load(str(path)).graph
    assert {node.op_type for node in graph.node} <= set(OPERATORS)
    assert [size.dim_value for size in graph.input[0].type.tensor_type.shape.dim] == [
        1,
        3,
        *ALL[kind]().spec.image_size,
    ]
    assert outcome["plain"] and outcome["info"]["batch"] == 1


def test_the_list_is_in_the_documents():
    page = (Path(__file__).parents[2] / "docs" / "export.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"`(\w+)`", page.partition("The operators of a plain file:")[2].partition(".")[0])) == [
        *sorted(OPERATORS)
    ]


def model_of(path, nodes, *, open_size=False, more=()):
    make, kind = onnx.helper, onnx.TensorProto
    ends = [
        make.make_tensor_value_info(name, kind.FLOAT, ["batch" if open_size else 1, 4])
        for name in ("images", "features")
    ]
    weight = onnx.numpy_helper.from_array(np.ones((4,), np.float32), "w")
    graph = make.make_graph(nodes, "g", [ends[0], *more], ends[1:], [weight])
    onnx.save(make.make_model(graph, opset_imports=[make.make_opsetid("", 18)], ir_version=10), str(path))
    return path


def test_other_operators_are_named(tmp_path):
    nodes = [
        onnx.helper.make_node("HardSwish", ["images"], ["x"]),
        onnx.helper.make_node("Add", ["x", "w"], ["features"]),
    ]
    with pytest.raises(RunError, match=r"operators that a plain file may not have, HardSwish; allowed are .*Softmax"):
        check_plain(model_of(tmp_path / "m.onnx", nodes))


def test_open_shapes_are_named(tmp_path):
    nodes = [onnx.helper.make_node("Add", ["images", "w"], ["features"])]
    check_plain(model_of(tmp_path / "m.onnx", nodes))
    with pytest.raises(RunError, match="shape is not fixed, images, features"):
        check_plain(model_of(tmp_path / "m.onnx", nodes, open_size=True))


def test_gathers_by_computed_indices_are_named(tmp_path):
    index = onnx.helper.make_tensor_value_info("place", onnx.TensorProto.INT64, [4])
    nodes = [onnx.helper.make_node("Gather", ["images", "place"], ["features"], "picks", axis=1)]
    with pytest.raises(RunError, match="gathers by indices that are not constant, picks"):
        check_plain(model_of(tmp_path / "m.onnx", nodes, more=[index]))


@pytest.mark.parametrize(
    ("form", "given", "message"),
    [
        ("torchscript", {}, "--plain is for onnx, not for torchscript"),
        ("onnx", {"dynamic_batch": True}, "leave --dynamic-batch and --for out"),
        ("onnx", {"client": "boxmot"}, "leave --dynamic-batch and --for out"),
        ("onnx", {"fp16": True}, "leave --fp16 and --int8 out"),
        ("onnx", {"int8": "folder"}, "leave --fp16 and --int8 out"),
    ],
)
def test_what_contradicts_it_is_refused(tmp_path, form, given, message):
    output = tmp_path / {"onnx": "m.onnx", "torchscript": "m.pt"}[form]
    with pytest.raises(InputError, match=message):
        ExportOptions(form, output, plain=True, **given).check()


def test_networks_with_cameras_are_refused(checkpoint, tmp_path):
    with pytest.raises(InputError, match="takes camids with images, which --plain has no room for"):
        export(checkpoint("transreid"), ExportOptions("onnx", tmp_path / "m.onnx", plain=True))
