"""Steps of the optimiser: one for several batches, and guarded in fp16."""

import pytest
import torch
from tiny_run import BATCHES
from torch.nn import functional as F

from amg_plugin.engine import Hook
from amg_plugin.engine.calibration import build_calibration
from amg_plugin.engine.updates import Updates
from amg_plugin.errors import RunError


@pytest.fixture
def weight():
    return torch.nn.Parameter(torch.tensor([1.0, -2.0]))


def sgd(weight):
    return torch.optim.SGD([weight], lr=0.1)


def take_all(updates, weight, losses):
    optimizer = sgd(weight)
    for batch, loss in enumerate(losses):
        updates.take(loss(weight), optimizer, batch, updates.group(batch, len(losses)))
    return weight.detach()


@pytest.mark.parametrize(
    ("accumulate", "groups"),
    [(1, [[0], [1], [2], [3], [4]]), (2, [[0, 1], [2, 3], [4]]), (5, [[0, 1, 2, 3, 4]]), (9, [[0, 1, 2, 3, 4]])],
)
def test_batches_are_grouped_and_the_last_group_may_be_shorter(accumulate, groups):
    updates = Updates("fp32", "cpu", accumulate)
    assert [list(updates.group(batch, 5)) for batch in range(5)] == [group for group in groups for _ in group]


def test_batches_of_a_group_step_as_one_large_batch(weight):
    images, targets = torch.randn(12, 2), torch.randn(12)
    whole = weight.detach().clone().requires_grad_()

    def loss(rows):
        return lambda weight: F.mse_loss(images[rows] @ weight, targets[rows])

    several = take_all(Updates("fp32", "cpu", 3), weight, [loss(slice(start, start + 4)) for start in (0, 4, 8)])
    torch.testing.assert_close(several, take_all(Updates("fp32", "cpu"), whole, [loss(slice(0, 12))]))


def test_an_incomplete_group_steps_with_the_mean_of_its_own_batches(weight):
    start = weight.detach().clone()
    after = take_all(Updates("fp32", "cpu", 4), weight, [torch.sum] * 5)
    torch.testing.assert_close(after, start - 2 * 0.1)


def test_in_fp16_a_step_whose_gradients_overflow_is_left_out(weight):
    updates, start = Updates("fp16", "cpu"), weight.detach().clone()
    before = updates.state_dict()["scale"]
    assert torch.equal(take_all(updates, weight, [lambda weight: (weight * 1e38).sum()]), start)
    assert updates.state_dict()["scale"] == before / 2
    torch.testing.assert_close(take_all(updates, weight, [torch.sum]), start - 0.1)


def test_the_scale_goes_on_where_it_was(weight):
    updates, other = Updates("fp16", "cpu"), Updates("fp16", "cpu")
    take_all(updates, weight, [lambda weight: (weight * 1e38).sum(), torch.sum])
    other.load_state_dict(updates.state_dict())
    assert other.state_dict() == updates.state_dict() != Updates("fp16", "cpu").state_dict()


def test_gradients_that_always_overflow_end_the_run_with_epoch_batch_and_images(make_engine, run):
    class Endless(Hook):
        """Adds 0 to the loss, and NaN to the gradients."""

        def loss(self, engine, images, logits):
            return {"loss_n": (0 * engine.model.classifier.weight).sqrt().sum()}

    engine = make_engine([Endless()], amg__precision="fp16")
    before = engine.model.classifier.weight.detach().clone()
    with pytest.raises(RunError, match=r"At epoch 6, batch 2 \(.*\.jpg.*\) gradients are too large for fp16.*bf16"):
        run(engine, 9)
    assert torch.equal(engine.model.classifier.weight, before)


class Rates(Hook):
    def __init__(self):
        self.rates = []

    def after_step(self, engine, summary):
        self.rates.append(engine.get_current_lr())


def test_the_rate_of_a_step_is_that_of_its_first_batch(make_engine, run):
    single, several = Rates(), Rates()
    options = {"train__lr_scheduler": "cosine", "amg__lr_per_step": True, "amg__warmup_epochs": 0.5}
    run(make_engine([single], epochs=2, **options), 2)
    run(make_engine([several], epochs=2, amg__accumulate=2, **options), 2)
    assert several.rates == [single.rates[batch - batch % BATCHES % 2] for batch in range(2 * BATCHES)]


def test_an_epoch_has_a_step_per_group(make_engine, run):
    engine = run(make_engine(amg__accumulate=2, train__optim="adam"), 2)
    steps = {int(state["step"]) for state in engine.optimizer.state.values()}
    assert steps == {2 * -(-BATCHES // 2)}


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_scores_and_statistics_are_made_in_full_precision(make_engine, precision):
    def scored(precision):
        engine = make_engine(loss__name="triplet", amg__precision=precision)
        calibration = build_calibration(engine, "score")
        batch = next(iter(calibration.batches()))
        return calibration.forward(batch), calibration.loss(batch)

    for half, full in zip(scored(precision), scored("fp32"), strict=True):
        assert half.dtype == torch.float32
        assert torch.equal(half, full)
