"""What spans keys: values that have to agree with each other, and the stages of the pruning schedule."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import reduce
from itertools import chain
from operator import getitem
from typing import Any

from yacs.config import CfgNode

from amg_plugin.config.schema import KEYS, STAGE_DEFAULTS, check_value, impossible, one_of
from amg_plugin.errors import ConfigError
from amg_plugin.registries import REDUCERS, TARGETS
from amg_plugin.utils.tables import shares

logger = logging.getLogger(__name__)

#: Keys that decide how much is pruned, in place of rates.
BUDGET_KEYS = ("amg.target_macs_saving", "amg.target_latency_saving")
_BUDGETS = " or ".join(f"'{key}'" for key in BUDGET_KEYS)

_Contradiction = tuple[str, str]
"""A key whose value contradicts others, and what it must be instead."""


def validate(cfg: CfgNode) -> None:
    """Check a whole configuration.

    Args:
        cfg: configuration in which every key has the type of its default.

    Raises:
        ConfigError: an impossible value; the message names the key, the value and what is allowed.
    """
    for key in KEYS:
        if not key.startswith("amg."):
            check_value(key, value_of(cfg, key))
    validate_amg(cfg.amg)
    _refuse(cfg, chain(_contradictions(cfg), _layers(cfg), _sampler(cfg)))


def validate_amg(amg: CfgNode) -> None:
    """Check an ``amg`` node on its own.

    Raises:
        ConfigError: as for :func:`validate`.
    """
    cfg = {"amg": amg}
    for key in KEYS:
        if key.startswith("amg."):
            check_value(key, value_of(cfg, key))
    complete_schedule(amg.schedule, has_budget(amg))
    _check_balance(amg)
    _refuse(cfg, _amg_contradictions(amg))


def value_of(node: Mapping[str, Any], key: str) -> Any:
    """The value or the node at a dotted key; the node itself for an empty one."""
    return reduce(getitem, key.split(".") if key else (), node)


def _refuse(node: Mapping[str, Any], found: Iterable[_Contradiction]) -> None:
    for key, text in found:
        raise impossible(key, value_of(node, key), text)


def _amg_contradictions(amg: CfgNode) -> Iterator[_Contradiction]:
    override, hidden, reducer = amg.override, amg.occlusion, amg.reducer
    if amg.distill.features and not amg.distill.enabled:
        yield "amg.distill.features", "0 while amg.distill.enabled is False"
    if amg.finetune.warmup_share and not amg.lr_per_step:
        yield "amg.finetune.warmup_share", "0 while amg.lr_per_step is False: a stretch may be one epoch long"
    if hidden.min_coverage > hidden.max_coverage:
        yield "amg.occlusion.min_coverage", f"at most amg.occlusion.max_coverage, which is {hidden.max_coverage:g}"
    if amg.skip_unreadable and not amg.check_images:
        yield "amg.skip_unreadable", "False while amg.check_images is False (nothing would be found)"
    if amg.target_latency_saving and reducer != "amg":
        yield "amg.target_latency_saving", f"0 with amg.reducer '{reducer}'"
    if amg.target_latency_saving and amg.balance == "auto":
        yield "amg.balance", "shares with amg.target_latency_saving, which is measured with them"
    if amg.target_latency_saving and amg.target_macs_saving:
        yield "amg.target_latency_saving", "0 if amg.target_macs_saving is given"
    if reducer in REDUCERS and not amg.target_macs_saving:
        yield "amg.target_macs_saving", f"above 0 with amg.reducer '{reducer}', to say how many tokens to remove"
    if override.num_heads and override.embed_dim % override.num_heads:
        yield "amg.override.embed_dim", f"a multiple of amg.override.num_heads, which is {override.num_heads}"
    if override.patch_size and amg.stride > override.patch_size:
        yield "amg.stride", f"at most amg.override.patch_size, which is {override.patch_size}"
    # Side information and jigsaw module are TransReID's, the head 'parts' is LA-Transformer's.
    for name in ("sie", "jpm"):
        if amg.head == "parts" and amg[name].enabled:
            yield f"amg.{name}.enabled", "False with amg.head 'parts'"
    if amg.head == "parts" and amg.neck_feat == "before":
        yield "amg.neck_feat", "'after' (the default) with amg.head 'parts', which has no neck"
    if amg.sie.enabled and not amg.sie.cameras and not amg.sie.views:
        yield "amg.sie.cameras", "-1 or above 0 while amg.sie.views is 0: side information needs one of them"


def _contradictions(cfg: CfgNode) -> Iterator[_Contradiction]:
    train, amg, triplet = cfg.train, cfg.amg, cfg.loss.triplet
    size = [cfg.data.height, cfg.data.width]
    if amg.image_size and list(amg.image_size) != size:
        yield "amg.image_size", f"empty or [data.height, data.width], which is {size}"
    for key, epochs in (("train.start_epoch", train.start_epoch), ("amg.warmup_epochs", amg.warmup_epochs)):
        if epochs >= train.max_epoch:
            yield key, f"less than train.max_epoch, which is {train.max_epoch}"
    if amg.min_lr_factor and train.lr_scheduler != "cosine":
        yield "amg.min_lr_factor", "0 unless train.lr_scheduler is 'cosine'"
    if amg.unfreeze.every and train.fixbase_epoch:
        yield "amg.unfreeze.every", "0 with train.fixbase_epoch, which freezes by itself"
    if train.lr_scheduler == "multi_step" and sorted(set(train.stepsize)) != train.stepsize:
        yield "train.stepsize", "ascending with the scheduler 'multi_step'"
    if train.staged_lr and not train.new_layers:
        yield "train.new_layers", "not empty with train.staged_lr"
    if train.fixbase_epoch and not train.open_layers:
        yield "train.open_layers", "not empty with train.fixbase_epoch above 0"
    if cfg.sgd.nesterov and (cfg.sgd.momentum == 0 or cfg.sgd.dampening != 0):
        yield "sgd.nesterov", "False unless sgd.momentum is above 0 and sgd.dampening is 0"
    if cfg.loss.name == "triplet" and triplet.weight_x == 0:
        if triplet.weight_t == 0:
            yield "loss.triplet.weight_t", "above 0 with the loss 'triplet' while loss.triplet.weight_x is 0"
        if train.fixbase_epoch:
            yield "train.fixbase_epoch", "0 while loss.triplet.weight_x is 0 (no classifier loss)"


def has_budget(amg: Mapping[str, Any]) -> bool:
    """Whether a target of the ``amg`` node decides how much is pruned, and not the rates of its schedule."""
    return amg["reducer"] == "amg" and any(value_of({"amg": amg}, key) > 0 for key in BUDGET_KEYS)


def budget_targets(amg: Mapping[str, Any]) -> list[str]:
    """What a target is shared out over: ``"heads"``, ``"tokens"``, ``"neurons"``, or some of them.

    With ``auto`` these are the targets of the schedule, or all if that is empty.
    """
    balance = amg["balance"]
    if balance == "auto":
        present = {stage["target"] for stage in amg["schedule"]}
        return [target for target in TARGETS if target in present or not present]
    return [target for target in TARGETS if balance.get(target, 0) > 0]


def complete_balance(balance: Mapping[str, float] | str) -> CfgNode | str:
    """``amg.balance`` with a share for every target."""
    return balance if balance == "auto" else CfgNode({target: float(balance.get(target, 0)) for target in TARGETS})


def _check_balance(amg: CfgNode) -> None:
    present, wanted = {stage["target"] for stage in amg.schedule}, set(budget_targets(amg))
    if has_budget(amg) and present and present != wanted:
        target = min(present ^ wanted)
        raise ConfigError(
            f"'amg.balance' is {shares(amg.balance)}, so 'amg.schedule' must have "
            f"{'a' if target in wanted else 'no'} stage with the target '{target}'."
        )


def complete_schedule(stages: Sequence[Mapping[str, Any]], budget: bool = False) -> list[dict[str, Any]]:
    """Check the stages of ``amg.schedule`` and fill in the keys they leave out, in new mappings.

    ``budget`` says that a target decides how much is pruned, so that no stage has a rate.

    Raises:
        ConfigError: unknown or missing key, impossible value, or rates of one target that reach 1 together.
    """
    complete = [_complete_stage(f"amg.schedule[{index}]", stage, budget) for index, stage in enumerate(stages)]
    for target in () if budget else TARGETS:
        total = sum(stage["rate"] for stage in complete if stage["target"] == target)
        if total >= 1:
            raise ConfigError(
                f"The rates of the stages with target '{target}' in 'amg.schedule' add up to {total:g}, but "
                f"must stay below 1: they are relative to the dense model."
            )
    return complete


def _rate(value: object) -> str:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return "" if value is None or (is_number and 0 <= value < 1) else "a number of at least 0 and less than 1"


def _integer(least: int) -> Callable[[object], str]:
    return lambda value: "" if type(value) is int and value >= least else f"an integer of at least {least}"


_STAGE_CHECKS = {"target": one_of(*TARGETS), "rate": _rate, "iterations": _integer(1), "epochs": _integer(0)}


def _complete_stage(key: str, stage: Mapping[str, Any], budget: bool) -> dict[str, Any]:
    unknown = [name for name in stage if name not in STAGE_DEFAULTS]
    if unknown:
        raise ConfigError(f"Unknown key '{key}.{unknown[0]}': a stage has {', '.join(STAGE_DEFAULTS)}.")
    full = {**STAGE_DEFAULTS, **stage}
    if budget and full["rate"] is not None:
        raise ConfigError(
            f"'{key}.rate' is {full['rate']!r}, but a target ({_BUDGETS}) decides how much each stage removes: leave "
            "one of them out."
        )
    missing = [name for name, value in full.items() if value is None and not (budget and name == "rate")]
    if missing:
        raise ConfigError(
            f"'{key}' ({dict(stage)}) lacks {' and '.join(map(repr, missing))}: a stage needs "
            f"'target' and 'rate' (no rate with {_BUDGETS})."
        )
    for name, check in _STAGE_CHECKS.items():
        if text := check(full[name]):
            raise impossible(f"{key}.{name}", full[name], text)
    return {**full, "rate": None if full["rate"] is None else float(full["rate"])}


def _model_parts(amg: CfgNode) -> tuple[str, ...]:
    """Attributes that hold the weights of the network that an ``amg`` node describes."""
    if amg.head == "parts":
        return ("backbone", "classifiers")
    side = ("side_information",) if amg.sie.enabled else ()
    local = ("jigsaw", "local_bottlenecks", "local_classifiers") if amg.jpm.enabled else ()
    return ("backbone", "bottleneck", "classifier", *side, *local)


def _layers(cfg: CfgNode) -> Iterator[_Contradiction]:
    """Layers that are trained in a way of their own exist in a network of the plugin."""
    if not cfg.model.name.startswith("vit_amg"):  # a model of torchreid has attributes of its own
        return
    parts = _model_parts(cfg.amg)
    for key, used in (("open_layers", cfg.train.fixbase_epoch), ("new_layers", cfg.train.staged_lr)):
        # The default, ['classifier'], is not a mistake of a user who never asked for it.
        if any(layer not in parts for layer in cfg.train[key] if layer and (used or layer != "classifier")):
            plain = parts == ("backbone", "bottleneck", "classifier")
            text = f"a list out of {', '.join(map(repr, parts))} with the model '{cfg.model.name}'"
            yield f"train.{key}", text if plain else f"{text} as amg.head, amg.sie and amg.jpm describe it"


def _sampler(cfg: CfgNode) -> Iterator[_Contradiction]:
    batch, sampler = cfg.train.batch_size, cfg.sampler
    group_keys = {
        "RandomIdentitySampler": "num_instances",
        "RandomDomainSampler": "num_cams",
        "RandomDatasetSampler": "num_datasets",
    }
    name = group_keys.get(sampler.train_sampler)
    group = sampler[name] if name else 0
    if group and batch < group:
        yield "train.batch_size", f"at least sampler.{name}, which is {group}"
    if group and batch % group:
        nearest = f"{batch - batch % group} or {batch + group - batch % group}"
        if name != "num_instances":
            yield "train.batch_size", f"a multiple of sampler.{name} ({group}): {nearest}"
        logger.warning(
            "train.batch_size %d is not a multiple of sampler.num_instances (%d), so batches hold incomplete "
            "identities; %s would be",
            batch,
            group,
            nearest,
        )
    if cfg.amg.even_batches and name != "num_instances":
        yield "amg.even_batches", f"False with sampler.train_sampler '{sampler.train_sampler}': it draws no identities"
    if cfg.loss.name != "triplet" or cfg.loss.triplet.weight_t == 0:
        return
    if name == "num_instances" and batch < 2 * group:
        yield (
            "train.batch_size",
            f"at least {2 * group}, twice sampler.num_instances: a triplet needs a second identity",
        )
    if name != "num_instances":
        logger.warning(
            "The triplet loss needs several images per identity in a batch, which sampler.train_sampler '%s' "
            "does not provide; 'RandomIdentitySampler' does",
            sampler.train_sampler,
        )
