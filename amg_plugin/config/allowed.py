"""What a single value may be: checks that return nothing for a possible value, and what is allowed for another one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from amg_plugin.registries.registry import Registry

Check = Callable[[Any], str]
"""Value -> what is allowed in its place; empty if the value is possible."""


def allowed(possible: Callable[[Any], bool], text: str) -> Check:
    """What ``possible`` says; ``text`` completes "must be"."""
    return lambda value: "" if possible(value) else text


def at_least(least: float) -> Check:
    """A number from ``least`` on."""
    return allowed(lambda value: value >= least, f"at least {least}")


def between(least: float, most: float) -> Check:
    """A number from ``least`` to ``most``."""
    return allowed(lambda value: least <= value <= most, f"from {least:g} to {most:g}")


def one_of(*words: str | Registry) -> Check:
    """One of some words, and of the names that tables hold by then."""

    def check(value: Any) -> str:
        names = [name for word in words for name in ([word] if isinstance(word, str) else word)]
        return "" if value in names else f"one of {', '.join(map(repr, names))}"

    return check


def each(check: Check) -> Check:
    """A list whose items pass ``check``."""

    def check_all(value: Sequence[Any]) -> str:
        texts = [text for item in value if (text := check(item))]
        return (
            f"a list of {texts[0].removeprefix('one of ') or 'registered names, of which there are none'}"
            if texts
            else ""
        )

    return check_all


POSITIVE = allowed(lambda value: value > 0, "greater than 0")
BELOW_1 = allowed(lambda value: 0 <= value < 1, "at least 0 and less than 1")
NOT_EMPTY = allowed(bool, "not empty")
COUNTS = allowed(
    lambda value: bool(value) and all(item >= 1 for item in value), "a list of one or more integers of at least 1"
)
