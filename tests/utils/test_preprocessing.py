"""How images are prepared is recorded completely, or refused."""

import pytest

from amg_plugin.config.load import load_config
from amg_plugin.errors import CheckpointError
from amg_plugin.utils.preprocessing import Preprocessing

STORED = {"height": 256, "width": 128, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.2], "interpolation": "bicubic"}


def test_it_reads_back_as_it_was_stored():
    assert Preprocessing.from_dict(STORED, "model.pth").to_dict() == STORED


@pytest.mark.parametrize("name", list(STORED))
def test_what_is_missing_is_named(name):
    values = {key: value for key, value in STORED.items() if key != name}
    with pytest.raises(CheckpointError, match=rf"'model\.pth' does not record how images are prepared \({name}\)"):
        Preprocessing.from_dict(values, "model.pth")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("height", "a"),
        ("width", 0),
        ("mean", [1]),
        ("mean", None),
        ("std", [1, 1, 0]),
        ("std", [1, 1, "a"]),
        ("interpolation", "nearest"),
    ],
)
def test_impossible_values_are_named_with_what_is_allowed(name, value):
    with pytest.raises(CheckpointError, match=rf"'model\.pth' has {name} .* must be "):
        Preprocessing.from_dict({**STORED, name: value}, "model.pth")


@pytest.mark.parametrize(("transforms", "expected"), [(["random_flip"], "bilinear"), (["Bicubic"], "bicubic")])
def test_a_configuration_says_it(transforms, expected):
    cfg = load_config(None, ["data.transforms", transforms, "data.height", 64], use_schedule=False)
    found = Preprocessing.from_config(cfg.data)
    assert (found.height, found.mean, found.interpolation) == (64, (0.485, 0.456, 0.406), expected)
