"""Checkpoints of torchreid's own script (``model.pth.tar-N``): every command takes those of the plugin's networks."""

import json
import re
from collections import OrderedDict

import numpy as np
import pytest
import torch

from amg_plugin.checkpoint import load_model, read_checkpoint
from amg_plugin.cli.main import main
from amg_plugin.config.active import set_active_amg_config, using_amg_config
from amg_plugin.config.load import apply_amg_node
from amg_plugin.data.synthetic.reid import SyntheticSpec, write_synthetic_reid
from amg_plugin.deploy.extractor import FeatureExtractor
from amg_plugin.errors import CheckpointError
from amg_plugin.models.build import build_network
from amg_plugin.models.spec import spec_from_config

AMG = """\
amg:
  arch: vit_tiny_patch16_224
  image_size: [32, 16]
  override: {embed_dim: 24, depth: 2, num_heads: 2, patch_size: 8}
"""
IDENTITIES = 3


@pytest.fixture(autouse=True)
def _defaults_afterwards():
    yield
    set_active_amg_config(None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("torchreids")
    (folder / "amg.yaml").write_text(AMG, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def network(folder):
    torch.manual_seed(0)
    spec = spec_from_config(apply_amg_node(folder / "amg.yaml"), num_classes=IDENTITIES, loss="softmax")
    return build_network(spec).eval()


def torchreids(model, prefix):
    """What torchreid 0.2.5 saves, optimiser and learning rate included."""
    optimizer = torch.optim.Adam(model.parameters())
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [20])
    return {
        "state_dict": OrderedDict((prefix + name, value) for name, value in model.state_dict().items()),
        "epoch": 60,
        "rank1": np.float32(0.5),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
    }


@pytest.fixture(scope="module", params=["", "module."], ids=["plain", "data_parallel"])
def file(request, folder, network):
    path = folder / f"{request.param or 'plain'}model.pth.tar-60"
    torch.save(torchreids(network, request.param), path)
    return path


@pytest.fixture(scope="module")
def root(folder):
    spec = SyntheticSpec(train_ids=IDENTITIES, test_ids=3, cameras=2, cameras_per_id=2, width=16, height=32)
    write_synthetic_reid(folder, spec)
    return folder


def in_force(folder, *words):
    return main(["--amg-config", str(folder / "amg.yaml"), *map(str, words)])


def test_inspect_shows_the_network(folder, file, capsys):
    assert in_force(folder, "inspect", file, "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["spec"]["overrides"]["embed_dim"] == 24
    assert shown["spec"]["num_classes"] == IDENTITIES


def test_neck_and_classifier_come_along(folder, file, network):
    with using_amg_config(apply_amg_node(folder / "amg.yaml")):
        model, images = load_model(file), torch.randn(2, 3, 32, 16)
    with torch.no_grad():
        assert torch.equal(model(images), network(images))
        assert torch.equal(model.logits(images), network.logits(images))


def test_import_makes_a_checkpoint_that_says_its_structure(folder, file, network, tmp_path):
    assert in_force(folder, "import", file, "--from", "torchreid", "--out", tmp_path / "own.pth") == 0
    set_active_amg_config(None)
    found = read_checkpoint(tmp_path / "own.pth")
    assert all(torch.equal(value, found.weights[name]) for name, value in network.state_dict().items())
    assert found.history == [{"event": "import", "from": "torchreid", "file": file.name, "epoch": 60}]
    assert found.preprocessing.height == 32


def test_the_extractor_takes_it(folder, file, network):
    images = [np.full((32, 16, 3), 100, dtype=np.uint8)]
    with using_amg_config(apply_amg_node(folder / "amg.yaml")):
        features = FeatureExtractor(file)(images)
    assert features.shape == (1, network.feature_dim)


@pytest.mark.parametrize("file", ["module."], indirect=True)
def test_it_is_tested_pruned_and_compared(folder, root, file, tmp_path, capsys):
    data = ["--root", root, "-s", "synthetic_reid", "-t", "synthetic_reid"]
    quick = ["use_gpu", "False", "data.workers", "0"]
    assert in_force(folder, "test", "--weights", file, *data, *quick, "data.save_dir", tmp_path / "test") == 0
    tested = json.loads((tmp_path / "test" / "result.json").read_text(encoding="utf-8"))
    assert tested["config"]["amg"]["override"]["embed_dim"] == 24
    schedule = "[{target: heads, rate: 0.25, iterations: 1, epochs: 0}]"
    words = [*data, *quick, "data.save_dir", tmp_path / "pruned", "amg.schedule", schedule, "train.batch_size", 4]
    assert in_force(folder, "prune", "--weights", file, *words) == 0
    assert read_checkpoint(tmp_path / "pruned" / "last.pth").plan.heads_per_block != (2, 2)
    capsys.readouterr()
    assert in_force(folder, "compare", "--no-eval", "--checkpoint", file) == 0
    assert re.search(r"32x16", capsys.readouterr().out)


@pytest.mark.parametrize("file", ["module."], indirect=True)
def test_the_configuration_given_says_the_structure_too(folder, root, file, tmp_path):
    words = ["--config-file", folder / "amg.yaml", "data.height", 32, "data.width", 16, "use_gpu", False]
    words += ["model.name", "vit_amg_tiny", "data.workers", 0, "data.save_dir", tmp_path]
    words += ["--root", root, "-s", "synthetic_reid", "-t", "synthetic_reid"]
    assert main(["test", "--weights", str(file), *map(str, words)]) == 0


def test_another_structure_is_refused_with_the_way_to_say_it(file):
    with pytest.raises(CheckpointError, match=r"checkpoint of torchreid's.*another network.*--amg-config FILE"):
        read_checkpoint(file)


def test_other_networks_of_torchreid_are_refused_by_name(tmp_path):
    torch.save({"state_dict": {"conv1.weight": torch.ones(2, 3, 7, 7)}, "epoch": 60}, tmp_path / "osnet.pth.tar-60")
    with pytest.raises(CheckpointError, match=r"torchreid's, but not of vit_amg.*compare --weights NAME=FILE"):
        read_checkpoint(tmp_path / "osnet.pth.tar-60")


@pytest.mark.parametrize("words", [["bench", "FILE"], ["import", "EMPTY", "--from", "torchreid", "--out", "own.pth"]])
def test_what_cannot_be_done_says_what_can(folder, file, tmp_path, capsys, words, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"weight": torch.ones(1)}, "empty.pth")
    names = {"FILE": str(file), "EMPTY": "empty.pth"}
    assert main([names.get(word, word) for word in words]) == 2
    error = capsys.readouterr().err
    assert "import --from torchreid" in error or "has no state_dict and epoch" in error


def test_a_script_of_torchreid_loads_them_as_its_users_know(folder, file, tmp_path, monkeypatch):
    text = f"""
import torch, torchreid
model = torchreid.models.build_model("vit_amg_tiny", num_classes={IDENTITIES}, pretrained=False)
torchreid.utils.load_pretrained_weights(model, {str(file)!r})
wrapped = torch.nn.DataParallel(model) if {file.name.startswith("module")} else model
optimizer = torch.optim.Adam(model.parameters())
scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [20])
assert torchreid.utils.resume_from_checkpoint({str(file)!r}, wrapped, optimizer, scheduler) == 60
extractor = torchreid.utils.FeatureExtractor("vit_amg_tiny", {str(file)!r}, image_size=(32, 16), device="cpu")
assert extractor(torch.zeros(2, 3, 32, 16)).shape == (2, 24)
"""
    (tmp_path / "main.py").write_text(text, encoding="utf-8")
    before = set(map(repr, torch.serialization.get_safe_globals()))
    assert in_force(folder, tmp_path / "main.py") == 0
    assert set(map(repr, torch.serialization.get_safe_globals())) == before
