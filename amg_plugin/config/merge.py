"""Merging values into a configuration, with the type of each default as the type that is allowed."""

from __future__ import annotations

import ast
import difflib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from yacs.config import CfgNode

from amg_plugin.config.files import Layer, parse_yaml
from amg_plugin.config.schema import KEYS, get_default_config
from amg_plugin.errors import ConfigError

COMMAND_LINE = "the command line"
_TYPE_NAMES = {
    bool: "True or False",
    int: "an integer",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "a mapping",
}
_ELEMENT_NAMES = {int: "integers", float: "numbers", str: "texts", dict: "mappings"}
_LIST_EXAMPLES = {
    int: "[20, 40]",
    float: "[0.5, 0.5, 0.5]",
    str: "['a', 'b']",
    dict: "[{target: heads, rate: 0.25}]",
}


def merge(node: CfgNode, layer: Layer, prefix: str = "") -> None:
    """Put the values of a layer into ``node``, in place.

    Args:
        node: node of the configuration that has every allowed key.
        layer: nested values and the name of their source.
        prefix: dotted key of ``node``, for messages and suggestions.

    Raises:
        ConfigError: unknown key or value of another type.
    """
    for name, value in layer.values.items():
        key = f"{prefix}.{name}" if prefix else str(name)
        if name not in node:
            raise ConfigError(_unknown_key(key, prefix, node, layer.where))
        if isinstance(node[name], CfgNode):
            if not isinstance(value, Mapping):
                raise ConfigError(_node_without_mapping(key, value, node[name], layer.where))
            merge(node[name], Layer(layer.where, dict(value)), key)
        else:
            node[name] = _coerce(key, value, node[name], layer.where)


def override_layer(overrides: Sequence[object]) -> Layer:
    """Turn trailing ``key value`` words into a layer.

    Args:
        overrides: alternating dotted keys and values. Where the key does not hold text, text is read as a
            Python literal or as YAML; other objects are taken as they are.

    Raises:
        ConfigError: odd number of words, unknown key, a key that is not text, or an option among the words.
    """
    for word in map(str, overrides[::2]):
        if word.startswith("-") and word.lstrip("-")[:1].isalpha():
            raise ConfigError(f"'{word}' is where a key is expected: options go before the 'key value' pairs.")
    if len(overrides) % 2:
        raise ConfigError(
            f"Overrides come as pairs 'key value', but {overrides[-1]!r} has no partner in: "
            f"{' '.join(map(str, overrides))}."
        )
    defaults = get_default_config()
    values: dict[str, Any] = {}
    for key, value in zip(overrides[::2], overrides[1::2], strict=True):
        default = _lookup(defaults, str(key))
        if isinstance(default, CfgNode):
            value = decode(value) if isinstance(value, str) else value
            if not isinstance(value, Mapping):
                raise ConfigError(_node_without_mapping(str(key), value, default, COMMAND_LINE))
        node = values
        *parents, name = str(key).split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
        if isinstance(node.get(name), dict) and isinstance(value, Mapping):
            value = {**node[name], **value}
        node[name] = value
    return Layer(COMMAND_LINE, values)


def decode(text: str) -> Any:
    """Read text as a Python literal, else as YAML; text that is neither stays as it is."""
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        pass
    try:
        return parse_yaml(text)
    except (yaml.YAMLError, ValueError, RecursionError):  # ValueError: a date such as 2024-13-45
        return text


def _lookup(defaults: CfgNode, key: str) -> Any:
    node: Any = defaults
    prefix = ""
    for name in key.split("."):
        if not isinstance(node, CfgNode) or name not in node:
            raise ConfigError(_unknown_key(key, prefix, node, COMMAND_LINE))
        node = node[name]
        prefix = f"{prefix}.{name}" if prefix else name
    return node


def _node_without_mapping(key: str, value: object, node: CfgNode, where: str) -> str:
    return f"'{key}' from {where} is {value!r}, but must be a mapping with keys out of {', '.join(node)}."


def _unknown_key(key: str, prefix: str, node: Any, where: str) -> str:
    known = list(KEYS)
    # The right name in the wrong node is the likelier slip than a misspelt name.
    same_name = [item for item in known if item.rsplit(".", 1)[-1] == key.rsplit(".", 1)[-1]]
    same_node = [item for item in same_name if item.split(".")[0] == key.split(".")[0]]
    near = (same_node or same_name)[:1] or difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean '{near[0]}'? " if near else ""
    allowed = ", ".join(map(str, node)) if isinstance(node, CfgNode) else "no keys of its own"
    return f"Unknown key '{key}' from {where}: {hint}'{prefix or 'the top level'}' has {allowed}."


def _coerce(key: str, value: Any, default: Any, where: str) -> Any:
    """Return ``value`` as the type of ``default``."""
    wanted, element = type(default), KEYS[key].element
    value = _typed(value, wanted)
    if element and isinstance(value, list | tuple):
        items = [item if element is str else _typed(item, element) for item in value]
        if not all(_is_a(item, element) for item in items):
            raise ConfigError(f"'{key}' from {where} is {value!r}, but must be a list of {_ELEMENT_NAMES[element]}.")
        return items
    if not _is_a(value, wanted):
        shape = f', such as "{_LIST_EXAMPLES[element]}"' if element else ""
        raise ConfigError(f"'{key}' from {where} is {value!r}, but must be {_TYPE_NAMES[wanted]}{shape}.")
    return value


def _typed(value: Any, wanted: type) -> Any:
    """``value``, decoded where text stands for something else: YAML reads 1e-4 as text, a command line everything."""
    if isinstance(value, str):
        decoded = decode(value)
        value = decoded if wanted is not str or isinstance(decoded, str) else value
    if wanted is float and _is_a(value, float):
        return float(value)
    return dict(value) if wanted is dict and isinstance(value, dict) else value


def _is_a(value: Any, wanted: type) -> bool:
    if isinstance(value, bool):  # a bool is an int to Python, never to a reader of a configuration
        return wanted is bool
    if wanted is float:
        return isinstance(value, int | float) and abs(value) <= sys.float_info.max  # neither inf nor nan
    return isinstance(value, wanted)
