"""Loading configurations: files, ``key value`` overrides and stored ones, put together, checked and frozen."""

from __future__ import annotations

import copy
import difflib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from amg_plugin.config.files import Layer, decode, read_layers
from amg_plugin.config.rules import (
    BUDGET_KEYS,
    budget_targets,
    complete_balance,
    complete_schedule,
    has_budget,
    validate,
    validate_amg,
    value_of,
)
from amg_plugin.config.schema import DEFAULT_STAGES, KEYS, get_default_config
from amg_plugin.errors import ConfigError, shown
from amg_plugin.registries import imports

#: Keys below ``amg`` that stored configurations may hold and that do not count: from earlier releases, and imports, as
#: whoever asks for a checkpoint has not asked for the modules that it names.
_NOT_STORED = ("round_tokens_to", "imports")
#: Keys of earlier releases -> what to give in their place.
_REPLACED = {"amg.head_token_balance": "'amg.balance' took its place, such as {heads: 0.3, tokens: 0.7}"}
_COMMAND_LINE = "the command line"
_TYPES = {bool: "True or False", int: "an integer", float: "a number", str: "text", list: "a list", dict: "a mapping"}
#: Type of the items of a list -> what they are called, and an example.
_ITEMS = {
    int: ("integers", "[20, 40]"),
    float: ("numbers", "[0.5, 0.5, 0.5]"),
    str: ("texts", "['a', 'b']"),
    dict: ("mappings", "[{target: heads, rate: 0.25}]"),
}


def load_config(
    path_or_name: str | Path | None,
    overrides: Sequence[object] = (),
    *,
    use_schedule: bool = True,
    base: Mapping[str, Any] | None = None,
) -> CfgNode:
    """Load, complete and check a configuration.

    ``train.max_epoch`` stays as it was given: it is what dense training uses. Pruning takes its number of
    epochs from :func:`schedule_epochs`. A schedule may inherit a file that sets ``train.max_epoch`` (the
    recipe of the dense model), but ``train.max_epoch`` with the schedule or on top of it would have no
    effect, so giving both is an error.

    Args:
        path_or_name: file, name of a shipped configuration (``market1501/vit_base``), or ``None`` for the
            defaults alone.
        overrides: alternating dotted keys and values, as they follow on a command line. Where the key does not hold
            text, text is read as a Python literal or as YAML; other objects are taken as they are.
        use_schedule: ``False`` for dense training, which ignores ``amg.schedule`` and so accepts
            ``train.max_epoch`` on top of it.
        base: what :func:`to_plain_dict` made, for example out of a checkpoint; takes the place of the defaults.

    Returns:
        The frozen configuration; ``amg.image_size`` is filled in, stages of the schedule are complete, and
        ``amg.imports`` lists what this process has loaded for the user.

    Raises:
        ConfigError: file not found or malformed, unknown key, impossible value, or epochs given twice.
        InputError: a module that a file names in ``amg.imports`` fails.
    """
    layers = _file_layers(path_or_name) if path_or_name else []
    layers.append(_override_layer(overrides))
    if "amg.imports" in layers[-1].values:
        raise ConfigError("'amg.imports' counts in a configuration file; on the command line, use --import.")
    cfg = _with_stored(base or {})
    for layer in layers:
        _apply(cfg, layer)
    if use_schedule:
        _refuse_epochs_given_twice(layers)
    return _finish(cfg)


def from_plain_dict(values: Mapping[str, Any]) -> CfgNode:
    """Rebuild and check a configuration that :func:`to_plain_dict` made; keys it lacks keep their defaults.

    Returns:
        The frozen configuration.

    Raises:
        ConfigError: unknown key or impossible value.
    """
    return _finish(_with_stored(values))


def apply_amg_node(path_or_name: str | Path) -> CfgNode:
    """Load the ``amg`` node of a file, for scripts that do not know the node.

    The file may be a whole configuration, hold nothing but ``amg: ...``, or nothing but that node's keys.
    ``amg.image_size`` follows ``data.height`` and ``data.width`` if the file or its bases give one of them.

    Returns:
        The checked, frozen node; ``image_size`` stays empty if the file says nothing about the size.

    Raises:
        ConfigError: as for :func:`load_config`.
    """
    cfg = get_default_config()
    layers = _file_layers(path_or_name, amg_alone=True)
    for layer in layers:
        _apply(cfg, layer)
    if any(key in layer.values for layer in layers for key in ("data.height", "data.width")):
        return _finish(cfg).amg
    cfg.amg.schedule = _schedule(cfg.amg)
    validate_amg(cfg.amg)
    cfg.amg.balance = complete_balance(cfg.amg.balance)
    cfg.amg.freeze()
    return cfg.amg


