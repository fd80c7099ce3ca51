"""LA-Transformer: parts, training mix, test features."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from amg_plugin.checkpoint import load_model, save_checkpoint
from amg_plugin.errors import ConfigError
from amg_plugin.models.build import build_network
from amg_plugin.models.la_transformer import part_averages
from amg_plugin.models.spec import ModelSpec

TINY = {"depth": 2, "embed_dim": 16, "num_heads": 2}


def network(**options):
    torch.manual_seed(0)
    options = {"parts": 4, **options}
    return build_network(ModelSpec("vit_tiny_patch16_224", (64, 64), 5, overrides=TINY, head="parts", **options))


@pytest.fixture
def images():
    return torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def test_parts_are_averages_of_consecutive_patches():
    tokens = torch.arange(9.0).reshape(1, 9, 1)
    assert part_averages(tokens, 1, 4).flatten().tolist() == [1.5, 3.5, 5.5, 7.5]


def test_test_features_are_the_parts_scaled_to_one_over_root_of_their_number(images):
    model = network().eval()
    tokens = model.backbone.forward_features(images)
    expected = [F.normalize(tokens[:, 1 + 4 * i : 5 + 4 * i].mean(1), dim=1) / 2 for i in range(4)]
    features = model(images)
    assert torch.allclose(features, torch.cat(expected, 1), atol=1e-6)
    assert torch.allclose(features.norm(dim=1), torch.ones(3))
    assert model.feature_dim == features.shape[1] == 64


def test_training_classifies_each_part_mixed_with_the_class_token(images):
    model = network().train()
    for classifier in model.classifiers:
        classifier.dropout.p = 0.0
    logits = model(images)
    assert [tuple(value.shape) for value in logits] == [(3, 5)] * 4
    tokens = model.backbone.forward_features(images)
    part = tokens[:, 9:13].mean(1)
    hidden = model.classifiers[2].norm(model.classifiers[2].reduce((tokens[:, 0] + 8 * part) / 9))
    assert torch.allclose(logits[2], model.classifiers[2].classify(hidden), atol=1e-5)


def test_hidden_width_and_dropout_are_the_published_ones():
    classifier = network().classifiers[0]
    assert (classifier.reduce.out_features, classifier.dropout.p) == (256, 0.5)


def test_triplet_training_gives_features_too(images):
    logits, features = network(loss="triplet").train()(images)
    assert (len(logits), features.shape) == (4, (3, 64))


def test_it_survives_a_checkpoint(images, tmp_path):
    model = network().eval()
    save_checkpoint(tmp_path / "model.pth", model)
    assert torch.equal(load_model(tmp_path / "model.pth")(images), model(images))


@pytest.mark.parametrize("parts", [0, 17])
def test_a_number_of_parts_that_the_patches_cannot_give_is_refused(parts):
    with pytest.raises(ConfigError, match="1 to 16"):
        network(parts=parts)
