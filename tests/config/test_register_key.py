"""Keys that users add to the configuration."""

import pytest

from amg_plugin.config import load_config, register_key
from amg_plugin.config.schema import KEYS
from amg_plugin.errors import ConfigError, InputError


@pytest.fixture(autouse=True)
def key():
    register_key("amg.user.weight", 0.5, "a weight", check=lambda value: "" if value >= 0 else "at least 0")
    yield
    del KEYS["amg.user.weight"]


def test_a_registered_key_has_its_default_and_takes_values():
    assert load_config(None).amg.user.weight == 0.5
    assert load_config(None, ["amg.user.weight", "2"]).amg.user.weight == 2.0


@pytest.mark.parametrize(("word", "said"), [("-1", "must be at least 0"), ("much", "must be a number")])
def test_an_impossible_value_of_it_is_refused(word, said):
    with pytest.raises(ConfigError, match=rf"'amg\.user\.weight' .*{said}"):
        load_config(None, ["amg.user.weight", word])


def test_a_misspelt_one_is_suggested():
    with pytest.raises(ConfigError, match=r"did you mean 'amg\.user\.weight'"):
        load_config(None, ["amg.user.weigth", "1"])


def test_registering_it_again_changes_nothing():
    register_key("amg.user.weight", 0.5, "a weight")
    assert load_config(None).amg.user.weight == 0.5


@pytest.mark.parametrize(
    ("name", "default", "said"),
    [
        ("amg.user.weight", 0.7, "already taken"),
        ("amg.stride", 1, "already taken"),
        ("amg.user", 1, "already taken"),
        ("amg.stride.x", 1, "cannot be a configuration key"),
        ("weight", 1, "dotted name"),
        ("amg.my-key", 1, "dotted name"),
        ("amg.my_key", None, "must be a bool, int, float, str or list"),
    ],
)
def test_what_cannot_be_a_key_is_refused(name, default, said):
    with pytest.raises(InputError, match=said):
        register_key(name, default, "text")
    assert name not in KEYS or KEYS[name].default != default