def schedule_epochs(cfg: CfgNode) -> int:
    """Return the epochs of a pruning run: those of all iterations of all stages plus ``amg.final_epochs``.

    Args:
        cfg: configuration that has been loaded or checked.
    """
    stages = complete_schedule(cfg.amg.schedule, has_budget(cfg.amg))
    return sum(stage["iterations"] * stage["epochs"] for stage in stages) + cfg.amg.final_epochs


def to_plain_dict(cfg: CfgNode) -> dict[str, Any]:
    """Return a copy of plain dictionaries and lists, fit for JSON, YAML and checkpoints."""
    return {
        key: to_plain_dict(value) if isinstance(value, CfgNode) else copy.deepcopy(value) for key, value in cfg.items()
    }


def _file_layers(path_or_name: str | Path, amg_alone: bool = False) -> list[Layer]:
    """Dotted keys of a file and its bases; what they name in ``amg.imports`` is loaded first, as it may add keys."""
    layers = read_layers(path_or_name)
    for layer in layers:
        amg = layer.values.get("amg", layer.values)
        words = amg.get("imports") if isinstance(amg, Mapping) else None
        words = decode(words) if isinstance(words, str) else words
        if isinstance(words, list) and all(isinstance(word, str) for word in words):  # anything else is refused below
            for word in words:
                imports.load_import(word, layer.where, Path(layer.where).parent)
    own = {*_names_in("amg")} - {*_names_in("")} if amg_alone else {}
    return [
        Layer(one.where, _dotted(one.values, one.where, "amg." if own and own.issuperset(one.values) else ""))
        for one in layers
    ]


def _override_layer(overrides: Sequence[object]) -> Layer:
    for word in map(str, overrides[::2]):
        if word.startswith("-") and word.lstrip("-")[:1].isalpha():
            raise ConfigError(f"'{word}' is where a key is expected: options go before the 'key value' pairs.")
    if len(overrides) % 2:
        raise ConfigError(
            f"Overrides come as pairs 'key value', but {shown(overrides[-1])} has no partner in: "
            f"{' '.join(map(str, overrides))}."
        )
    values: dict[str, Any] = {}
    for key, value in zip(map(str, overrides[::2]), overrides[1::2], strict=True):
        node, dot, name = key.rpartition(".")
        values |= _dotted({name: value}, _COMMAND_LINE, node + dot)
    return Layer(_COMMAND_LINE, values)


def _with_stored(values: Mapping[str, Any]) -> CfgNode:
    """The defaults with what a checkpoint or a result holds."""
    if not isinstance(values, Mapping):
        raise ConfigError(f"A stored configuration must be a mapping, not a {type(values).__name__}.")
    if isinstance(amg := values.get("amg"), Mapping):
        amg = {key: value for key, value in amg.items() if key not in _NOT_STORED}
        if isinstance(heads := amg.pop("head_token_balance", None), int | float):
            amg["balance"] = {"heads": heads, "tokens": 1 - heads}
        values = {**values, "amg": amg}
    cfg = get_default_config()
    _set(cfg, _dotted(values, "the stored configuration"))
    return cfg


def _dotted(values: Mapping[Any, Any], where: str, prefix: str = "") -> dict[str, Any]:
    """Nested values as dotted keys, each of the type of its default.

    Raises:
        ConfigError: unknown key or value of another type.
    """
    found: dict[str, Any] = {}
    for name, value in values.items():
        key, is_name = f"{prefix}{name}", str(name).isidentifier()
        if is_name and key in KEYS:
            found[key] = _coerce(key, value, where)
            continue
        names = _names_in(key) if is_name else []
        if not names:
            raise ConfigError(_unknown_key(key, where))
        value = decode(value) if isinstance(value, str) else value
        if not isinstance(value, Mapping):
            allowed = f"a mapping with keys out of {', '.join(names)}"
            raise ConfigError(f"'{key}' from {where} is {shown(value)}, but must be {allowed}.")
        found |= _dotted(value, where, f"{key}.")
    return found


def _names_in(node: str) -> list[str]:
    """Names right below a node, all nodes of the top level for an empty one; none for a key."""
    start = f"{node}." if node else ""
    return list(dict.fromkeys(key.removeprefix(start).split(".")[0] for key in KEYS if key.startswith(start)))


