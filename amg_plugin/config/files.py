"""Finding and reading configuration files: shipped names, safe YAML and ``_BASE_`` inheritance."""

from __future__ import annotations

import difflib
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from amg_plugin.errors import ConfigError

BASE_KEY = "_BASE_"
_SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True)
class Layer:
    """What one source says: a file without its bases, or the command line.

    Attributes:
        where: name of the source, for messages.
        values: nested mapping of configuration keys.
    """

    where: str
    values: dict[str, Any]


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML that refuses a key given twice, of which plain YAML would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable):
                if key in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"key {key!r} is given twice", key_node.start_mark
                    )
                seen.add(key)
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
    path = Path(path_or_name).expanduser()
    if path.is_file():
        return path.resolve()
    shipped = _find_shipped(str(path_or_name))
    if shipped is not None:
        return shipped
    names = list_configs()
    near = difflib.get_close_matches(Path(path_or_name).with_suffix("").as_posix(), names, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"the shipped ones are {', '.join(names)}."
    raise ConfigError(f"There is no configuration '{path_or_name}': give a file or the name of a shipped one; {hint}")


def _find_shipped(name: str) -> Path | None:
    for suffix in ("", *_SUFFIXES):
        candidate = configs_root() / (name + suffix)
        if candidate.is_file():
            return candidate.resolve()
    return None


def read_layers(path: str | Path) -> list[Layer]:
    """Read a file and everything it inherits from.

    ``_BASE_`` is a file name or a list of them, relative to the file that says it, or names of shipped
    configurations. Later bases override earlier ones, and a file overrides its bases. A file reached on
    several ways counts once, where it is first reached.

    Args:
        path: file, or name of a shipped configuration.

    Returns:
        Layers in the order in which they are to be applied.

    Raises:
        ConfigError: file missing, unreadable, not a mapping, or part of a cycle.
    """
    layers: list[Layer] = []
    _collect(find_config(path), (), set(), layers)
    return layers


def _collect(path: Path, chain: tuple[Path, ...], done: set[Path], layers: list[Layer]) -> None:
    if path in chain:
        names = " -> ".join(item.name for item in (*chain[chain.index(path) :], path))
        raise ConfigError(f"The '{BASE_KEY}' entries of {path} form a cycle: {names}.")
    if path in done:
        return
    values = _read_yaml(path)
    for base in _bases(values.pop(BASE_KEY, []), path):
        _collect(base, (*chain, path), done, layers)
    done.add(path)
    layers.append(Layer(str(path), values))


def _bases(entry: object, path: Path) -> list[Path]:
    entries = [entry] if isinstance(entry, str) else entry
    if not isinstance(entries, list) or not all(isinstance(item, str) and item for item in entries):
        raise ConfigError(f"'{BASE_KEY}' in {path} is {entry!r}, but must be a file name or a list of file names.")
    found = []
    for item in entries:
        beside = path.parent / Path(item).expanduser()
        base = beside.resolve() if beside.is_file() else _find_shipped(item)
        if base is None:
            raise ConfigError(
                f"'{BASE_KEY}' in {path} names '{item}', but there is no file {beside} and no shipped "
                f"configuration of that name."
            )
        found.append(base)
    return found


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"The configuration {path} cannot be read: {error}.") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date such as 2024-13-45
        raise ConfigError(f"The configuration {path} is not valid YAML: {_one_line(error)}.") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"The configuration {path} must hold 'key: value' lines, not a {type(values).__name__}.")
    return values


def parse_yaml(text: str) -> Any:
    """Parse YAML safely, refusing a key that is given twice in one mapping.

    Raises:
        yaml.YAMLError: the text is not YAML, or asks for anything but plain data.
        ValueError: a date that does not exist.
    """
    return yaml.load(text, Loader=_StrictLoader)  # a SafeLoader


def _one_line(error: Exception) -> str:
    problem = getattr(error, "problem", None) or str(error)
    mark = getattr(error, "problem_mark", None)
    place = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
    return " ".join(problem.split()) + place
