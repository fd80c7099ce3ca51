"""Descriptions that do not belong to their file are refused in one sentence."""

import json
from pathlib import Path

import numpy as np
import pytest

from amg_plugin.deploy.exported_file import ExportInfo, open_exported
from amg_plugin.errors import AMGError, CheckpointError
from amg_plugin.registries.formats import FORMATS


@pytest.fixture
def description(exported):
    """Plain data of a good description."""
    return exported("block", "torchscript")[1]["info"]


def read(values):
    return ExportInfo.from_json(json.dumps(values), "m.onnx")


def test_a_description_reads_back(description):
    assert read(description).to_dict() == description


@pytest.mark.parametrize(("normalizes", "given"), [(True, "unit"), (False, "network")])
def test_the_older_word_for_the_input_is_understood(description, normalizes, given):
    older = {name: value for name, value in description.items() if name != "input"}
    assert read({**older, "normalize_input": normalizes}).input == given


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("file_format", "tflite"),
        ("precision", None),
        ("batch", "x"),
        ("batch", 0),
        ("batch", True),
        ("inputs", ["images", "camids"]),
        ("inputs", []),
        ("inputs", [["images"]]),
        ("input", "bgr"),
        ("input", True),
        ("feature_dim", -1),
        ("preprocessing", None),
        ("spec", None),
        ("spec", {"side_information": 3}),
        ("config", {"data": 3}),
    ],
)
def test_impossible_entries_are_named(description, name, value):
    with pytest.raises(CheckpointError, match=rf"'m\.onnx' has {name}.* must be "):
        read({**description, name: value})


@pytest.mark.parametrize("inputs", [None, 3, "images"])
def test_inputs_that_are_no_list_are_refused(description, inputs):
    with pytest.raises(CheckpointError, match=r"m\.onnx"):
        read({**description, "inputs": inputs})


@pytest.fixture
def rewritten(exported, tmp_path):
    """Gives an ONNX file with other entries in its description."""
    onnx = pytest.importorskip("onnx")
    for package in ("onnxruntime", "onnxscript"):
        pytest.importorskip(package)

    def of(**entries):
        model = onnx.load(str(exported("block", "onnx")[0]))
        values = {**json.loads(model.metadata_props[0].value), **entries}
        onnx.helper.set_model_props(model, {"amg_plugin": json.dumps(values)})
        onnx.save(model, str(tmp_path / "m.onnx"))
        return tmp_path / "m.onnx"

    return of


def test_a_description_of_another_graph_is_refused(rewritten, description):
    taller = {**description["preprocessing"], "height": 64}
    for entries in ({"batch": None}, {"batch": 2}, {"feature_dim": 31}, {"preprocessing": taller}):
        with pytest.raises(CheckpointError, match="but its description says"):
            open_exported(rewritten(**entries))
    with pytest.raises(CheckpointError, match="is described as openvino, but is onnx"):
        open_exported(rewritten(file_format="openvino"))


def test_an_onnx_file_whose_texts_or_constants_are_damaged_gives_an_error_of_the_plugin(rewritten, tmp_path):
    onnx = pytest.importorskip("onnx")
    content = rewritten().read_bytes()
    place = content.index(b"amg_plugin.export")
    (tmp_path / "text.onnx").write_bytes(content[:place] + b"\xff" + content[place + 1 :])
    with pytest.raises(CheckpointError, match=r"text\.onnx' is damaged"):
        open_exported(tmp_path / "text.onnx")
    model = onnx.load_from_string(content)
    gather = next(node for node in model.graph.node if node.op_type == "Gather")
    wrong = onnx.numpy_helper.from_array(np.array([10**6]), "wrong")
    model.graph.initializer.append(wrong)
    gather.input[1] = "wrong"
    onnx.save(model, str(tmp_path / "run.onnx"))
    with pytest.raises(AMGError, match=r"run\.onnx'"):
        file = open_exported(tmp_path / "run.onnx")
        file.features(np.zeros((1, 3, *file.info.image_size), dtype=np.float32))


@pytest.mark.parametrize(("form", "options"), [("torchscript", {}), ("exported_program", {"dynamic_batch": True})])
def test_an_archive_with_a_description_of_another_graph_is_refused(exported, tmp_path, form, options):
    import zipfile

    path, outcome = exported("block", form, **options)
    taller = {**outcome["info"]["preprocessing"], "height": 64}
    text = json.dumps({**outcome["info"], "preprocessing": taller})
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(tmp_path / path.name, "w") as target:
        for name in source.namelist():
            target.writestr(name, text if name.endswith("amg_plugin.json") else source.read(name))
    with pytest.raises(CheckpointError, match="description says"):
        open_exported(tmp_path / path.name, trusted=True)


@pytest.mark.parametrize("row", FORMATS.rows.values(), ids=list(FORMATS))
def test_the_page_on_export_names_every_format_with_its_files(row):
    page = Path(__file__).resolve().parents[2] / "docs" / "export.md"
    if not page.is_file():
        pytest.skip("the tests do not run from a checkout")
    (line,) = (line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith(f"| `{row.name}` |"))
    assert all(f"`{suffix}`" in line for suffix in (row.suffixes[0], *row.companions))
    assert line.count("yes") == bool(row.half) + bool(row.quantiser)