def _unknown_key(key: str, where: str) -> str:
    if key in _REPLACED:
        return f"Unknown key '{key}' from {where}: {_REPLACED[key]}."
    # The right name in the wrong node is the likelier slip than a misspelt name.
    same_name = [item for item in KEYS if item.rpartition(".")[2] == key.rpartition(".")[2]]
    same_node = [item for item in same_name if item.split(".")[0] == key.split(".")[0]]
    near = (same_node or same_name)[:1] or difflib.get_close_matches(key, KEYS, n=1)
    hint = f"did you mean '{near[0]}'? " if near else ""
    node = key.rpartition(".")[0]
    while node and node not in KEYS and not _names_in(node):
        node = node.rpartition(".")[0]
    names = ", ".join(_names_in(node)) or "no keys of its own"
    return f"Unknown key '{key}' from {where}: {hint}'{node or 'the top level'}' has {names}."


def _coerce(key: str, value: Any, where: str) -> Any:
    """Return ``value`` as the type of the default of ``key``."""
    wanted, element = type(KEYS[key].default), KEYS[key].element
    if KEYS[key].word and value == KEYS[key].word:
        return value
    value = _typed(value, wanted)
    if any(isinstance(text, str) and "\0" in text for text in (value if isinstance(value, list | tuple) else [value])):
        raise ConfigError(f"'{key}' from {where} is {shown(value)}, but no text may hold a NUL.")
    if element and isinstance(value, list | tuple):
        items = [item if element is str else _typed(item, element) for item in value]
        if not all(_is_a(item, element) for item in items):
            raise ConfigError(f"'{key}' from {where} is {shown(value)}, but must be a list of {_ITEMS[element][0]}.")
        return items
    if not _is_a(value, wanted):
        shape = f', such as "{_ITEMS[element][1]}"' if element else ""
        word = f"'{KEYS[key].word}' or " if KEYS[key].word else ""
        raise ConfigError(f"'{key}' from {where} is {shown(value)}, but must be {word}{_TYPES[wanted]}{shape}.")
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
    return isinstance(value, wanted) and (wanted is not int or value.bit_length() < 64)


def _set(cfg: CfgNode, values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        node, _, name = key.rpartition(".")
        value_of(cfg, node)[name] = value


def _apply(cfg: CfgNode, layer: Layer) -> None:
    """Put a layer into ``cfg``; its target or schedule replaces what decided before it how much is pruned."""
    given = layer.values
    if any(given.get(key) for key in BUDGET_KEYS) or any(stage.get("rate") for stage in given.get("amg.schedule", ())):
        _set(cfg, dict.fromkeys(BUDGET_KEYS, 0.0))
    if given.get("amg.reducer", "amg") != "amg":
        cfg.amg.schedule = []  # stages that a target completed have no rate, which only pruning can do without
    _set(cfg, given)


def _finish(cfg: CfgNode) -> CfgNode:
    cfg.amg.schedule = _schedule(cfg.amg)
    validate(cfg)
    cfg.amg.balance = complete_balance(cfg.amg.balance)
    cfg.amg.image_size = [cfg.data.height, cfg.data.width]
    cfg.amg.imports = list(imports.LOADED)
    cfg.freeze()
    return cfg


def _schedule(amg: CfgNode) -> list[dict[str, Any]]:
    """The complete stages; those of the default form where a target is given but no stage."""
    stages, budget = amg.schedule, has_budget(amg)
    if budget and not stages:
        stages = [stage for stage in DEFAULT_STAGES if stage["target"] in budget_targets(amg)]
    return complete_schedule(stages, budget)


def _refuse_epochs_given_twice(layers: Sequence[Layer]) -> None:
    """Refuse ``train.max_epoch`` from the source of the schedule or from one that is applied after it."""
    given: dict[str, str] = {}  # what decides the number of epochs -> where it was given
    for layer in layers:
        for key in ("amg.schedule", *BUDGET_KEYS):
            if key in layer.values:
                given.pop(key, None)
                if layer.values[key]:
                    given[key] = layer.where
        if given and "train.max_epoch" in layer.values:
            key, where = next(iter(given.items()))
            raise ConfigError(
                f"'train.max_epoch' ({layer.values['train.max_epoch']}, from {layer.where}) and '{key}' (from {where}) "
                "are both given, but the schedule and 'amg.final_epochs' already decide the number of epochs: give one "
                "of them."
            )
