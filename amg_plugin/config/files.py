"""Finding and reading configuration files: shipped names, safe YAML and ``_BASE_`` inheritance."""

from __future__ import annotations

import ast
import difflib
import math
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from amg_plugin.errors import ConfigError, shown
from amg_plugin.utils.files import expanded, kind_of, read_text

_BASE_KEY = "_BASE_"
#: Most bytes of a configuration file, and most values of one, with every alias written out.
_LARGEST, _MOST_VALUES = 1 << 20, 10_000


@dataclass(frozen=True)
class Layer:
    """What one source, ``where``, says: a file without its bases, or the command line."""

    where: str
    values: dict[str, Any]


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML that refuses aliases that stand for too much, and a key given twice, of which YAML keeps the last."""

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is not None and _written_out(node, {}) > _MOST_VALUES:
            problem = f"it stands for more than {_MOST_VALUES} values"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for place, key in enumerate(keys):
            if key in keys[:place]:
                mark = node.value[place][0].start_mark
                raise yaml.constructor.ConstructorError(None, None, f"key {shown(key)} is given twice", mark)
        return super().construct_mapping(node, deep)


def configs_root() -> Path:
    """Return the folder of the shipped configurations.

    Returns:
        ``amg_plugin/configs`` of an installed package, or ``configs`` of a checkout.

    Raises:
        ConfigError: neither folder is there.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "configs", package.parent / "configs"):
        if (folder / "_base_").is_dir():
            return folder
    raise ConfigError(f"The shipped configurations are missing: expected the folder {package / 'configs'}.")


def list_configs() -> list[str]:
    """Return the names of the shipped configurations, such as ``market1501/vit_base``, without the bases."""
    root = configs_root()
    names = (path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.yaml"))
    return sorted(name for name in names if not name.startswith("_base_/"))


def find_config(path_or_name: str | Path) -> Path:
    """Return the file meant by a path, or by the name of a shipped configuration with or without its suffix.

    Raises:
        ConfigError: no such file; the message names the nearest shipped configuration.
    """
    path = expanded(path_or_name)
    if kind_of(path) == "file":
        return path.resolve()
    shipped = _find_shipped(str(path_or_name))
    if shipped is not None:
        return shipped
    names = list_configs()
    near = difflib.get_close_matches(str(path_or_name)[:200].removesuffix(".yaml"), names, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"the shipped ones are {', '.join(names)}."
    raise ConfigError(f"There is no configuration '{path_or_name}': give a file or the name of a shipped one; {hint}")


def _find_shipped(name: str) -> Path | None:
    candidates = (configs_root() / (name + suffix) for suffix in ("", ".yaml", ".yml"))
    return next((path.resolve() for path in candidates if kind_of(path) == "file"), None)


def read_layers(path: str | Path) -> list[Layer]:
    """Read a file and everything it inherits from.

    ``_BASE_`` is a file name or a list of them, relative to the file that says it, or names of shipped
    configurations. Later bases override earlier ones, and a file overrides its bases. A file reached on
    several ways counts once, where it is first reached.

    Args:
        path: file, or name of a shipped configuration.

    Returns:
        Layers with nested values, in the order in which they are to be applied.

    Raises:
        ConfigError: file missing, unreadable, not a mapping, or part of a cycle.
    """
    layers: dict[Path, Layer] = {}

    def collect(path: Path, chain: tuple[Path, ...] = ()) -> None:
        if path in chain:
            names = " -> ".join(item.name for item in (*chain[chain.index(path) :], path))
            raise ConfigError(f"The '{_BASE_KEY}' entries of {path} form a cycle: {names}.")
        if path not in layers:
            values = _read_yaml(path)
            for base in _bases(values.pop(_BASE_KEY, []), path):
                collect(base, (*chain, path))
            layers[path] = Layer(str(path), values)

    collect(find_config(path))
    return list(layers.values())


def _bases(entry: object, path: Path) -> list[Path]:
    entries = [entry] if isinstance(entry, str) else entry
    if not isinstance(entries, list) or not all(isinstance(item, str) and item for item in entries):
        raise ConfigError(
            f"'{_BASE_KEY}' in {path} is {shown(entry)}, but must be a file name or a list of file names."
        )
    found = []
    for item in entries:
        beside = path.parent / expanded(item)
        base = beside.resolve() if kind_of(beside) == "file" else _find_shipped(item)
        if base is None:
            raise ConfigError(
                f"'{_BASE_KEY}' in {path} names '{item}', but there is no file {beside} and no shipped "
                f"configuration of that name."
            )
        found.append(base)
    return found


def _read_yaml(path: Path) -> dict[str, Any]:
    text = read_text(path, "configuration", ConfigError, _LARGEST)
    try:
        values = _parse_yaml(text)
    except Exception as error:  # a date such as 2024-13-45, nesting without end, ...
        raise ConfigError(f"The configuration {path} is not valid YAML: {_one_line(error)}.") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"The configuration {path} must hold 'key: value' lines, not a {type(values).__name__}.")
    return values


def decode(text: str) -> Any:
    """Read text as a Python literal, else as YAML; text that is neither stays as it is."""
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        pass
    try:
        return _parse_yaml(text)
    except Exception:  # a date such as 2024-13-45, nesting without end, ...
        return text


def _parse_yaml(text: str) -> Any:
    return yaml.load(text, Loader=_StrictLoader)  # a SafeLoader


def _written_out(node: yaml.Node, known: dict[int, float]) -> float:
    """Values in a node with every alias written out; without end for a node that holds itself."""
    if id(node) not in known:
        known[id(node)] = math.inf  # until its parts are counted
        parts = node.value if isinstance(node.value, list) else []
        flat = [part for item in parts for part in (item if isinstance(item, tuple) else (item,))]
        known[id(node)] = 1 + sum(_written_out(part, known) for part in flat)
    return known[id(node)]


def _one_line(error: Exception) -> str:
    problem = getattr(error, "problem", None) or str(error)
    mark = getattr(error, "problem_mark", None)
    place = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
    return " ".join(problem.split()) + place
