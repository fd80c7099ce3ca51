"""Commands give no figures and no features out of NaN."""

import pytest
import torch

import amg_plugin
from amg_plugin.checkpoint import read_checkpoint
from amg_plugin.errors import RunError


@pytest.fixture(scope="module")
def broken(trained, tmp_path_factory):
    """The trained checkpoint with NaN in the last norm."""
    path = tmp_path_factory.mktemp("broken") / "nan.pth"
    content = torch.load(trained.last, weights_only=True)
    content["weights"]["backbone.norm.weight"].fill_(float("nan"))
    torch.save(content, path)
    return path


@pytest.mark.parametrize(
    "words",
    [
        ["test", "--weights", "BROKEN"],
        ["test", "--weights", "GOOD", "--gallery-weights", "BROKEN"],
        ["test", "--weights", "BROKEN", "--gallery-weights", "GOOD"],
        ["compare", "--checkpoint", "BROKEN"],
    ],
    ids=["test", "gallery", "query", "compare"],
)
def test_figures(words, broken, trained, tiny_root, tmp_path, amg_reid):
    files = {"BROKEN": broken, "GOOD": trained.last}
    save_dir = [] if words[0] == "compare" else ["data.save_dir", tmp_path / "out"]
    rest = ["-t", "synthetic_reid", "--root", tiny_root, *save_dir]
    if words[0] == "compare":
        rest += ["use_gpu", "False", "data.workers", "0", "--output", tmp_path / "out.csv"]
    outcome = amg_reid(*(files.get(word, word) for word in words), *rest)
    assert outcome.status == 1, outcome.err
    assert "are NaN or infinite for" in outcome.err and ".jpg" in outcome.err
    assert not (tmp_path / "out" / "result.json").exists() and not (tmp_path / "out.csv").exists()


def test_features(broken, tiny_root):
    images = sorted((tiny_root / "synthetic_reid" / "query").glob("*.jpg"))[:3]
    extract = amg_plugin.FeatureExtractor(broken)
    with pytest.raises(RunError, match=rf"for 3 of 3 images: {images[0]}, {images[1]}"):
        extract(images)
    size = read_checkpoint(broken).preprocessing.image_size
    with pytest.raises(RunError, match="for 2 of 2 images: number 0, number 1"):
        extract(torch.zeros(2, 3, *size))
