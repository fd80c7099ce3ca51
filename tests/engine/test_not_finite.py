"""Numbers that are not finite end a run where they are made, with epoch, batch and images; no file holds them."""

import re

import pytest
import torch

from amg_plugin.checkpoint import load_model
from amg_plugin.engine import AMGPruningHook, BestModelHook, Hook
from amg_plugin.errors import RunError
from amg_plugin.evaluation.protocol import Embedded, Protocol
from amg_plugin.pruning import current_plan
from amg_plugin.pruning.surgery import prunable_blocks
from amg_plugin.registries import HEAD_SCORERS

IMAGE = r"\d{4}_c\ds\d_\S+\.jpg"


class Poison(Hook):
    """Lets weights, or the loss, be NaN from a batch on."""

    def __init__(self, batch, what):
        self.batch, self.what, self.seen = batch, what, 0

    def loss(self, engine, images, logits):
        self.seen += 1
        wrong = self.seen == self.batch and self.what == "loss"
        return {"poison": torch.tensor(float("nan"))} if wrong else {}

    def after_step(self, engine, summary):
        if self.seen == self.batch and self.what == "weights":
            poison(engine.model)


def poison(model, value=float("nan")):
    torch.nn.init.constant_(model.backbone.blocks[1].mlp.fc2.weight, value)
    return model


def test_a_loss_ends_the_run_with_epoch_batch_and_images(make_engine, run):
    engine = make_engine(hooks=[Poison(5, "loss")], epochs=2)
    with pytest.raises(RunError, match=rf"The loss is nan at epoch 2, batch 2 \(.*{IMAGE}.* and 3 more\)"):
        run(engine, 2)


def test_images_whose_outputs_are_not_finite_are_named_alone(make_engine):
    engine = make_engine()
    engine.epoch, engine.batch_idx = 0, 0
    batch = next(iter(engine.train_loader))
    batch["img"][3] = float("inf")
    engine.model.eval()  # batch norm would spread it
    with pytest.raises(RunError) as caught:
        engine.forward_backward(batch)
    assert re.findall(IMAGE, str(caught.value)) == [batch["impath"][3].rpartition("/")[2]]


def test_features_end_an_evaluation_and_there_is_no_best_model(make_engine, run, tmp_path):
    engine = make_engine(hooks=[BestModelHook(tmp_path)], epochs=1)
    poison(engine.model)
    with pytest.raises(RunError, match=rf"features in batch 1 of synthetic_reid query, epoch 1 are NaN .*{IMAGE}"):
        engine.test(save_dir=str(tmp_path))
    assert not (tmp_path / "best.pth").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_are_not_written_and_the_older_file_stays(make_engine, tmp_path, value):
    engine = make_engine()
    engine.epoch = 0
    engine.write_checkpoint(tmp_path / "last.pth")
    before = (tmp_path / "last.pth").read_bytes()
    poison(engine.model, value)
    with pytest.raises(RunError, match=r"fc2\.weight' is NaN or infinite after epoch 1; .*last\.pth' was not written"):
        engine.write_checkpoint(tmp_path / "last.pth")
    assert (tmp_path / "last.pth").read_bytes() == before
    load_model(tmp_path / "last.pth")


@pytest.mark.parametrize("scorer", ["amg", "taylor"])
def test_a_scoring_pass_names_images_and_nothing_is_cut(make_engine, run, scorer):
    if scorer not in HEAD_SCORERS:
        pytest.skip("there is no such scorer")
    stages = [{"target": "heads", "rate": 0.25, "iterations": 1, "epochs": 1}]
    engine = make_engine(amg__schedule=stages, amg__final_epochs=0, amg__head_scorer=scorer)
    pruning = AMGPruningHook.from_config(engine.cfg)

    class PoisonFirst(Hook):
        def before_epoch(self, engine):
            poison(engine.model)

    engine.hooks = [PoisonFirst(), pruning]
    with pytest.raises(RunError, match=rf"(features|losses) in batch 1 of 'score heads.*before epoch 1.*{IMAGE}"):
        run(engine, 1)
    assert current_plan(engine.model).is_dense


def test_a_scorer_that_gives_nan_is_named(make_engine, run):
    def scorer(model, calibration, blocks):
        heads = current_plan(model).heads_per_block
        return [torch.full((heads[block],), float("nan")) for block in prunable_blocks(model)]

    HEAD_SCORERS.register("gives_nan", scorer)
    stages = [{"target": "heads", "rate": 0.25, "iterations": 1, "epochs": 1}]
    try:
        engine = make_engine(amg__schedule=stages, amg__final_epochs=0, amg__head_scorer="gives_nan")
        engine.hooks = [AMGPruningHook.from_config(engine.cfg)]
        with pytest.raises(RunError, match="'gives_nan' gave NaN or infinity for the heads of block 0"):
            run(engine, 1)
    finally:
        del HEAD_SCORERS.rows["gives_nan"]


@pytest.mark.parametrize("options", [{}, {"rerank": True}])
def test_distances_of_features_too_large_to_square_rank_nothing(options):
    import numpy as np

    features = Embedded(torch.full((4, 3), 1e30), np.arange(4), np.zeros(4, dtype=int))
    others = Embedded(torch.full((6, 3), -1e30), np.arange(6), np.ones(6, dtype=int))
    with pytest.raises(RunError, match="nothing can be ranked"):
        Protocol(**options).compare(features, others)
