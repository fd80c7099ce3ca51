"""How a run was made: its command, and what its configuration has that others do not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from amg_plugin.config import get_default_config, load_config, to_plain_dict
from amg_plugin.errors import ConfigError
from amg_plugin.report.reading import Run
from amg_plugin.utils.places import plain_values, typed_command, without_folders
from amg_plugin.utils.tables import duration

#: Keys that say where a run was, or that follow from others.
_LEFT_OUT = ("data.root", "data.save_dir", "amg.image_size", "amg.imports", "amg.report")


@dataclass(frozen=True)
class Made:
    """How a run was made.

    Attributes:
        name: Its name on the page.
        command: The command to repeat it, empty if the result does not hold it.
        facts: Names and values: device, seed, duration, versions.
        base: What the configuration is compared with, in words.
        changed: Keys that differ from the base: key, value, value of the base.
        unusual: Keys that differ from the defaults, in the same form, if that is another list.
    """

    name: str
    command: str
    facts: list[tuple[str, str]]
    base: str
    changed: list[tuple[str, str, str]]
    unusual: list[tuple[str, str, str]]


def made(run: Run) -> Made:
    """How a run was made."""
    result, own = run.result, flat(run.result["config"])
    words = result.get("arguments", [])
    defaults = flat(to_plain_dict(get_default_config()))
    base, name = defaults, "the defaults of amg_plugin"
    if file := result.get("config_file", ""):
        try:
            base = flat(to_plain_dict(load_config(file, use_schedule=False)))
            name = f"its base, {without_folders(file)}"
        except ConfigError:
            name += f" (its base, {without_folders(file)}, is not here)"
    changed, unusual = differences(own, base), differences(own, defaults)
    versions = ", ".join(f"{package} {version}" for package, version in result["versions"].items())
    facts = [
        ("device", f"{result['device']}, {result['threads']} thread{'s' * (result['threads'] != 1)}"),
        ("seed", str(result["seed"])),
        ("duration", duration(float(result["seconds"]))),
        ("versions", versions),
    ]
    command = typed_command(words) if words else ""
    return Made(run.name, command, facts, name, changed, [] if base is defaults else unusual)


def apart(runs: Sequence[Run]) -> list[tuple[str, ...]]:
    """Keys that several runs do not share: key, and the value of each run."""
    own = [flat(run.result["config"]) for run in runs]
    keys = [key for key in dict.fromkeys(key for one in own for key in one) if key not in _LEFT_OUT]
    rows = [(key, *(_shown(one[key]) if key in one else "" for one in own)) for key in keys]
    return [row for row in rows if len(set(row[1:])) > 1]


def differences(own: Mapping[str, Any], base: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Keys with another value, without what belongs to one machine."""
    return [
        (key, _shown(value), _shown(base[key]) if key in base else "")
        for key, value in own.items()
        if key not in _LEFT_OUT and value != base.get(key)
    ]


def flat(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by dotted keys."""
    values: dict[str, Any] = {}
    for name, value in node.items():
        nested = isinstance(value, Mapping) and value
        values |= flat(value, f"{prefix}{name}.") if nested else {f"{prefix}{name}": value}
    return values


def _shown(value: Any) -> str:
    value = plain_values(value)
    if isinstance(value, list):
        return "[" + ", ".join(_shown(item) for item in value) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_shown(item)}" for key, item in value.items()) + "}"
    if isinstance(value, float):
        return f"{value:g}"
    return "''" if value == "" else str(value)
