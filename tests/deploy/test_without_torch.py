"""An ONNX file gives its features where torch, torchvision, torchreid and timm do not exist."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import amg_plugin

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

BLOCKED = ["torch", "torchvision", "torchreid", "timm", "yacs", "tqdm", "scipy", "cv2", "onnx", "matplotlib"]
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


@pytest.mark.parametrize(("blocked", "missing"), [(BLOCKED, "yacs"), (["torch"], "torch")])
def test_commands_say_what_is_missing(tmp_path, blocked, missing):
    outcome = run(COMMAND.format(blocked=blocked), tmp_path)
    assert outcome.returncode == 2
    said = f"amg-reid: error: this needs '{missing}', which is not installed: pip install {missing}.\n"
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
