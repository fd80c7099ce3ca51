"""Task losses, precision and failures of the plugin's image engines."""

import math

import pytest
import torch
from torch.nn import functional as F

from amg_plugin.engine import Hook
from amg_plugin.engine.losses import SoftMarginTripletLoss
from amg_plugin.engine.updates import HALF
from amg_plugin.errors import ConfigError, RunError
from amg_plugin.runs.setup import build_model

PIDS = torch.tensor([0, 0, 1, 1, 2, 2])


def naive_soft_margin(features, labels):
    """The definition, one anchor at a time."""
    total = 0.0
    for i, anchor in enumerate(features):
        distances = [math.dist(anchor.tolist(), other.tolist()) for other in features]
        positive = max(d for d, label in zip(distances, labels, strict=True) if label == labels[i])
        negative = min(d for d, label in zip(distances, labels, strict=True) if label != labels[i])
        total += math.log1p(math.exp(positive - negative))
    return total / len(features)


def test_soft_margin_triplet_loss_is_its_definition():
    torch.manual_seed(0)
    features = torch.randn(6, 5, dtype=torch.float64)
    assert SoftMarginTripletLoss()(features, PIDS).item() == pytest.approx(naive_soft_margin(features, PIDS.tolist()))


def test_soft_margin_gradients_are_finite_where_features_coincide():
    features = torch.zeros(4, 3, requires_grad=True)
    SoftMarginTripletLoss()(features, torch.tensor([0, 0, 1, 1])).backward()
    assert torch.isfinite(features.grad).all()


def test_soft_margin_loss_of_a_batch_of_one_identity_is_nothing():
    features = torch.randn(4, 3, requires_grad=True)
    loss = SoftMarginTripletLoss()(features, torch.zeros(4, dtype=torch.long))
    loss.backward()
    assert loss.item() == 0
    assert torch.isfinite(features.grad).all()


def test_soft_margin_is_the_engines_triplet_loss_when_asked_for(make_engine):
    features, logits = torch.randn(6, 5), torch.randn(6, 6)
    terms = {
        soft: make_engine(loss__name="triplet", amg__soft_margin=soft).task_losses((logits, features), PIDS)
        for soft in (True, False)
    }
    assert terms[True]["loss_t"][1].item() == pytest.approx(naive_soft_margin(features, PIDS.tolist()), rel=1e-5)
    assert terms[True]["loss_t"][1].item() != pytest.approx(terms[False]["loss_t"][1].item(), rel=1e-3)


def test_softmax_task_loss_is_the_cross_entropy(make_engine):
    engine = make_engine(loss__softmax__label_smooth=False)
    logits = torch.randn(6, 6)
    assert engine.task_loss(logits, PIDS).item() == pytest.approx(F.cross_entropy(logits, PIDS).item(), rel=1e-6)


@pytest.mark.parametrize(
    ("weights", "terms"), [((1.0, 0.0), {"loss_t"}), ((0.0, 1.0), {"loss_x"}), ((0.5, 2.0), {"loss_t", "loss_x"})]
)
def test_triplet_terms_are_those_with_a_weight(make_engine, weights, terms):
    engine = make_engine(loss__name="triplet", loss__triplet__weight_t=weights[0], loss__triplet__weight_x=weights[1])
    logits, features = torch.randn(6, 6), torch.randn(6, 5)
    losses = engine.task_losses((logits, features), PIDS)
    assert set(losses) == terms
    expected = sum(
        weight * value
        for weight, value in zip(
            weights, (engine.criterion_t(features, PIDS), engine.criterion_x(logits, PIDS)), strict=True
        )
    )
    assert engine.task_loss((logits, features), PIDS).item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("loss", ["softmax", "triplet"])
def test_lists_of_outputs_are_averaged(make_engine, loss):
    engine = make_engine(loss__name=loss, loss__triplet__weight_x=1.0)
    torch.manual_seed(1)
    logits, features = list(torch.randn(2, 6, 6)), list(torch.randn(2, 6, 5))

    def value(choice):
        outputs = logits[choice] if loss == "softmax" else (logits[choice], features[choice])
        return engine.task_loss(outputs, PIDS).item()

    assert value(slice(None)) == pytest.approx((value(0) + value(1)) / 2, rel=1e-5)


class TwoHeads(torch.nn.Module):
    """A network with two classifiers, for deep supervision."""

    def __init__(self, model):
        super().__init__()
        self.inner = model

    def forward(self, images):
        outputs = self.inner(images)
        return [outputs, 2 * outputs] if self.training else outputs


def test_a_model_with_several_outputs_trains(make_engine, make_cfg, run):
    model = TwoHeads(build_model(make_cfg(), 6))
    engine = make_engine(model=model)
    engine.save_model = lambda *args, **kwargs: None  # not one of the plugin's networks
    before = model.inner.classifier.weight.detach().clone()
    run(engine, 1)
    assert not torch.equal(before, model.inner.classifier.weight)


