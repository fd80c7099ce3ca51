"""The batch-norm neck and the classifier."""

from __future__ import annotations

import torch
from torch import nn

from amg_plugin.models.reid import FrozenBiasBatchNorm1d, build_classifier


def test_the_bias_of_the_neck_is_no_parameter_but_has_its_usual_key():
    neck, usual = FrozenBiasBatchNorm1d(6), nn.BatchNorm1d(6)
    assert [name for name, _ in neck.named_parameters()] == ["weight"]
    assert set(neck.state_dict()) == set(usual.state_dict())


def test_the_bias_stays_zero_although_everything_is_opened_for_training():
    neck = FrozenBiasBatchNorm1d(6)
    for parameter in neck.parameters():
        parameter.requires_grad = True
    optimizer = torch.optim.SGD(neck.parameters(), lr=1.0)
    neck(torch.randn(8, 6)).sum().backward()
    optimizer.step()
    assert torch.equal(neck.bias, torch.zeros(6))


def test_the_neck_normalises_like_batch_norm():
    neck, usual = FrozenBiasBatchNorm1d(6), nn.BatchNorm1d(6)
    features = torch.randn(8, 6)
    assert torch.equal(neck(features), usual(features))
    assert torch.equal(neck.eval()(features), usual.eval()(features))


def test_weights_of_a_usual_neck_can_be_loaded():
    usual = nn.BatchNorm1d(6)
    usual(torch.randn(8, 6))
    neck = FrozenBiasBatchNorm1d(6)
    neck.load_state_dict(usual.state_dict())
    assert torch.equal(neck.running_mean, usual.running_mean)


def test_resetting_restores_statistics_and_scale():
    neck = FrozenBiasBatchNorm1d(6)
    neck(torch.randn(8, 6) + 5)
    nn.init.constant_(neck.weight, 3.0)
    neck.reset_parameters()
    assert torch.equal(neck.running_mean, torch.zeros(6)) and torch.equal(neck.weight, torch.ones(6))


def test_the_classifier_has_no_bias_and_small_weights():
    classifier = build_classifier(64, 100)
    assert classifier.bias is None and classifier.weight.shape == (100, 64)
    assert 0.0005 < classifier.weight.std() < 0.002
