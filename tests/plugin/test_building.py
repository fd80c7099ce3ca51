"""Networks that torchreid's `build_model` makes, and what they know of their images."""

import pytest
import torch
from PIL import Image

import amg_plugin
from amg_plugin import compat
from amg_plugin.config.active import using_amg_config

if not compat.is_installed():
    pytest.skip("torchreid is not installed", allow_module_level=True)


def test_a_saved_network_has_torchreids_preparation_of_images(tmp_path):
    torchreid = compat.torchreid()
    amg_plugin.register()
    amg = amg_plugin.get_default_config().amg
    amg.image_size = [64, 32]
    with using_amg_config(amg):
        model = torchreid.models.build_model("vit_amg_tiny", num_classes=5, pretrained=False)
    amg_plugin.save_checkpoint(tmp_path / "model.pth", model)
    extract = amg_plugin.FeatureExtractor(tmp_path / "model.pth")
    image = Image.effect_noise((50, 90), 80).convert("RGB")
    _, transform = torchreid.data.transforms.build_transforms(64, 32)
    with torch.no_grad():
        expected = model.eval()(transform(image)[None])
    assert torch.allclose(extract(image), expected, atol=1e-5)
