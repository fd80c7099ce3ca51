"""Files of strangers: a crafted file of each kind is refused, and nothing that is in it runs."""

import shutil
import zipfile

import pytest
import torch
from small_models import MEAN, NETWORKS, STD, preprocessing

import amg_plugin
from amg_plugin.checkpoint import read_checkpoint
from amg_plugin.cli.main import main
from amg_plugin.config import load_config
from amg_plugin.deploy.exported_file import ExportInfo, open_exported
from amg_plugin.deploy.probe import crashes
from amg_plugin.errors import AMGError, CheckpointError, ConfigError, InputError
from amg_plugin.models.weights import read_state_dict
from amg_plugin.registries import FORMATS
from amg_plugin.registries.formats import file_format


class Marker:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return type(self.path).mkdir, (self.path,)


@pytest.fixture
def marker(tmp_path):
    """What exists once something of a file has run."""
    return tmp_path / "it ran"


@pytest.fixture
def script(tmp_path, marker):
    """A TorchScript archive that says it is one of ours and writes a file when it is opened."""

    class Writes(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(2))
            self.place = str(marker)

        @torch.jit.export
        def __getstate__(self):
            return self.weight, self.place, self.training

        @torch.jit.export
        def __setstate__(self, state: tuple[torch.Tensor, str, bool]):
            self.weight = state[0]
            self.place = state[1]
            self.training = state[2]
            torch.save(self.weight, self.place)

        def forward(self, images):
            return images.flatten(1)[:, :32]

    values = preprocessing(NETWORKS["dense"]())
    info = ExportInfo("torchscript", "fp32", None, ("images",), "network", False, 32, values)
    path = tmp_path / "evil.pt"
    torch.jit.save(torch.jit.script(Writes()), path, _extra_files={"amg_plugin.json": info.to_json()})
    return path


@pytest.fixture
def program(tmp_path, marker, exported):
    """An archive of ours with a pickle in the place of its example inputs."""
    path, _ = exported("block", "exported_program", dynamic_batch=True)
    torch.save((Marker(marker),), tmp_path / "pickle")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(tmp_path / "evil.pt2", "w") as target:
        for name in source.namelist():
            inside = "/sample_inputs/" in name
            target.writestr(name, (tmp_path / "pickle").read_bytes() if inside else source.read(name))
    return tmp_path / "evil.pt2"


@pytest.fixture
def pickled(tmp_path, marker):
    """A checkpoint with an object in it."""
    torch.save({"format": "amg_plugin.checkpoint", "version": 1, "config": Marker(marker)}, tmp_path / "evil.pth")
    return tmp_path / "evil.pth"


EVIL = ["script", "program", "pickled"]


@pytest.fixture(params=EVIL)
def evil(request):
    return request.getfixturevalue(request.param)


def test_the_crafted_archives_run_something_once_somebody_vouches_for_them(script, program, marker):
    open_exported(script, trusted=True)
    assert marker.exists()
    marker.unlink()
    with pytest.raises(CheckpointError):
        open_exported(program, trusted=True)
    assert marker.exists()


def test_programs_are_refused_with_the_reason(script, program, marker):
    for path in (script, program):
        for opens in (open_exported, amg_plugin.FeatureExtractor):
            with pytest.raises(InputError, match=r"runs what is in it.*trusted=True.*--trusted"):
                opens(path)
    assert not marker.exists()


@pytest.mark.parametrize(
    "words",
    [
        ["test", "--weights", "EVIL"],
        ["test", "--weights", "GOOD", "--dense", "EVIL"],
        ["test", "--weights", "GOOD", "--gallery-weights", "EVIL"],
        ["bench", "EVIL"],
        ["compare", "--checkpoint", "EVIL"],
        ["compare", "--weights", "osnet_x0_25=EVIL"],
        ["inspect", "EVIL"],
        ["visualize", "EVIL"],
        ["export", "EVIL", "--format", "torchscript", "--output", "new.pt"],
        ["train", "--weights", "EVIL", "data.save_dir", "log"],
        ["train", "amg.weights", "EVIL", "data.save_dir", "log", "model.name", "vit_amg_tiny"],
        ["prune", "--weights", "GOOD", "amg.distill.teacher", "EVIL", "data.save_dir", "log"],
        ["import", "EVIL", "--output", "new.pth"],
    ],
    ids=lambda words: " ".join(words[:3]),
)
def test_no_command_runs_what_is_in_a_file(words, evil, checkpoint, marker, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    files = {"EVIL": str(evil), "GOOD": str(checkpoint("dense"))}
    for name, file in files.items():
        words = [word.replace(name, file) for word in words]
    try:
        status = main(words)
    except SystemExit as ended:
        status = ended.code
    assert status == 2, capsys.readouterr().err
    assert not marker.exists()


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".pt2", ".onnx", ".xml", ".ts", ".safetensors", ""])
def test_another_name_opens_no_file(evil, suffix, marker, tmp_path):
    path = tmp_path / f"renamed{suffix}"
    shutil.copy(evil, path)
    for opens in (open_exported, read_checkpoint, amg_plugin.FeatureExtractor, read_state_dict, load_config):
        with pytest.raises(AMGError):
            opens(path)
    assert not marker.exists()


