"""``amg-reid configs``: the shipped configurations."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

HELP = "list the shipped configurations, or print one"
DESCRIPTION = """List the configurations that --config-file takes by name, each with what it says of itself, or print
one. What is printed holds everything that the file and the files it inherits from say; it is a configuration too.

example: amg-reid configs
         amg-reid configs market1501/vit_small_head25_token25 > my.yaml"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("config", nargs="?", metavar="NAME", help="print this one: a name of the list, or a file")


def run(args: argparse.Namespace) -> int:
    """List or print; 0 on success."""
    from amg_plugin.config.files import find_config, list_configs

    if args.config is not None:
        print(resolved(args.config), end="")
        return 0
    names = list_configs()
    width = max(map(len, names))
    for name in names:
        print(f"{name:<{width}}  {summary(find_config(name))}".rstrip())
    return 0


def summary(path: Path) -> str:
    """What the comment in the first line of a file says."""
    first, *_ = [*path.read_text(encoding="utf-8").splitlines(), ""]
    return first[1:].strip() if first.startswith("#") else ""


def resolved(path_or_name: str) -> str:
    """A configuration as one YAML text that needs no other file.

    Raises:
        ConfigError: If there is no such configuration, or it is malformed.
    """
    import yaml

    from amg_plugin.config.files import find_config, read_layers
    from amg_plugin.config.load import load_config, to_plain_dict

    path = find_config(path_or_name)
    whole = to_plain_dict(load_config(path))
    given: dict[str, Any] = {}
    for layer in read_layers(path):
        _merge(given, layer.values)
    lines = [f"# {summary(path)}".rstrip()]
    if "max_epoch" in given.get("train", {}) and whole["amg"]["schedule"]:
        epochs = given["train"].pop("max_epoch")
        lines.append(f"# train.max_epoch {epochs} belongs to the dense model: amg.schedule decides the epochs here.")
    # Values as they were understood: what a later file replaced (a schedule by a target) does not come back.
    values = _values(given, whole)
    return "\n".join([*lines, yaml.safe_dump(values, sort_keys=False, default_flow_style=None, width=100)])


def _merge(into: dict[str, Any], values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        if isinstance(value, dict):
            _merge(into.setdefault(key, {}), value)
        else:
            into[key] = value


def _values(given: Mapping[str, Any], whole: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _values(value, whole[key]) if isinstance(value, dict) else whole[key] for key, value in given.items()}
