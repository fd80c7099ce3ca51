"""Hooks are told about a run that otherwise is torchreid's own."""

import pytest
import torch
from tiny_run import BATCHES

from amg_plugin import compat
from amg_plugin.engine import Hook
from amg_plugin.plugin.registry import ENGINES

PHASES = (
    "before_run", "after_run", "before_epoch", "after_epoch", "before_step", "after_step", "before_test", "after_test",
)  # fmt: skip
STEP = ["before_step", "loss", "after_step"]
EPOCH = ["before_epoch", *BATCHES * STEP, "after_epoch"]
TEST = ["before_test", "after_test"]


class Witness(Hook):
    """Writes down the phases it is called in."""

    def __init__(self, seen=None, name=""):
        self.seen = [] if seen is None else seen
        self.name = name

    def loss(self, engine, images, logits):
        self.seen.append(self.name + "loss")
        return {}


for _phase in PHASES:
    setattr(Witness, _phase, lambda self, engine, *args, _phase=_phase: self.seen.append(self.name + _phase))


def test_phases_come_in_the_documented_order(make_engine, run):
    witness = Witness()
    run(make_engine([witness]), 2, eval_freq=1)
    assert witness.seen == ["before_run", *EPOCH, *TEST, *EPOCH, *TEST, "after_run"]


def test_a_run_that_only_tests_has_no_other_phase(make_engine, run):
    witness = Witness()
    run(make_engine([witness]), 2, test_only=True)
    assert witness.seen == TEST


def test_hooks_are_called_in_their_order(make_engine, run):
    seen = []
    run(make_engine([Witness(seen, "first "), Witness(seen, "second ")]), 1)
    assert seen[:4] == ["first before_run", "second before_run", "first before_epoch", "second before_epoch"]


def test_the_epoch_is_known_in_every_phase(make_engine, run):
    seen = []

    class Epochs(Hook):
        def before_epoch(self, engine):
            seen.append(engine.epoch)

        def after_test(self, engine):
            seen.append((engine.epoch, engine.max_epoch))

    run(make_engine([Epochs()]), 4, start_epoch=2, eval_freq=1)
    assert seen == [2, (2, 4), 3, (3, 4)]


def test_a_step_reports_what_torchreid_prints(make_engine, run):
    class Summary(Hook):
        def after_step(self, engine, summary):
            self.summary = summary

    hook = Summary()
    run(make_engine([hook]), 1)
    assert set(hook.summary) == {"loss", "acc"}
    assert 0 <= hook.summary["acc"] <= 100


def test_the_history_has_the_means_of_an_epoch(make_engine, run):
    class Steps(Hook):
        def __init__(self):
            self.steps, self.rates = [], []

        def after_step(self, engine, summary):
            self.steps.append(summary)
            self.rates.append(engine.get_current_lr())

    hook = Steps()
    engine = run(make_engine([hook], epochs=2, train__lr_scheduler="cosine", amg__lr_per_step=True), 2)
    epochs = [event for event in engine.history if event["event"] == "epoch"]
    assert [event["epoch"] for event in epochs] == [0, 1]
    for event, steps, rates in zip(
        epochs, (hook.steps[:BATCHES], hook.steps[BATCHES:]), hook.rates[BATCHES - 1 :: BATCHES], strict=True
    ):
        assert event["loss"] == {"loss": pytest.approx(sum(step["loss"] for step in steps) / BATCHES)}
        assert event["accuracy"] == pytest.approx(sum(step["acc"] for step in steps) / BATCHES / 100)
        assert event["lr"] == rates


def test_a_term_that_a_hook_adds_is_trained(make_engine, run):
    class OnlyThis(Hook):
        """A loss that outweighs the task: it wants the classifier's weights at 1."""

        def loss(self, engine, images, logits):
            return {"loss_h": 1e3 * (engine.model.classifier.weight - 1).square().mean()}

    engine = make_engine([OnlyThis()], train__lr=0.05)
    before = engine.model.classifier.weight.detach().clone()
    run(engine, 2)
    moved = engine.model.classifier.weight.detach() - before
    assert (moved > 0).float().mean() > 0.95


@pytest.mark.parametrize(
    ("loss", "changes"),
    [
        ("softmax", {}),
        ("triplet", {"loss__triplet__weight_x": 1.0}),
        ("triplet", {"loss__triplet__weight_x": 0.0}),
        ("triplet", {"loss__triplet__weight_t": 0.0, "loss__triplet__weight_x": 0.5}),
    ],
)
def test_training_gives_bit_for_bit_the_weights_of_torchreids_engine(make_engine, make_cfg, loss, changes):
    weights = {}
    for name in (f"image_{loss}", f"amg_{loss}"):
        ours = make_engine(loss__name=loss, **changes)
        engine = ours
        if name.startswith("image"):
            options = {} if loss == "softmax" else {"weight_t": ours.weight_t, "weight_x": ours.weight_x}
            engine = ENGINES.load(name)(
                ours.datamanager, ours.model, ours.optimizer, scheduler=ours.scheduler, use_gpu=False, **options
            )
        compat.torchreid().utils.set_random_seed(7)
        engine.max_epoch = 1
        engine.train(print_freq=100)
        weights[name] = engine.model.state_dict()
    stock, plugin = weights.values()
    assert all(torch.equal(stock[name], plugin[name]) for name in stock)


def test_curves_are_written_for_tensorboard(make_engine, run, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(make_engine(), 2, eval_freq=1)
    events = EventAccumulator(str(tmp_path / "log")).Reload()
    assert {"Train/loss", "Train/lr", "Test/synthetic_reid/rank1", "Test/synthetic_reid/mAP"} <= set(
        events.Tags()["scalars"]
    )
    assert len(events.Scalars("Train/loss")) == 2 * BATCHES
