"""torchreid's networks: counted right, and never half random."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from torch import nn

from amg_plugin import compat
from amg_plugin.config import get_default_config
from amg_plugin.errors import CheckpointError, InputError
from amg_plugin.models import complexity
from amg_plugin.plugin import backbones

pytestmark = [
    pytest.mark.skipif(not compat.is_installed(), reason="torchreid is not installed"),
    # torchreid's use of functions that torch renamed or changed since
    pytest.mark.filterwarnings("ignore:.*upsample. is deprecated", "ignore:Default grid_sample"),
]
AMG = get_default_config().amg


def by_hand(model, height, width):
    """MACs of convolutions and linear layers from what passes through them: outputs times inputs per output."""
    total = 0

    def add(module, inputs, output):
        nonlocal total
        if isinstance(module, nn.Conv2d):
            rows, columns = module.kernel_size
            total += output.numel() * rows * columns * module.in_channels // module.groups
        else:
            total += output.numel() * module.in_features

    layers = [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear) and not complexity.is_classifier(name)
    ]
    handles = [layer.register_forward_hook(add) for layer in layers]
    device = next(model.parameters()).device
    with torch.no_grad(), device:
        model.eval()(torch.zeros(1, 3, height, width))
    for handle in handles:
        handle.remove()
    return total


# Plain, grouped, depthwise, dense, shuffled, of parts, of one input size, with a classifier that runs in evaluation.
COUNTED = ["resnet50", "resnext50_32x4d", "osnet_x1_0", "mobilenetv2_x1_0", "densenet121", "shufflenet", "pcb_p6",
           "hacnn", "mudeep"]  # fmt: skip


@pytest.mark.parametrize("name", COUNTED)
def test_counted_macs_are_those_of_the_layers_by_hand(name):
    height, width = backbones.input_size(name, (256, 128))
    model = backbones.build(name, AMG, on_meta=True)
    assert backbones.cost(model, name, height, width)["macs"] == by_hand(model, height, width)


def test_a_first_layer_by_arithmetic():
    counted = complexity.count(backbones.build("resnet50", AMG), 256, 128)["macs_by_module"]
    assert counted["conv1"] == 64 * (128 * 64) * 3 * 7 * 7  # stride 2


def test_a_depthwise_layer_costs_one_input_per_output():
    layer = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8))
    assert complexity.count(layer, 10, 6)["macs"] == 60 * (8 * 3 + 8 * 9)


@pytest.mark.parametrize("name", ["osnet_x0_25", "hacnn", "pcb_p4"])
def test_the_classifier_does_not_count(name):
    factory = compat.torchreid().models.build_model
    few, many = (factory(name, number, pretrained=False, use_gpu=False) for number in (2, 500))
    height, width = backbones.input_size(name, (128, 64))
    assert backbones.cost(few, name, height, width) == backbones.cost(many, name, height, width)


def test_cost_needs_no_memory_and_is_the_same_without():
    real, meta = (backbones.build("osnet_x0_25", AMG, on_meta=on_meta) for on_meta in (False, True))
    assert next(meta.parameters()).device == torch.device("meta")
    assert backbones.cost(meta, "osnet_x0_25", 256, 128) == backbones.cost(real, "osnet_x0_25", 256, 128)


def test_the_size_is_what_is_stored(tmp_path):
    model = backbones.build("osnet_x0_25", AMG)
    state = backbones.without_classifier(model.state_dict())
    torch.save(state, tmp_path / "state.pth")
    size = backbones.cost(model, "osnet_x0_25", 256, 128)["size"]
    assert size <= (tmp_path / "state.pth").stat().st_size < 1.5 * size
    assert not any("classifier" in name for name in state)


def test_torchreid_has_forty_nine_networks_besides_the_plugins():
    assert len(backbones.torchreid_names()) == 49
    assert set(backbones.model_names()) - set(backbones.torchreid_names()) == {
        "vit_amg", "vit_amg_small", "vit_amg_tiny"
    }  # fmt: skip


def test_an_unknown_network_is_refused_by_name():
    with pytest.raises(InputError, match=r"no network 'resnet5'.*resnet50"):
        backbones.check_name("resnet5")


def test_a_size_that_a_network_does_not_take_is_an_error():
    with pytest.raises(InputError, match="hacnn does not take images of 256x128"):
        backbones.cost(backbones.build("hacnn", AMG), "hacnn", 256, 128)


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(5)
    return compat.torchreid().models.build_model("osnet_x0_25", 751, pretrained=False, use_gpu=False).eval()


class TestWeights:
    """Files of torchreid's training runs."""

    NAME = "osnet_x0_25"

    @staticmethod
    def saved(folder, content):
        torch.save(content, folder / "model.pth.tar-60")
        return folder / "model.pth.tar-60"

    @pytest.mark.parametrize("form", ["torchreid's checkpoint", "DataParallel's", "a bare state dict"])
    def test_give_the_features_of_the_trained_network(self, trained, form, tmp_path):
        state = trained.state_dict()
        if form == "DataParallel's":
            state = {f"module.{name}": value for name, value in state.items()}
        content = state if form == "a bare state dict" else {
            "state_dict": state, "epoch": 60, "rank1": np.float64(0.9),
            "optimizer": torch.optim.Adam(trained.parameters()).state_dict(),
        }  # fmt: skip
        model = backbones.build(self.NAME, AMG)
        backbones.load_weights(model, self.NAME, self.saved(tmp_path, content))
        images = torch.randn(2, 3, 64, 32)
        assert torch.equal(model(images), trained(images))

    def test_of_old_releases_without_counters_fit(self, trained, tmp_path):
        state = {key: value for key, value in trained.state_dict().items() if not key.endswith("num_batches_tracked")}
        model = backbones.build(self.NAME, AMG)
        backbones.load_weights(model, self.NAME, self.saved(tmp_path, state))
        assert torch.equal(model.conv1.conv.weight, trained.conv1.conv.weight)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda state: state.pop("conv1.conv.weight"), r"1 missing \(conv1\.conv\.weight\)"),
            (lambda state: state.update(more=torch.zeros(1)), r"1 unknown \(more\)"),
            (lambda state: state.update({"conv1.conv.weight": torch.zeros(2)}), r"1 of another shape \(conv1"),
        ],
    )
    def test_that_do_not_fit_are_refused_by_name(self, trained, change, message, tmp_path):
        state = dict(trained.state_dict())
        change(state)
        model = backbones.build(self.NAME, AMG)
        before = model.conv1.conv.weight.clone()
        with pytest.raises(CheckpointError, match=rf"not those of {self.NAME}.*{message}"):
            backbones.load_weights(model, self.NAME, self.saved(tmp_path, state))
        assert torch.equal(model.conv1.conv.weight, before)

    def test_of_another_network_are_refused(self, trained, tmp_path):
        file = self.saved(tmp_path, trained.state_dict())
        with pytest.raises(CheckpointError, match="not those of osnet_x0_5"):
            backbones.load_weights(backbones.build("osnet_x0_5", AMG), "osnet_x0_5", file)

    def test_with_code_are_refused_and_the_code_does_not_run(self, trained, tmp_path):
        class Code:
            def __reduce__(self):
                return os.mkdir, (str(tmp_path / "it ran"),)

        file = self.saved(tmp_path, {"state_dict": trained.state_dict(), "hook": Code()})
        with pytest.raises(CheckpointError, match=r"refused.*mkdir"):
            backbones.load_weights(backbones.build(self.NAME, AMG), self.NAME, file)
        assert not (tmp_path / "it ran").exists()
