"""The table that users extend: what is entered, what is refused, and what is loaded when."""

import sys
from dataclasses import dataclass

import pytest

from amg_plugin.errors import ConfigError, InputError, MissingDependencyError
from amg_plugin.registries.registry import Registry, Row


@dataclass(frozen=True)
class Sauce(Row):
    hot: bool = False


@pytest.fixture
def table():
    return Registry("sauce", Sauce)


def mustard():
    """Ground seeds.

    And more.
    """


def test_a_decorator_enters_a_thing_with_its_docstring(table):
    assert table.register("mustard", hot=True)(mustard) is mustard
    assert table.row("mustard") == Sauce("mustard", mustard, "Ground seeds.", hot=True)


def test_a_call_enters_it_alike(table):
    assert table.register("mustard", mustard, summary="Yellow.") is mustard
    assert table.row("mustard").summary == "Yellow."


@pytest.mark.parametrize("again", [mustard, f"{__name__}:mustard"])
def test_the_same_thing_may_be_entered_again(table, again):
    table.register("mustard", mustard)
    table.register("mustard", again)
    assert table.names() == ["mustard"]


def test_a_taken_name_is_refused_to_another_thing(table):
    table.register("mustard", mustard)
    with pytest.raises(InputError, match="sauce name 'mustard' is already taken"):
        table.register("mustard", print)
    assert table.load("mustard") is mustard


@pytest.mark.parametrize("name", ["", None, 3])
def test_a_name_is_a_text(table, name):
    with pytest.raises(InputError, match="name of a sauce must be a text"):
        table.register(name, mustard)


def test_names_keep_their_order(table):
    for name in ("b", "a"):
        table.register(name, print)
    assert list(table) == table.names() == ["b", "a"]
    assert len(table) == 2 and "a" in table and "c" not in table


def test_an_unknown_name_is_refused_with_the_names_and_the_nearest(table):
    table.register("mustard", mustard)
    table.register("mayo", print)
    with pytest.raises(
        ConfigError, match=r"Unknown sauce 'mustart'; allowed are mustard, mayo \(did you mean 'mustard"
    ):
        table.load("mustart")


def test_a_place_is_imported_on_use_only(table):
    sys.modules.pop("wave", None)
    table.register("wave", "wave:Wave_read.getnframes")
    assert "wave" not in sys.modules
    assert table.load("wave").__name__ == "getnframes"


def test_a_missing_package_is_named(table):
    table.register("far", "nowhere_to_be_found:thing", needs=("nowhere_to_be_found",))
    with pytest.raises(MissingDependencyError, match=r"'far' needs 'nowhere_to_be_found'.*pip install"):
        table.load("far")
