import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import Compose, InterpolationMode, Normalize, RandomCrop, Resize, ToTensor

from amg_plugin import compat
from amg_plugin.data.occlusion.settings import Coverage
from amg_plugin.data.transforms import (
    PAD,
    RandomOcclusion,
    check_transform_names,
    place_transforms,
)
from amg_plugin.errors import ConfigError, RunError
from amg_plugin.registries import TRANSFORMS, register_transform

pytestmark = pytest.mark.skipif(not compat.is_installed(), reason="torchreid is not installed")


def stock(names):
    return [name for name in names if TRANSFORMS.row(name).stock]


def pipelines(names, height=40, width=20):
    data = vars(compat.torchreid().data)
    train, test = data["transforms"].build_transforms(height, width, transforms=stock(names))
    place_transforms(names, train, test, height, width)
    return train, test


def kinds(pipeline):
    return [type(step).__name__ for step in pipeline.transforms]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, []),
        ("Random_Flip", ["random_flip"]),
        (["pad_crop", "BICUBIC"], ["pad_crop", "bicubic"]),
        (["random_flip", "random_flip"], ["random_flip"]),
    ],
)
def test_names_are_normalised(given, expected):
    assert check_transform_names(given) == expected


@pytest.mark.parametrize("given", ["random_flop", ["random_flip", "autoaugment"], [3]])
def test_unknown_names_are_refused_with_the_allowed_ones(given):
    with pytest.raises(ConfigError, match=r"random_flip.*pad_crop.*bicubic"):
        check_transform_names(given)


def test_torchreid_knows_the_names_that_we_give_to_it():
    without, _ = pipelines([])
    for name in stock(TRANSFORMS.names()):
        assert len(pipelines([name])[0].transforms) == len(without.transforms) + 1


def test_pad_crop_is_the_last_step_on_the_image_and_for_training_only():
    train, test = pipelines(["random_flip", "pad_crop", "random_erase"])
    steps = kinds(train)
    assert steps.index("RandomHorizontalFlip") < steps.index("RandomCrop") == steps.index("ToTensor") - 1
    assert "RandomCrop" not in kinds(test)


def test_pad_crop_shifts_the_image_and_fills_with_black():
    train, _ = pipelines(["pad_crop"])
    crop = next(step for step in train.transforms if isinstance(step, RandomCrop))
    white = Image.new("RGB", (20, 40), (255, 255, 255))
    torch.manual_seed(0)
    crops = [np.asarray(crop(white)) for _ in range(50)]
    assert all(image.shape == (40, 20, 3) for image in crops)
    black_rows = [int((image.max(axis=(1, 2)) == 0).sum()) for image in crops]
    assert 0 < max(black_rows) <= PAD
    assert len(set(black_rows)) > 3


def test_bicubic_resizes_training_and_test_images():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 30, 3), dtype=np.uint8))
    expected = np.asarray(noise.resize((20, 40), Image.Resampling.BICUBIC))
    for pipeline in pipelines(["bicubic"]):
        resize = pipeline.transforms[0]
        assert resize.interpolation == InterpolationMode.BICUBIC
        assert np.array_equal(np.asarray(resize(noise)), expected)


def occluded_copies(count=40, **changes):
    """What the step makes of a white image, from torch's seed 0."""
    step, white = RandomOcclusion(**changes), Image.new("RGB", (20, 40), "white")
    torch.manual_seed(0)
    return [np.asarray(step(white)) for _ in range(count)]


def test_random_occlusion_is_the_last_step_on_the_image_and_for_training_only():
    train, test = pipelines(["random_flip", "random_occlusion", "pad_crop", "random_erase"])
    steps = kinds(train)
    assert steps.index("RandomCrop") < steps.index("RandomOcclusion") == steps.index("ToTensor") - 1
    assert "RandomOcclusion" not in kinds(test)


@pytest.mark.parametrize("probability", [0.0, 0.5, 1.0])
def test_random_occlusion_hides_a_part_of_the_asked_share_of_images(probability):
    hidden = [(image != 255).any(axis=-1).mean() for image in occluded_copies(200, probability=probability)]
    assert np.mean([share > 0 for share in hidden]) == pytest.approx(probability, abs=0.12)
    assert all(share < 0.75 for share in hidden)


def test_random_occlusion_repeats_from_torchs_seed_and_draws_anew_each_time():
    first, second = (occluded_copies(probability=1.0, coverage=Coverage(0.3, 0.4)) for _ in range(2))
    assert all(np.array_equal(one, other) for one, other in zip(first, second, strict=True))
    assert len({image.tobytes() for image in first}) == len(first)


def test_the_settings_of_a_transform_reach_random_occlusion():
    step = RandomOcclusion(0.25, Coverage(0.1, 0.2))
    train = Compose([Resize((40, 20)), ToTensor()])
    place_transforms(["random_occlusion"], train, train, 40, 20, {"random_occlusion": {"occlusion": step}})
    assert train.transforms[1] is step


def test_an_impossible_probability_is_refused():
    with pytest.raises(ConfigError, match="probability"):
        RandomOcclusion(1.5)


def test_without_plugin_names_the_pipelines_stay_as_they_are():
    train, test = pipelines(["random_flip"])
    assert kinds(train) == ["Resize", "RandomHorizontalFlip", "ToTensor", "Normalize"]
    assert kinds(test) == ["Resize", "ToTensor", "Normalize"]


def test_a_pipeline_without_resize_is_refused():
    pipeline = Compose([ToTensor(), Normalize([0.5], [0.5])])
    with pytest.raises(RunError, match="Resize"):
        place_transforms(["bicubic"], pipeline, Compose([Resize((40, 20))]), 40, 20)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_every_transform_gives_a_tensor_of_the_asked_size(name):
    image = Image.new("RGB", (33, 71), (200, 100, 50))
    for pipeline in pipelines([name]):
        assert pipeline(image).shape == (3, 40, 20)


@pytest.fixture
def open_table(monkeypatch):
    monkeypatch.setattr(TRANSFORMS, "rows", dict(TRANSFORMS.rows))


class Invert:
    """Swaps dark and bright."""

    def __call__(self, image):
        return Image.eval(image, lambda value: 255 - value)


def grey(image):
    """Takes the colours away."""
    return image.convert("L").convert("RGB")


@pytest.mark.parametrize("transform", [Invert, grey])
def test_a_transform_of_the_user_is_the_last_step_on_training_images(open_table, transform):
    register_transform("Mine", transform)
    train, test = pipelines(check_transform_names(["mine", "pad_crop"]))
    assert kinds(train)[:2] == ["Resize", "RandomCrop"] and kinds(train)[3:] == ["ToTensor", "Normalize"]
    assert train(Image.new("RGB", (33, 71), (200, 100, 50))).shape == (3, 40, 20)
    assert kinds(test) == ["Resize", "ToTensor", "Normalize"]


def test_a_transform_of_the_user_is_named_among_those_allowed(open_table):
    register_transform("mine", grey)
    with pytest.raises(ConfigError, match=r"unknown transform 'mien'; allowed are random_flip.*, mine"):
        check_transform_names(["mien"])
