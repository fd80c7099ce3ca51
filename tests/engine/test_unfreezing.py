"""Gradual unfreezing: which blocks move in which epoch."""

import pytest
import torch

from amg_plugin.engine import Hook, UnfreezingHook

DEPTH = 3


class Moved(Hook):
    """Says after each epoch which blocks moved in it, and whether the rest of the network did."""

    def __init__(self):
        self.blocks, self.others = [], []

    def before_epoch(self, engine):
        self.before = {name: value.detach().clone() for name, value in engine.model.named_parameters()}

    def after_epoch(self, engine):
        moved = {name for name, value in engine.model.named_parameters() if not torch.equal(value, self.before[name])}
        named = [{name for name in moved if name.startswith(f"backbone.blocks.{i}.")} for i in range(DEPTH)]
        self.blocks.append([index for index, names in enumerate(named) if names])
        self.others.append(moved - set().union(*named))


LA = {"amg__head": "parts", "amg__parts__number": 4}


@pytest.mark.parametrize("optim", ["adam", "sgd"])
@pytest.mark.parametrize("head", [{}, LA], ids=["bnneck", "parts"])
def test_blocks_thaw_from_the_top_and_frozen_ones_do_not_move(make_engine, run, optim, head):
    moved = Moved()
    options = {"amg__override__depth": DEPTH, "train__optim": optim, "train__weight_decay": 0.1, **head}
    run(make_engine([UnfreezingHook(every=2), moved], epochs=7, **options), 7)
    assert moved.blocks == [[2], [2], [1, 2], [1, 2], [0, 1, 2], [0, 1, 2], [0, 1, 2]]
    classifier = "classifiers.0.classify.weight" if head else "classifier.weight"
    for names in moved.others:
        assert {classifier, "backbone.patch_embed.proj.weight", "backbone.norm.weight"} <= names


def test_without_the_hook_all_blocks_move_from_the_start(make_engine, run):
    moved = Moved()
    run(make_engine([moved], amg__override__depth=DEPTH), 1)
    assert moved.blocks == [[0, 1, 2]]


def test_a_run_that_goes_on_later_thaws_what_is_due_by_then(make_engine, run):
    moved = Moved()
    run(make_engine([UnfreezingHook(every=2), moved], amg__override__depth=DEPTH), 4, start_epoch=3)
    assert moved.blocks == [[1, 2]]