@pytest.mark.parametrize(("loss", "precision"), [("softmax", "bf16"), ("triplet", "bf16"), ("triplet", "fp16")])
def test_half_precision_trains_mixed_and_evaluates_in_full(make_engine, run, loss, precision):
    seen = {"train": set(), "eval": set()}

    class Types(Hook):
        def before_run(self, engine):
            layer = engine.model.backbone.blocks[0].mlp.fc1

            def note(module, args, output):
                seen["train" if module.training else "eval"].add(output.dtype)

            layer.register_forward_hook(note)

    engine = run(make_engine([Types()], loss__name=loss, amg__precision=precision), 1)
    assert seen == {"train": {HALF[precision]}, "eval": {torch.float32}}
    assert all(parameter.dtype == torch.float32 for parameter in engine.model.parameters())
    assert all(torch.isfinite(parameter).all() for parameter in engine.model.parameters())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_run_before_the_weights_are_touched(make_engine, run, value):
    class Break(Hook):
        def loss(self, engine, images, logits):
            return {"loss_b": torch.tensor(value)}

    engine = make_engine([Break()])
    before = [parameter.detach().clone() for parameter in engine.model.parameters()]
    with pytest.raises(RunError, match="epoch 1, batch 1"):
        run(engine, 1)
    assert all(torch.equal(a, b) for a, b in zip(before, engine.model.parameters(), strict=True))


def test_the_learning_rate_rises_and_then_follows_the_schedule(make_engine, run):
    rates = []

    class Rates(Hook):
        def before_epoch(self, engine):
            rates.append(engine.get_current_lr())

    run(make_engine([Rates()], epochs=5, amg__warmup_epochs=2, train__lr=0.01), 5)
    assert rates[0] == pytest.approx(0.01 * 0.01)
    assert rates[0] < rates[1] < rates[2] == pytest.approx(0.01)
    assert rates[2] > rates[3] > rates[4] > 0


class StepRates(Hook):
    """Writes down the learning rate of every step."""

    def __init__(self):
        self.seen = []

    def before_step(self, engine, images):
        self.seen.append([group["lr"] for group in engine.optimizer.param_groups])


def test_the_learning_rate_of_every_step_may_have_its_own(make_engine, run):
    rates, epochs, warmup = StepRates(), 3, 0.5
    changes = {"train__lr": 0.01, "train__lr_scheduler": "cosine", "amg__lr_per_step": True, "train__staged_lr": True}
    engine = run(make_engine([rates], epochs=epochs, amg__warmup_epochs=warmup, **changes), epochs)
    steps = engine.num_batches
    assert steps > 1
    assert len(rates.seen) == epochs * steps
    for step, found in enumerate(rates.seen):
        time = step / steps
        share = (1 + math.cos(math.pi * (time - warmup) / (epochs - warmup))) / 2
        share = 0.01 + 0.99 * time / warmup if time < warmup else share
        assert found == pytest.approx([0.001 * share, 0.01 * share]), step


def test_rates_of_steps_need_a_scheduler_that_knows_them(make_engine, run):
    engine = make_engine(amg__lr_per_step=True)
    engine.scheduler = torch.optim.lr_scheduler.StepLR(engine.optimizer, 1)
    with pytest.raises(ConfigError, match="StepLR, knows whole epochs only"):
        run(engine, 1)


JIGSAW = {"amg__jpm__enabled": True, "amg__jpm__parts": 2}


@pytest.mark.parametrize("loss", ["softmax", "triplet"])
def test_under_the_jigsaw_module_half_of_each_loss_is_the_global_branchs(make_engine, loss):
    engine = make_engine(
        loss__name=loss, loss__triplet__weight_x=1.0, amg__soft_margin=True, loss__softmax__label_smooth=False, **JIGSAW
    )
    torch.manual_seed(1)
    logits, features = list(torch.randn(3, 6, 6)), list(torch.randn(3, 6, 5))
    weights = [0.5, 0.25, 0.25]
    expected = sum(w * F.cross_entropy(branch, PIDS).item() for w, branch in zip(weights, logits, strict=True))
    if loss == "triplet":
        margins = [naive_soft_margin(branch, PIDS.tolist()) for branch in features]
        expected += sum(w * value for w, value in zip(weights, margins, strict=True))
    outputs = logits if loss == "softmax" else (logits, features)
    assert engine.task_loss(outputs, PIDS).item() == pytest.approx(expected, rel=1e-5)


def test_part_classifiers_count_alike(make_engine):
    engine = make_engine(amg__head="parts", amg__parts__number=4, loss__softmax__label_smooth=False)
    torch.manual_seed(1)
    logits = list(torch.randn(4, 6, 6))
    expected = sum(F.cross_entropy(part, PIDS).item() for part in logits) / 4
    assert engine.task_loss(logits, PIDS).item() == pytest.approx(expected, rel=1e-5)
