"""Side information embedding: which vector an image gets, and what happens to unseen cameras."""

from __future__ import annotations

import copy
import logging

import pytest
import torch

from amg_plugin.errors import ConfigError
from amg_plugin.models.spec import SideInformationSpec
from amg_plugin.models.transreid import SideInformation


def module_of(**options):
    torch.manual_seed(0)
    return SideInformation(SideInformationSpec(**options), 4)


def test_each_camera_adds_its_scaled_vector():
    side = module_of(cameras=3, coefficient=2.0)
    added = side(torch.tensor([2, 0]))
    assert torch.equal(added, 2 * side.embedding[[2, 0]][:, None])


def test_views_count_within_cameras():
    side = module_of(cameras=3, views=2, coefficient=1.0)
    added = side(torch.tensor([0, 2]), torch.tensor([1, 0]))
    assert torch.equal(added[:, 0], side.embedding[[1, 4]])


def test_views_alone_need_no_cameras():
    side = module_of(views=2, coefficient=1.0)
    assert torch.equal(side(None, torch.tensor([1]))[0], side.embedding[1:])


@pytest.mark.parametrize("label", [-1, 3, 1000])
@pytest.mark.parametrize("unseen", ["none", "mean"])
def test_an_unseen_camera_gets_nothing_or_the_mean(label, unseen):
    side = module_of(cameras=3, coefficient=2.0, unseen=unseen)
    added = side(torch.tensor([1, label]))
    expected = 2 * side.embedding.mean(0) if unseen == "mean" else torch.zeros(4)
    assert torch.equal(added[0, 0], 2 * side.embedding[1])
    assert torch.allclose(added[1, 0], expected)


def test_missing_labels_add_nothing_or_the_mean():
    assert module_of(cameras=3)(None) is None
    averaging = module_of(cameras=3, unseen="mean", coefficient=1.0)
    assert torch.allclose(averaging(None), averaging.embedding.mean(0))


def test_unseen_cameras_are_warned_about_once(caplog):
    side = module_of(cameras=3)
    with caplog.at_level(logging.WARNING):
        side(torch.tensor([0, 1, 2]))
        assert not caplog.records
        for _ in range(3):
            side(torch.tensor([0, 7]))
        side(None)
    assert len(caplog.records) == 1


def test_copies_share_the_one_warning(caplog):
    side = module_of(cameras=3)
    other = module_of(cameras=3)
    other.warn_with(side)
    with caplog.at_level(logging.WARNING):
        for module in (side, copy.deepcopy(side), other):
            module(torch.tensor([7]))
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"cameras": -1, "views": 2},
        {"cameras": 3, "unseen": "guess"},
        {"cameras": 3, "camera_table": {"market1501": [0, 1]}},
    ],
)
def test_impossible_descriptions_are_refused(options):
    with pytest.raises(ConfigError):
        SideInformationSpec(**options)
