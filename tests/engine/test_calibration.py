"""What scoring sees, and that it leaves the model alone."""

import pytest
import torch
from tiny_run import BATCH, BATCHES
from torch import nn

from amg_plugin.engine.calibration import build_calibration, calibration_loader, scoring_mode
from amg_plugin.errors import AMGError
from amg_plugin.models.vit import temporarily
from amg_plugin.registries import HEAD_SCORERS, TOKEN_SCORERS

AUGMENTED = {"data__transforms": ["random_flip", "random_crop", "random_erase"]}


def images_of(calibration):
    return torch.cat([images for images, *_ in calibration.batches()])


def known_images(engine):
    """Every training image as evaluation would see it."""
    dataset = engine.train_loader.dataset
    images = [calibration_loader(engine).dataset[index]["img"] for index in range(len(dataset))]
    return torch.stack(images)


def found_in(images, known):
    return [bool((image == known).flatten(1).all(1).any()) for image in images]


def test_scoring_sees_the_training_images_without_augmentation(make_engine):
    engine = make_engine(**AUGMENTED)
    images = images_of(build_calibration(engine, "score"))
    assert len(images) == BATCH * BATCHES
    assert all(found_in(images, known_images(engine)))


def test_scoring_sees_augmented_images_when_asked_to(make_engine):
    engine = make_engine(amg__calibration__augment=True, **AUGMENTED)
    assert not all(found_in(images_of(build_calibration(engine, "score")), known_images(engine)))


def test_the_training_loader_keeps_its_augmentation(make_engine):
    engine = make_engine(**AUGMENTED)
    before = engine.train_loader.dataset.transform
    images_of(build_calibration(engine, "score"))
    assert engine.train_loader.dataset.transform is before
    assert not all(found_in(torch.cat([batch["img"] for batch in engine.train_loader]), known_images(engine)))


@pytest.mark.parametrize(("batches", "expected"), [(0, BATCHES), (2, 2), (99, BATCHES)])
def test_the_number_of_batches_is_that_of_the_configuration(make_engine, batches, expected):
    engine = make_engine(amg__calibration__batches=batches)
    assert len(images_of(build_calibration(engine, "score"))) == expected * BATCH


@pytest.mark.parametrize("loss", ["softmax", "triplet"])
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_the_loss_is_the_task_loss_on_training_outputs_in_either_mode(make_engine, loss, mode):
    engine = make_engine(loss__name=loss, loss__triplet__weight_x=1.0)
    calibration = build_calibration(engine, "score")
    batch = next(iter(calibration.batches()))
    with scoring_mode(engine.model, mode):
        expected = engine.task_loss(engine.model.training_outputs(batch[0]), batch[1])
        assert calibration.loss(batch).item() == pytest.approx(expected.item(), rel=1e-6)


def statistics(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize(("scorers", "name"), [(HEAD_SCORERS, "amg"), (TOKEN_SCORERS, "amg")])
def test_scoring_leaves_no_trace_in_the_model(make_engine, mode, scorers, name):
    engine = make_engine(amg__calibration__mode=mode)
    before, modes = statistics(engine.model), [module.training for module in engine.model.modules()]
    with scoring_mode(engine.model, mode):
        scorers.load(name)(engine.model, build_calibration(engine, "score"), [0, 1])
    assert all(torch.equal(value, before[name]) for name, value in statistics(engine.model).items())
    assert [module.training for module in engine.model.modules()] == modes
    assert all(parameter.grad is None and parameter.requires_grad for parameter in engine.model.parameters())


def test_train_mode_does_use_batch_statistics(make_engine):
    """Otherwise the test above would say nothing."""
    engine = make_engine()
    before = engine.model.bottleneck.running_mean.clone()
    calibration = build_calibration(engine, "score")
    with scoring_mode(engine.model, "train"):
        calibration.loss(next(iter(calibration.batches())))
        assert not torch.equal(engine.model.bottleneck.running_mean, before)
    assert torch.equal(engine.model.bottleneck.running_mean, before)


def test_mixed_modes_are_restored_even_after_a_failure():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout()).train()
    model[0].eval()
    with pytest.raises(AMGError), scoring_mode(model, "train"):
        assert model[0].training
        raise AMGError
    assert [module.training for module in model.modules()] == [True, False, True]


def test_short_epochs_shorten_training_and_calibration(make_engine):
    engine = make_engine(amg__batches_per_epoch=2)
    assert len(engine.train_loader) == 2
    assert sum(1 for _ in build_calibration(engine, "").batches()) == 2


def test_scoring_is_in_float32_whatever_is_set_around_it(make_engine):
    products, engine = torch.backends.cuda.matmul, make_engine()
    calibration = build_calibration(engine, "score")
    batch = next(iter(calibration.batches()))
    with scoring_mode(engine.model, "eval"):
        plain = calibration.forward(batch)
    with temporarily("fp32_precision", "tf32", [products]), torch.autocast("cpu", dtype=torch.bfloat16):
        with scoring_mode(engine.model, "eval"):
            assert products.fp32_precision == "ieee"
            assert torch.equal(calibration.forward(batch), plain)
        assert products.fp32_precision == "tf32"
