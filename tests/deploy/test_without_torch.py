"""What works on a device where torch, torchvision, torchreid, timm and yaml do not exist."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import amg_plugin

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

BLOCKED = [
    *("torch", "torchvision", "torchreid", "timm", "yacs", "yaml", "tqdm", "scipy", "cv2", "onnx", "matplotlib"),
    *("safetensors", "tensorboard", "gdown"),
]
SCRIPT = """
import json, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked}:
            raise ModuleNotFoundError(f"No module named '{{name}}'", name=name)

sys.meta_path.insert(0, Blocked())
import amg_plugin
from amg_plugin.errors import MissingDependencyError

extract = amg_plugin.FeatureExtractor({model!r})
features = extract({images!r})
try:
    amg_plugin.FeatureExtractor({checkpoint!r})
    message = ""
except MissingDependencyError as error:
    message = str(error)
loaded = [name for name in {blocked} if name in sys.modules]
print(json.dumps([features.tolist(), type(features).__name__, message, loaded]))
"""


COMMAND = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked}:
            raise ModuleNotFoundError(f"No module named '{{name}}'", name=name)

sys.meta_path.insert(0, Blocked())
from amg_plugin.cli.main import main

sys.exit(main(["train"]))
"""


def run(code, folder):
    """A process of its own, which finds this package."""
    env = {**os.environ, "PYTHONPATH": str(Path(amg_plugin.__file__).parent.parent), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=env, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("blocked", "missing", "package"), [(BLOCKED, "yaml", "PyYAML"), (["torch"], "torch", "torch")]
)
def test_commands_say_what_is_missing(tmp_path, blocked, missing, package):
    outcome = run(COMMAND.format(blocked=blocked), tmp_path)
    assert outcome.returncode == 2
    said = f"amg-reid: error: this needs '{missing}', which is not installed: pip install {package}.\n"
    assert outcome.stderr == said


def test_an_onnx_file_needs_onnxruntime_numpy_and_pillow_only(exported, checkpoint, tmp_path):
    path, _ = exported("block", "onnx", dynamic_batch=True)
    images = [str(tmp_path / f"{index}.png") for index in range(3)]
    for index, image in enumerate(images):
        Image.fromarray(np.random.default_rng(index).integers(0, 256, (40, 20, 3), dtype=np.uint8)).save(image)
    code = SCRIPT.format(blocked=BLOCKED, model=str(path), images=images, checkpoint=str(checkpoint("block")))
    outcome = run(code, tmp_path)
    assert outcome.returncode == 0, outcome.stderr
    features, kind, message, loaded = json.loads(outcome.stdout.splitlines()[-1])
    assert kind == "ndarray"
    assert loaded == []
    expected = amg_plugin.FeatureExtractor(checkpoint("block"), output="numpy")(images)
    assert np.abs(np.array(features) - expected).max() <= 1e-5 * np.abs(expected).max()
    assert message.endswith("and a checkpoint needs 'torch', which is not installed: pip install torch.")


#: What Python runs first in every process, those that the plugin starts too.
HIDES = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked}:
            raise ModuleNotFoundError(f"No module named '{{name}}'", name=name)

sys.meta_path.insert(0, Blocked())
"""

ON_THE_DEVICE = """
import contextlib, io, json, sys
import amg_plugin
from amg_plugin.cli.main import main

def said(*words):
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        return main(words), out.getvalue()

model, images = sys.argv[1], sys.argv[2:]
forms = ["litert" if model.endswith(".tflite") else "onnx"]
bench = ["bench", "--rounds", "2", "--warmup", "1", "--output", "edge"]
found = {
    "doctor": said("doctor"),
    "bench": said(*bench, model),
    "eager": said(*bench, model, "--forms", "eager", *forms),
    "structure": said(*bench, "--model", "vit_amg_tiny"),
}
gallery = amg_plugin.Gallery(amg_plugin.FeatureExtractor(model))
gallery.enrol(images, images)
gallery.save("g.npz")
found["nearest"] = [matches[0].name for matches in gallery.load("g.npz", gallery.extract).search(images)]
found["loaded"] = "torch" in sys.modules
print(json.dumps(found))
"""


no_litert = pytest.mark.skipif(find_spec("litert_torch") is None, reason="litert_torch is not installed")


@pytest.fixture(scope="module", params=["onnx", pytest.param("litert", marks=no_litert)])
def on_the_device(exported, tmp_path_factory, request):
    """What was said and found in a process that sees none of the packages."""
    folder = tmp_path_factory.mktemp("device")
    (folder / "hidden").mkdir()
    (folder / "hidden" / "sitecustomize.py").write_text(HIDES.format(blocked=BLOCKED), encoding="utf-8")
    images = [folder / f"{index}.png" for index in range(3)]
    for index, image in enumerate(images):
        Image.fromarray(np.random.default_rng(index).integers(0, 256, (40, 20, 3), dtype=np.uint8)).save(image)
    path, _ = exported("block", request.param, dynamic_batch=request.param == "onnx")
    home = Path(amg_plugin.__file__).parent.parent
    outcome = subprocess.run(
        [sys.executable, "-c", ON_THE_DEVICE, str(path), *map(str, images)],
        env={**os.environ, "PYTHONPATH": f"{folder / 'hidden'}{os.pathsep}{home}", "PYTHONDONTWRITEBYTECODE": "1"},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert outcome.returncode == 0, outcome.stderr
    return {**json.loads(outcome.stdout.splitlines()[-1]), "images": list(map(str, images)), "folder": folder}


def test_the_doctor_of_a_device_misses_no_torch(on_the_device):
    status, said = on_the_device["doctor"]
    assert status == 0
    assert "everything needed is there" in said
    assert "onnxruntime" in said
    assert "PROBLEM" not in said


def test_a_device_measures_an_exported_file(on_the_device):
    status, said = on_the_device["bench"]
    assert status == 0, said
    result = json.loads((on_the_device["folder"] / "edge.json").read_text(encoding="utf-8"))
    (row,) = result["rows"]
    assert row["milliseconds"] > 0
    assert row["macs"] is None
    assert row["bytes"] > 0


@pytest.mark.parametrize("what", ["eager", "structure"])
def test_a_device_says_what_else_needs_torch(on_the_device, what):
    status, said = on_the_device[what]
    assert status == 2
    assert "needs 'torch', which is not installed" in said


def test_a_device_has_a_gallery(on_the_device):
    assert on_the_device["nearest"] == on_the_device["images"]
    assert not on_the_device["loaded"]
