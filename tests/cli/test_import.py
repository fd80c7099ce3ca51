"""``amg-reid import``: published files become checkpoints of the plugin."""

from __future__ import annotations

import os

import pytest
import torch
from published_state import la_transformer, la_transformer_state, la_vit_state, transreid, transreid_state

from amg_plugin.checkpoint import load_model, read_checkpoint
from amg_plugin.cli.main import main
from amg_plugin.errors import InputError
from amg_plugin.paper.importing import fitting_stride

TRANSREID = ["--from", "transreid", "--image-size", "64", "40", "--head-dim", "8"]


def saved(folder, state):
    torch.save(state, folder / "published.pth")
    return str(folder / "published.pth")


def test_a_pruned_transreid_file(tmp_path, capsys):
    model = transreid(heads=[[0, 2], [1], [0, 1, 2, 3], [0, 1, 2, 3]], stride=12)
    file = saved(tmp_path, transreid_state(model))
    assert main(["import", file, *TRANSREID, "--out", str(tmp_path / "out.pth")]) == 0
    images, labels = torch.randn(2, 3, 64, 40), torch.tensor([1, 2])
    assert torch.allclose(load_model(tmp_path / "out.pth")(images, labels), model(images, labels), atol=1e-5)
    checkpoint = read_checkpoint(tmp_path / "out.pth")
    assert checkpoint.plan.heads_per_block == [2, 1, 4, 4]
    assert checkpoint.preprocessing.mean == (0.5, 0.5, 0.5)
    assert (checkpoint.config["data"]["height"], checkpoint.config["test"]["normalize_feature"]) == (64, True)
    assert "does not record which heads were kept" in capsys.readouterr().out


def test_a_whole_la_transformer_file_keeps_its_features(tmp_path):
    model = la_transformer(tokens=[[0, 3, 5, 11], [1, 3, 4, 15], range(16), [7]])
    file, out = saved(tmp_path, {"state_dict": la_transformer_state(model)}), tmp_path / "out.pth"
    words = ["import", file, "--from", "la", "--image-size", "64", "64", "--head-dim", "8", "--parts", "4"]
    assert main([*words, "--out", str(out)]) == 0
    images = torch.randn(2, 3, 64, 64)
    assert torch.allclose(load_model(out)(images), model(images), atol=1e-6)


def test_the_checkpoint_brings_the_losses_of_transreid(tmp_path, caplog):
    out = tmp_path / "out.pth"
    assert main(["import", saved(tmp_path, transreid_state(transreid(stride=12))), *TRANSREID, "--out", str(out)]) == 0
    config = read_checkpoint(out).config
    assert config["loss"]["triplet"]["weight_x"] == config["loss"]["triplet"]["weight_t"] == 1.0
    assert config["loss"]["softmax"]["label_smooth"] is False
    assert config["amg"]["soft_margin"] is True
    assert config["sampler"]["train_sampler"] == "RandomIdentitySampler"
    assert not caplog.records  # nothing to warn of


def test_the_checkpoint_brings_the_weights_per_block_of_la_transformer(tmp_path):
    file, out = saved(tmp_path, la_transformer_state(la_transformer())), tmp_path / "out.pth"
    assert main(["import", file, *LA, "--out", str(out)]) == 0
    amg = read_checkpoint(out).config["amg"]
    assert (amg["layer_growth"], amg["layer_decay"]) == (0.02, 0.03)


LA = ["--from", "la", "--image-size", "64", "64", "--head-dim", "8", "--parts", "4"]
FAMILIES = {
    "transreid": (lambda: transreid_state(transreid(stride=12)), TRANSREID, "base"),
    "la": (lambda: la_transformer_state(la_transformer()), LA, "model"),
}


class TestBadInput:
    """Exit status 2, one sentence that names what is wrong, nothing written."""

    @pytest.fixture
    def refused(self, tmp_path, capsys):
        def run(state, words):
            out = tmp_path / "out.pth"
            assert main(["import", saved(tmp_path, state), *words, "--out", str(out)]) == 2
            assert not out.exists()
            (line,) = capsys.readouterr().err.splitlines()
            return line

        return run

    @pytest.mark.parametrize(
        ("state", "words", "message"),
        [
            (lambda: la_vit_state(la_transformer().backbone), TRANSREID, "one of LA ViT, not of TransReID"),
            (FAMILIES["la"][0], TRANSREID, "one of LA-Transformer, not of TransReID"),
            (FAMILIES["transreid"][0], LA, "one of TransReID, not of LA-Transformer"),
            (lambda: {"conv1.weight": torch.zeros(1)}, LA, "no known program (its first tensor is 'conv1.weight')"),
        ],
    )
    def test_the_wrong_family(self, refused, state, words, message):
        assert message in refused(state(), words)

    @pytest.mark.parametrize("family", FAMILIES)
    def test_a_missing_and_an_extra_tensor(self, refused, family):
        make, words, prefix = FAMILIES[family]
        state = make()
        del state[f"{prefix}.blocks.1.mlp.fc2.bias"]
        state[f"{prefix}.blocks.1.gate"] = torch.zeros(1)
        message = refused(state, words)
        assert f"1 missing ({prefix}.blocks.1.mlp.fc2.bias)" in message
        assert f"1 unknown ({prefix}.blocks.1.gate)" in message

    @pytest.mark.parametrize(("place", "value"), [(0, "removes the class token"), (slice(1, None), "every patch")])
    @pytest.mark.parametrize("family", FAMILIES)
    def test_a_contradictory_mask(self, refused, family, place, value):
        make, words, prefix = FAMILIES[family]
        state, name = make(), f"{prefix}.blocks.2.attn.token_index"
        state[name] = state[name].clone()
        state[name][place] = False
        message = refused(state, words)
        assert name in message
        assert value in message

    @pytest.mark.parametrize("family", FAMILIES)
    def test_a_mask_of_another_length_than_the_positions(self, refused, family):
        make, words, prefix = FAMILIES[family]
        state, name = make(), f"{prefix}.blocks.0.attn.token_index"
        state[name] = state[name][:-1]
        assert f"'{name}' has {len(state[name])} entries, the position embedding has {len(state[name]) + 1}" in refused(
            state, words
        )


class Code:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_with_code_is_refused_and_does_not_run(tmp_path, capsys):
    file = saved(tmp_path, {"state_dict": transreid_state(transreid()), "hook": Code(tmp_path / "it ran")})
    assert main(["import", file, *TRANSREID, "--out", str(tmp_path / "out.pth")]) == 2
    assert "mkdir" in capsys.readouterr().err
    assert not (tmp_path / "it ran").exists()
    assert not (tmp_path / "out.pth").exists()


@pytest.mark.parametrize(("patches", "stride"), [(210, 12), (242, 11), (128, 16)])
def test_the_stride_is_found_from_the_number_of_patches(patches, stride):
    assert fitting_stride(patches, (256, 128), 16) == stride


def test_a_number_of_patches_that_no_stride_gives_is_refused():
    with pytest.raises(InputError, match="No stride"):
        fitting_stride(196, (256, 128), 16)
