"""List the shipped configurations, or print one.

--config-file takes the names of the list, where each says what it is for. What is printed of one holds everything that
the file and the files it inherits from say; it is a configuration too.

example: amg-reid configs
         amg-reid configs market1501/vit_small_head25_token25 > my.yaml

more: docs/configuration.md
"""

from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from amg_plugin.cli.arguments import adder, argument

add_arguments = adder(argument("config", "print this one: a name of the list, or a file", nargs="?", metavar="NAME"))


def run(args: Namespace) -> int:
    """List or print; 0 on success."""
    from amg_plugin.config.files import find_config, list_configs

    if args.config is not None:
        print(_resolved(find_config(args.config)), end="")
        return 0
    names = list_configs()
    for name in names:
        print(f"{name:<{max(map(len, names))}}  {_summary(find_config(name))}".rstrip())
    return 0


def _summary(path: Path) -> str:
    """What the comment in the first line of a file says."""
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    return first[1:].strip() if first.startswith("#") else ""


def _resolved(path: Path) -> str:
    """A configuration as one YAML text that needs no other file."""
    import yaml

    from amg_plugin.config import load_config, to_plain_dict
    from amg_plugin.config.files import read_layers

    whole = to_plain_dict(load_config(path))
    # Values as they were understood: what a later file replaced (a schedule by a target) does not come back.
    given: dict[str, Any] = {}
    for layer in read_layers(path):
        _merge(given, layer.values, whole)
    lines = [f"# {_summary(path)}".rstrip()]
    if "max_epoch" in given.get("train", {}) and whole["amg"]["schedule"]:
        epochs = given["train"].pop("max_epoch")
        lines.append(f"# train.max_epoch {epochs} belongs to the dense model: amg.schedule decides the epochs here.")
    return "\n".join([*lines, yaml.safe_dump(given, sort_keys=False, default_flow_style=None, width=100)])


def _merge(into: dict[str, Any], layer: Mapping[str, Any], whole: Mapping[str, Any]) -> None:
    """Add the keys that a layer gives, with the values that hold in the end."""
    for key, value in layer.items():
        if isinstance(value, dict):
            _merge(into.setdefault(key, {}), value, whole[key])
        else:
            into[key] = whole[key]
