"""Configuration: defaults, files with ``_BASE_`` inheritance, overrides, checks and plain data.

``load_config`` is the door: it reads a file or a shipped configuration, applies ``key value`` overrides,
checks everything and returns a frozen node. Keys, their defaults and ranges live in ``schema``, what
spans keys in ``rules``.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from amg_plugin.config.files import Layer, read_layers
from amg_plugin.config.merge import decode, merge, override_layer
from amg_plugin.config.rules import BUDGET_KEYS, budget_targets, complete_schedule, has_budget, validate, validate_amg
from amg_plugin.config.schema import DEFAULT_STAGES, get_default_config
from amg_plugin.errors import ConfigError
from amg_plugin.registries import imports

#: Keys below ``amg`` that earlier releases wrote into checkpoints.
GONE = ("round_tokens_to",)


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
        overrides: alternating dotted keys and values, as they follow on a command line.
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
    layers = read_layers(path_or_name) if path_or_name else []
    _load_imports(layers)  # may add keys
    layers.append(override_layer(list(overrides)))
    if "imports" in (layers[-1].values.get("amg") or {}):
        raise ConfigError("'amg.imports' counts in a configuration file; on the command line, use --import.")
    cfg = get_default_config()
    if base is not None:
        merge(cfg, _stored(base))
    for layer in layers:
        _replace_budget(cfg, layer)
        merge(cfg, layer)
    if use_schedule:
        _refuse_epochs_given_twice(layers)
    return _finish(cfg)


def _load_imports(layers: Sequence[Layer]) -> None:
    """Load what files name in ``amg.imports``, relative to themselves."""
    for layer in layers:
        amg = layer.values.get("amg", layer.values)
        words = amg.get("imports") if isinstance(amg, Mapping) else None
        words = decode(words) if isinstance(words, str) else words
        if isinstance(words, list) and all(isinstance(word, str) for word in words):  # merging refuses anything else
            for word in words:
                imports.load_import(word, layer.where, Path(layer.where).parent)


def _stored(values: Mapping[str, Any]) -> Layer:
    """What a checkpoint or a result holds, without keys of earlier releases that are gone, and without imports.

    Whoever asks for a checkpoint has not asked for the modules that it names.
    """
    kept = dict(values)
    if isinstance(amg := kept.get("amg"), Mapping):
        kept["amg"] = {key: value for key, value in amg.items() if key not in (*GONE, "imports")}
    return Layer("the stored configuration", kept)


def _replace_budget(cfg: CfgNode, layer: Layer) -> None:
    """A target or a schedule of a layer takes the place of what decided before it how much is pruned."""
    given = layer.values.get("amg") or {}
    if not isinstance(given, Mapping):
        return
    values = {key: decode(value) if isinstance(value, str) else value for key, value in given.items()}
    stages = values.get("schedule")
    rates = isinstance(stages, Sequence) and any(isinstance(stage, Mapping) and stage.get("rate") for stage in stages)
    if rates or any(values.get(key) for key in BUDGET_KEYS):
        for key in BUDGET_KEYS:
            cfg.amg[key] = 0.0
    if given.get("reducer", "amg") != "amg":
        cfg.amg.schedule = []  # stages that a target completed have no rate, which only pruning can do without


def schedule_epochs(cfg: CfgNode) -> int:
    """Return the epochs of a pruning run: those of all iterations of all stages plus ``amg.final_epochs``.

    Args:
        cfg: configuration that has passed :func:`validate`.
    """
    stages = complete_schedule(cfg.amg.schedule, has_budget(cfg.amg))
    return sum(stage["iterations"] * stage["epochs"] for stage in stages) + cfg.amg.final_epochs


def to_plain_dict(cfg: CfgNode) -> dict[str, Any]:
    """Return a copy of plain dictionaries and lists, fit for JSON, YAML and checkpoints."""
    return {
        key: to_plain_dict(value) if isinstance(value, CfgNode) else copy.deepcopy(value) for key, value in cfg.items()
    }


def from_plain_dict(values: Mapping[str, Any]) -> CfgNode:
    """Rebuild and check a configuration that :func:`to_plain_dict` made; keys it lacks keep their defaults.

    Returns:
        The frozen configuration.

    Raises:
        ConfigError: unknown key or impossible value.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"A stored configuration must be a mapping, not a {type(values).__name__}.")
    cfg = get_default_config()
    merge(cfg, _stored(values))
    return _finish(cfg)


def apply_amg_node(path_or_name: str | Path) -> CfgNode:
    """Load the ``amg`` node of a file, for scripts that do not know the node.

    The file may be a whole configuration, hold nothing but ``amg: ...``, or nothing but that node's keys.
    ``amg.image_size`` follows ``data.height`` and ``data.width`` if the file or its bases give one of them.

    Returns:
        The checked, frozen node; ``image_size`` stays empty if the file says nothing about the size.

    Raises:
        ConfigError: as for :func:`load_config`.
    """
    layers = read_layers(path_or_name)
    _load_imports(layers)
    cfg = get_default_config()
    layers = [_as_whole_config(layer, cfg) for layer in layers]
    size_given = False
    for layer in layers:
        _replace_budget(cfg, layer)
        merge(cfg, layer)
        size_given |= any(key in (layer.values.get("data") or {}) for key in ("height", "width"))
    cfg.amg.schedule = _schedule(cfg.amg)
    validate_amg(cfg.amg)
    if size_given:
        cfg = _finish(cfg)
    cfg.amg.freeze()
    return cfg.amg


def _as_whole_config(layer: Layer, cfg: CfgNode) -> Layer:
    bare = bool(layer.values) and all(key in cfg.amg and key not in cfg for key in layer.values)
    return Layer(layer.where, {"amg": layer.values}) if bare else layer


def _finish(cfg: CfgNode) -> CfgNode:
    cfg.amg.schedule = _schedule(cfg.amg)
    validate(cfg)
    cfg.amg.image_size = [cfg.data.height, cfg.data.width]
    cfg.amg.imports = list(imports.LOADED)
    cfg.freeze()
    return cfg


def _schedule(amg: CfgNode) -> list[dict[str, Any]]:
    """The complete stages; those of the default form where a target is given but no stage."""
    if not has_budget(amg) or amg.schedule:
        return complete_schedule(amg.schedule, has_budget(amg))
    wanted = budget_targets(amg)
    return complete_schedule([stage for stage in DEFAULT_STAGES if stage["target"] in wanted], True)


def _refuse_epochs_given_twice(layers: Sequence[Layer]) -> None:
    """Refuse ``train.max_epoch`` from the source of the schedule or from one that is applied after it."""
    given: dict[str, str] = {}  # what decides the number of epochs -> where it was given
    for layer in layers:
        amg, train = layer.values.get("amg") or {}, layer.values.get("train") or {}
        for key in ("schedule", *BUDGET_KEYS):
            if key in amg:
                value = decode(amg[key]) if isinstance(amg[key], str) else amg[key]
                given.pop(key, None)
                if value:
                    given[key] = layer.where
        if given and "max_epoch" in train:
            key, where = next(iter(given.items()))
            raise ConfigError(
                f"'train.max_epoch' ({train['max_epoch']}, from {layer.where}) and 'amg.{key}' (from {where}) are both "
                f"given, but the schedule and 'amg.final_epochs' already decide the number of epochs: give one of them."
            )
