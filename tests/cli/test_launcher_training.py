"""`python -m amg_plugin SCRIPT` on a script that knows nothing of the plugin, in both layouts of torchreid."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from amg_plugin.data.synthetic.reid import SyntheticSpec, write_synthetic_reid

SCRIPT = Path(__file__).resolve().parents[1] / "torchreid_script.py"

AMG = """\
amg:
  arch: vit_tiny_patch16_224
  image_size: [32, 16]
  override: {embed_dim: 24, depth: 2, num_heads: 2, patch_size: 8}
"""

IDENTITIES, CAMERAS, SHOTS = 3, 2, 4


def draw_market1501(root: Path) -> None:
    """Write noise images in Market-1501's folders and names: as many people as a test needs."""
    rng = np.random.default_rng(0)
    folder = root / "market1501" / "Market-1501-v15.09.15"
    for part, first, shots in (("bounding_box_train", 1, SHOTS), ("query", 9, 1), ("bounding_box_test", 9, SHOTS)):
        (folder / part).mkdir(parents=True)
        for pid in range(first, first + IDENTITIES):
            for camera in range(1, CAMERAS + 1):
                for shot in range(shots):
                    pixels = rng.integers(0, 256, (32, 16, 3), dtype=np.uint8)
                    Image.fromarray(pixels).save(folder / part / f"{pid:04}_c{camera}s1_{shot:06}_00.jpg")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("reid-data")
    draw_market1501(root)
    spec = SyntheticSpec(train_ids=3, test_ids=3, cameras=2, cameras_per_id=2, width=16, height=32)
    write_synthetic_reid(root, spec)
    return root


@pytest.fixture
def project(tmp_path):
    """A user's folder: the script in a folder of its own, with the module that it imports beside it."""
    (tmp_path / "scripts").mkdir()
    shutil.copy(SCRIPT, tmp_path / "scripts" / "main.py")
    (tmp_path / "scripts" / "neighbour.py").write_text("LEARNING_RATE = 0.0003\n", encoding="utf-8")
    (tmp_path / "amg.yaml").write_text(AMG, encoding="utf-8")
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layout", "loss", "source"),
    [("pypi", "softmax", "market1501"), ("git", "triplet", "synthetic_reid")],
    indirect=["layout"],
)
def test_an_unchanged_script_trains_and_tests_the_model_of_the_amg_node(layout, root, project, loss, source):
    result = layout.run(
        *("-m", "amg_plugin", "--amg-config", "amg.yaml", Path("scripts", "main.py")),
        *("--root", root, "-s", source, "--save-dir", "log", "--loss", loss),
        cwd=project,
    )
    assert result.returncode == 0, result.stderr
    facts = json.loads((project / "log" / "facts.json").read_text(encoding="utf-8"))
    assert facts["depth"] == 2
    assert facts["wrapped"] == "DataParallel"
    assert facts["flops"] > 0
    assert 0 < facts["params"] < 30_000
    assert 0 <= facts["rank1"] <= 1
    assert list((project / "log" / "model").glob("model.pth.tar-*"))


@pytest.mark.slow
def test_a_mistake_found_inside_the_script_is_one_sentence(any_layout, project):
    result = any_layout.run(
        *("-m", "amg_plugin", "--amg-config=amg.yaml", Path("scripts", "main.py")),
        *("--root", "nowhere", "-s", "synthetic_reid", "--save-dir", "log", "--loss", "softmax"),
        cwd=project,
    )
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert "amg-reid: error: The data set synthetic_reid is expected in" in result.stderr.splitlines()[-1]


@pytest.mark.slow
def test_without_torchreid_the_launcher_says_so(any_layout, project):
    result = any_layout.run("-m", "amg_plugin", Path("scripts", "main.py"), cwd=project, hide=["torchreid"])
    assert result.returncode == 2
    assert result.stderr.splitlines() == [
        "amg-reid: error: torchreid is not installed: pip install torchreid",
    ]