def test_a_configuration_makes_no_objects(tmp_path, marker):
    (tmp_path / "evil.yaml").write_text(f"!!python/object/apply:os.mkdir ['{marker}']")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_config(tmp_path / "evil.yaml")
    assert not marker.exists()


def test_an_onnx_file_reads_no_file_outside_its_folder(tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime", minversion="1.24", reason="ONNX Runtime refuses such files from 1.24 on")
    (tmp_path / "secret").write_bytes(bytes(8))
    weight = onnx.TensorProto(name="w", data_type=1, dims=[2], data_location=onnx.TensorProto.EXTERNAL)
    for key, value in (("location", "../secret"), ("offset", "0"), ("length", "8")):
        weight.external_data.add(key=key, value=value)
    ends = [onnx.helper.make_tensor_value_info(name, 1, [2]) for name in "xy"]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Add", ["x", "w"], ["y"])], "g", ends[:1], ends[1:], [weight])
    model = onnx.helper.make_model(graph, ir_version=10, opset_imports=[onnx.helper.make_opsetid("", 18)])
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(CheckpointError, match="cannot be opened by ONNX Runtime"):
        open_exported(tmp_path / "below" / "m.onnx")


def test_an_executorch_program_is_opened_for_those_who_vouch_for_it_only(tmp_path):
    (tmp_path / "m.pte").write_bytes(FLAT + b"ET12")
    with pytest.raises(InputError, match=r"runs what is in it.*trusted=True"):
        open_exported(tmp_path / "m.pte")


# What a file is ------------------------------------------------------------------------------------------------------


#: How a FlatBuffers file begins, in front of what says which one it is.
FLAT = b"\x20\x00\x00\x00"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("m.onnx", b"PK\x03\x04", "named like a file of onnx, but holds none"),
        ("m.xml", b"\x08\x0a", "named like a file of openvino, but holds none"),
        ("m.tflite", b"\x08\x0a", "named like a file of litert, but holds none"),
        ("m.pte", FLAT + b"TFL3", "named like a file of executorch, but holds a file of litert"),
        ("m.onnx", FLAT + b"TFL3", "named like a file of onnx, but holds a file of litert"),
        ("m.pth", FLAT + b"ET12", "named like a checkpoint, but holds a file of executorch"),
        ("m.tflite", ("code/",), "named like a file of litert, but holds a file of torchscript"),
        ("m.pth", ("code/",), "named like a checkpoint, but holds a file of torchscript"),
        ("m.pth", ("archive_format",), "named like a checkpoint, but holds a file of exported_program"),
        ("m.pt2", ("code/",), "named like a file of exported_program, but holds a file of torchscript"),
        ("m.pt", ("code/", "archive_format"), "holds a file of torchscript and a file of exported_program"),
        ("m.onnx", ("code/",), "named like a file of onnx, but holds a file of torchscript"),
    ],
)
def test_a_file_is_what_both_its_name_and_its_content_say(tmp_path, name, content, message):
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        with zipfile.ZipFile(path, "w") as archive:
            for member in content:
                archive.writestr(f"m/{member}", "")
    with pytest.raises(CheckpointError, match=message):
        file_format(path)


@pytest.mark.parametrize("suffix", [".pt", ".pt2", ".ts", ".bin"])
def test_a_checkpoint_stays_one_under_endings_of_torch(checkpoint, tmp_path, suffix):
    path = tmp_path / f"copy{suffix}"
    shutil.copy(checkpoint("block"), path)
    assert file_format(path) is None
    assert read_checkpoint(path).preprocessing.mean == MEAN
    assert amg_plugin.FeatureExtractor(path).info.preprocessing.std == STD


# Runtimes ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def fragile(monkeypatch):
    """Lets the runtime of TorchScript be one that crashes, and its files be open to anyone."""
    from dataclasses import replace

    row = replace(FORMATS.rows["torchscript"], fragile=True, runs_code=False)
    monkeypatch.setitem(FORMATS.rows, "torchscript", row)


def test_a_file_that_takes_its_runtime_down_is_refused(exported, fragile, monkeypatch):
    path, _ = exported("block", "torchscript")
    monkeypatch.setattr("amg_plugin.deploy.probe._CODE", "import os; os.abort()")
    with pytest.raises(CheckpointError, match="takes the runtime of torchscript down"):
        open_exported(path)
    open_exported(path, trusted=True)


def test_a_runtime_that_never_returns_is_lost(checkpoint, monkeypatch):
    monkeypatch.setattr("amg_plugin.deploy.probe.PATIENCE", 0.1)
    assert crashes(checkpoint("dense"))
