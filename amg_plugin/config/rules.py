"""Which values are possible: choices, ranges, and keys that have to agree with each other."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from yacs.config import CfgNode

from amg_plugin.config.schema import STAGE_DEFAULTS
from amg_plugin.errors import ConfigError

logger = logging.getLogger(__name__)

_SAMPLERS = ("RandomSampler", "RandomIdentitySampler", "RandomDomainSampler", "RandomDatasetSampler")

_CHOICES: dict[str, tuple[str, ...]] = {
    "sampler.train_sampler": (*_SAMPLERS, "SequentialSampler"),
    "sampler.train_sampler_t": (*_SAMPLERS, "SequentialSampler"),
    "video.sample_method": ("evenly", "random", "all"),
    "video.pooling_method": ("avg", "max"),
    "train.optim": ("adam", "amsgrad", "sgd", "rmsprop", "radam"),
    "train.lr_scheduler": ("single_step", "multi_step", "cosine"),
    "loss.name": ("softmax", "triplet"),
    "test.dist_metric": ("euclidean", "cosine"),
}
_AMG_CHOICES: dict[str, tuple[str, ...]] = {
    "amg.neck_feat": ("before", "after"),
    "amg.head": ("bnneck", "parts"),
    "amg.sie.unseen": ("none", "mean"),
    "amg.precision": ("fp32", "bf16"),
    "amg.token_variant": ("block", "kv"),
    "amg.head_scorer": ("amg", "random", "magnitude"),
    "amg.token_scorer": ("amg", "random", "cls_attention"),
    "amg.calibration.mode": ("eval", "train"),
    "amg.reducer": ("amg", "tome", "evit", "none"),
    "amg.latency.form": ("eager", "fast", "onnx", "openvino", "torchscript", "exported_program"),
    "amg.latency.device": ("cpu", "cuda"),
}


#: Keys of ``amg`` that decide how much is pruned, in place of rates.
BUDGET_KEYS = ("target_macs_saving", "target_latency_saving")
_BUDGETS = " or ".join(f"'amg.{key}'" for key in BUDGET_KEYS)

_Rule = tuple[Callable[[Any], bool], str]
_AT_LEAST_0: _Rule = (lambda value: value >= 0, "at least 0")
_AT_LEAST_1: _Rule = (lambda value: value >= 1, "at least 1")
_POSITIVE: _Rule = (lambda value: value > 0, "greater than 0")
_BELOW_1: _Rule = (lambda value: 0 <= value < 1, "at least 0 and less than 1")
_UP_TO_1: _Rule = (lambda value: 0 <= value <= 1, "from 0 to 1")
_HIDDEN_SHARE: _Rule = (lambda value: 0.05 <= value <= 0.7, "from 0.05 to 0.7")
_NOT_EMPTY: _Rule = (bool, "not empty")
_COUNTS: _Rule = (
    lambda value: bool(value) and all(item >= 1 for item in value),
    "a list of one or more integers of at least 1",
)

_RULES: dict[str, _Rule] = {
    **dict.fromkeys(("model.name", "data.save_dir", "data.sources", "data.targets"), _NOT_EMPTY),
    **dict.fromkeys(("data.height", "data.width"), _AT_LEAST_1),
    "data.k_tfm": (lambda value: value == 1, "1 (torchreid's engines take one augmented copy of an image)"),
    **dict.fromkeys(("data.workers", "data.split_id"), _AT_LEAST_0),
    "data.norm_mean": (lambda value: len(value) == 3, "a list of three numbers"),
    "data.norm_std": (
        lambda value: len(value) == 3 and all(item > 0 for item in value),
        "a list of three numbers greater than 0",
    ),
    "sampler.num_instances": _AT_LEAST_1,
    **dict.fromkeys(("sampler.num_cams", "sampler.num_datasets"), _AT_LEAST_0),  # 0 = all there are
    "video.seq_len": _AT_LEAST_1,
    **dict.fromkeys(("train.lr", "train.gamma"), _POSITIVE),
    **dict.fromkeys(("train.max_epoch", "train.batch_size", "train.print_freq"), _AT_LEAST_1),
    **dict.fromkeys(
        (
            "train.weight_decay",
            "train.start_epoch",
            "train.fixbase_epoch",
            "train.base_lr_mult",
            "train.seed",
        ),
        _AT_LEAST_0,
    ),
    "train.stepsize": _COUNTS,
    "sgd.momentum": _UP_TO_1,
    "sgd.dampening": _UP_TO_1,
    **dict.fromkeys(("rmsprop.alpha", "adam.beta1", "adam.beta2"), _BELOW_1),
    **dict.fromkeys(("loss.triplet.margin", "loss.triplet.weight_t", "loss.triplet.weight_x"), _AT_LEAST_0),
    **dict.fromkeys(("test.batch_size", "test.visrank_topk"), _AT_LEAST_1),
    "test.start_eval": _AT_LEAST_0,
    "test.eval_freq": (lambda value: value == -1 or value >= 1, "-1 (only at the end) or at least 1"),
    "test.ranks": _COUNTS,
}
_AMG_RULES: dict[str, _Rule] = {
    **dict.fromkeys(
        (
            "amg.stride",
            "amg.override.embed_dim",
            "amg.override.depth",
            "amg.override.num_heads",
            "amg.override.patch_size",
            "amg.override.mlp_ratio",
            "amg.override.attention_scale",
            "amg.sie.views",
            "amg.unfreeze.every",
            "amg.warmup_epochs",
            "amg.layer_growth",
            "amg.final_epochs",
            "amg.batches_per_epoch",
            "amg.calibration.batches",
            "amg.distill.alpha",
            "amg.distill.features",
        ),
        _AT_LEAST_0,
    ),
    "amg.image_size": (
        lambda value: len(value) in (0, 2) and all(item >= 1 for item in value),
        "empty or [height, width], two integers of at least 1",
    ),
    "amg.drop_path": _BELOW_1,
    **dict.fromkeys(
        ("amg.parts.number", "amg.parts.hidden", "amg.jpm.parts", "amg.jpm.shift", "amg.jpm.groups"), _AT_LEAST_1
    ),
    "amg.parts.dropout": _BELOW_1,
    "amg.sie.cameras": (lambda value: value >= -1, "-1 (as many as the training data has) or at least 0"),
    **dict.fromkeys(("amg.sie.coefficient", "amg.bias_lr_factor"), _POSITIVE),
    "amg.warmup_start": (lambda value: 0 < value <= 1, "greater than 0 and at most 1"),
    "amg.min_lr_factor": _BELOW_1,
    **dict.fromkeys(("amg.target_macs_saving", "amg.target_latency_saving"), _BELOW_1),
    **dict.fromkeys(("amg.latency.threads", "amg.latency.batch", "amg.latency.rounds"), _AT_LEAST_1),
    "amg.head_token_balance": _UP_TO_1,
    "amg.layer_decay": _BELOW_1,
    "amg.min_heads_per_block": _AT_LEAST_1,
    "amg.min_tokens_per_block": _AT_LEAST_1,
    "amg.round_tokens_to": _AT_LEAST_1,
    "amg.distill.tau": _POSITIVE,
    "amg.occlusion.probability": _UP_TO_1,
    **dict.fromkeys(("amg.occlusion.min_coverage", "amg.occlusion.max_coverage"), _HIDDEN_SHARE),
}


def validate(cfg: CfgNode) -> None:
    """Check a whole configuration.

    Args:
        cfg: configuration in which every key has the type of its default.

    Raises:
        ConfigError: an impossible value; the message names the key, the value and what is allowed.
    """
    if cfg.data.type != "image":
        reason = "video engines are out of scope" if cfg.data.type == "video" else "there is no such type"
        raise _error("data.type", cfg.data.type, f"'image' ({reason})")
    _check_tables(cfg, _CHOICES, _RULES)
    validate_amg(cfg.amg)
    _check_image_size(cfg)
    _check_training(cfg)
    _check_sampler(cfg)


def validate_amg(amg: CfgNode) -> None:
    """Check an ``amg`` node on its own.

    Raises:
        ConfigError: as for :func:`validate`.
    """
    _check_tables({"amg": amg}, _AMG_CHOICES, _AMG_RULES)
    complete_schedule(amg.schedule, has_budget(amg))
    _check_budget(amg)
    if amg.distill.features and not amg.distill.enabled:
        raise _error("amg.distill.features", amg.distill.features, "0 while amg.distill.enabled is False")
    hidden = amg.occlusion
    if hidden.min_coverage > hidden.max_coverage:
        allowed = f"at most amg.occlusion.max_coverage, which is {hidden.max_coverage:g}"
        raise _error("amg.occlusion.min_coverage", hidden.min_coverage, allowed)
    if amg.skip_unreadable and not amg.check_images:
        raise _error("amg.skip_unreadable", True, "False while amg.check_images is False (nothing would be found)")
    if amg.target_latency_saving and amg.reducer != "amg":
        raise _error("amg.target_latency_saving", amg.target_latency_saving, f"0 with amg.reducer '{amg.reducer}'")
    if amg.target_latency_saving and amg.target_macs_saving:
        raise _error("amg.target_latency_saving", amg.target_latency_saving, "0 beside amg.target_macs_saving")
    if amg.reducer in ("tome", "evit") and not amg.target_macs_saving:
        raise ConfigError(
            f"'amg.reducer' is '{amg.reducer}', which needs 'amg.target_macs_saving' above 0 to know how many tokens "
            "to take away."
        )
    override = amg.override
    if override.embed_dim and override.num_heads and override.embed_dim % override.num_heads:
        raise _error(
            "amg.override.embed_dim",
            override.embed_dim,
            f"a multiple of amg.override.num_heads, which is {override.num_heads}",
        )
    if override.patch_size and amg.stride > override.patch_size:
        raise _error("amg.stride", amg.stride, f"at most amg.override.patch_size, which is {override.patch_size}")
    _check_published_networks(amg)


def _check_published_networks(amg: CfgNode) -> None:
    """Side information and jigsaw module are TransReID's, the head 'parts' is LA-Transformer's."""
    if amg.head == "parts":
        for name in ("sie", "jpm"):
            if amg[name].enabled:
                raise _error(f"amg.{name}.enabled", True, "False with amg.head 'parts'")
        if amg.neck_feat == "before":
            raise _error("amg.neck_feat", "before", "'after' (the default) with amg.head 'parts', which has no neck")
    if amg.sie.enabled and not amg.sie.cameras and not amg.sie.views:
        raise ConfigError(
            "'amg.sie.enabled' is True, but 'amg.sie.cameras' and 'amg.sie.views' are both 0: side information needs "
            "one of them."
        )


def model_parts(amg: CfgNode | None) -> tuple[str, ...]:
    """Attributes that hold the weights of the network that an ``amg`` node describes; of a plain one for None."""
    if amg is not None and amg.head == "parts":
        return ("backbone", "classifiers")
    parts = ["backbone", "bottleneck", "classifier"]
    if amg is not None and amg.sie.enabled:
        parts.append("side_information")
    if amg is not None and amg.jpm.enabled:
        parts += ["jigsaw", "local_bottlenecks", "local_classifiers"]
    return tuple(parts)


def has_budget(amg: Mapping[str, Any]) -> bool:
    """Whether a target of the ``amg`` node decides how much is pruned, and not the rates of its schedule."""
    return amg["reducer"] == "amg" and budget_key(amg) != ""


def budget_key(amg: Mapping[str, Any]) -> str:
    """The key that gives a target, empty if none does."""
    return next((key for key in BUDGET_KEYS if amg[key] > 0), "")


def _check_budget(amg: CfgNode) -> None:
    if not has_budget(amg):
        return
    if amg.round_tokens_to > 1:
        raise _error("amg.round_tokens_to", amg.round_tokens_to, f"1 with amg.{budget_key(amg)}, which is met exactly")
    wanted = {"heads": amg.head_token_balance > 0, "tokens": amg.head_token_balance < 1}
    present = {stage["target"] for stage in amg.schedule}
    for target, needed in wanted.items():
        if amg.schedule and needed != (target in present):
            raise ConfigError(
                f"'amg.head_token_balance' is {amg.head_token_balance:g}, so 'amg.schedule' must have "
                f"{'a' if needed else 'no'} stage with the target '{target}'."
            )


def complete_schedule(stages: Sequence[Mapping[str, Any]], budget: bool = False) -> list[dict[str, Any]]:
    """Check the stages of ``amg.schedule`` and fill in the keys they leave out.

    Args:
        stages: mappings with the keys of ``STAGE_DEFAULTS``.
        budget: whether a target decides how much is pruned, so that no stage has a rate.

    Returns:
        New mappings with all keys; rates are floats.

    Raises:
        ConfigError: unknown or missing key, impossible value, or rates of one target that reach 1 together.
    """
    complete = [_complete_stage(f"amg.schedule[{index}]", stage, budget) for index, stage in enumerate(stages)]
    for target in () if budget else ("heads", "tokens"):
        total = sum(stage["rate"] for stage in complete if stage["target"] == target)
        if total >= 1:
            raise ConfigError(
                f"The rates of the stages with target '{target}' in 'amg.schedule' add up to {total:g}, but "
                f"must stay below 1: they are relative to the dense model."
            )
    return complete


def _complete_stage(key: str, stage: object, budget: bool) -> dict[str, Any]:
    if not isinstance(stage, Mapping):
        raise _error(key, stage, f"a mapping with the keys {', '.join(STAGE_DEFAULTS)}")
    for name in stage:
        if name not in STAGE_DEFAULTS:
            raise ConfigError(f"Unknown key '{key}.{name}': a stage has {', '.join(STAGE_DEFAULTS)}.")
    full = {**STAGE_DEFAULTS, **stage}
    if budget and full["rate"] is not None:
        raise ConfigError(
            f"'{key}.rate' is {full['rate']!r}, but a target ({_BUDGETS}) decides how much each stage removes: leave "
            "one of them out."
        )
    missing = [name for name, value in full.items() if value is None and not (budget and name == "rate")]
    if missing:
        raise ConfigError(
            f"'{key}' ({dict(stage)}) lacks {' and '.join(repr(name) for name in missing)}: a stage needs "
            f"'target' and 'rate' (no rate with {_BUDGETS})."
        )
    if full["target"] not in ("heads", "tokens"):
        raise _error(f"{key}.target", full["target"], "'heads' or 'tokens'")
    rate = full["rate"]
    if rate is None:
        pass
    elif isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate < 1:
        raise _error(f"{key}.rate", rate, "a number of at least 0 and less than 1")
    for name, least in (("iterations", 1), ("epochs", 0)):
        if type(full[name]) is not int or full[name] < least:
            raise _error(f"{key}.{name}", full[name], f"an integer of at least {least}")
    return {**full, "rate": None if rate is None else float(rate)}


def _check_tables(node: Mapping[str, Any], choices: Mapping[str, tuple[str, ...]], rules: Mapping[str, _Rule]) -> None:
    for key, allowed in choices.items():
        value = _value(node, key)
        if value not in allowed:
            raise _error(key, value, "one of " + ", ".join(repr(item) for item in allowed))
    for key, (is_possible, allowed_text) in rules.items():
        value = _value(node, key)
        if not is_possible(value):
            raise _error(key, value, allowed_text)


def _check_image_size(cfg: CfgNode) -> None:
    size = [cfg.data.height, cfg.data.width]
    if cfg.amg.image_size and list(cfg.amg.image_size) != size:
        raise _error("amg.image_size", cfg.amg.image_size, f"empty or [data.height, data.width], which is {size}")


def _check_training(cfg: CfgNode) -> None:
    train, triplet = cfg.train, cfg.loss.triplet
    for key, epochs in (("train.start_epoch", train.start_epoch), ("amg.warmup_epochs", cfg.amg.warmup_epochs)):
        if epochs >= train.max_epoch:
            raise _error(key, epochs, f"less than train.max_epoch, which is {train.max_epoch}")
    if cfg.model.name.startswith("vit_amg"):  # a model of torchreid has attributes of its own
        parts = model_parts(cfg.amg)
        for key, used in (("open_layers", train.fixbase_epoch), ("new_layers", train.staged_lr)):
            # The default, ['classifier'], is no mistake of a user who never asked for it.
            names = [layer for layer in train[key] if layer and (used or layer != "classifier")]
            if any(layer not in parts for layer in names):
                allowed = f"a list out of {', '.join(map(repr, parts))} with the model '{cfg.model.name}'"
                if parts[1:] != model_parts(None)[1:]:
                    allowed += " as amg.head, amg.sie and amg.jpm describe it"
                raise _error(f"train.{key}", train[key], allowed)
    if cfg.amg.min_lr_factor and train.lr_scheduler != "cosine":
        raise _error("amg.min_lr_factor", cfg.amg.min_lr_factor, "0 unless train.lr_scheduler is 'cosine'")
    if cfg.amg.unfreeze.every and train.fixbase_epoch:
        raise _error(
            "amg.unfreeze.every", cfg.amg.unfreeze.every, "0 with train.fixbase_epoch, which freezes by itself"
        )
    if train.lr_scheduler == "multi_step" and sorted(set(train.stepsize)) != train.stepsize:
        raise _error("train.stepsize", train.stepsize, "ascending with the scheduler 'multi_step'")
    if train.staged_lr and not train.new_layers:
        raise _error("train.new_layers", train.new_layers, "not empty with train.staged_lr")
    if train.fixbase_epoch and not train.open_layers:
        raise _error("train.open_layers", train.open_layers, "not empty with train.fixbase_epoch above 0")
    if cfg.sgd.nesterov and (cfg.sgd.momentum == 0 or cfg.sgd.dampening != 0):
        raise _error("sgd.nesterov", True, "False unless sgd.momentum is above 0 and sgd.dampening is 0")
    if cfg.loss.name == "triplet" and triplet.weight_t == 0 and triplet.weight_x == 0:
        raise ConfigError(
            "'loss.triplet.weight_t' and 'loss.triplet.weight_x' are both 0, but the loss 'triplet' needs "
            "one of them above 0."
        )
    if cfg.loss.name == "triplet" and triplet.weight_x == 0 and train.fixbase_epoch:
        raise _error(
            "train.fixbase_epoch",
            train.fixbase_epoch,
            "0 while loss.triplet.weight_x is 0 (no classifier loss)",
        )


def _check_sampler(cfg: CfgNode) -> None:
    batch, sampler = cfg.train.batch_size, cfg.sampler
    group_keys = {
        "RandomIdentitySampler": "num_instances",
        "RandomDomainSampler": "num_cams",
        "RandomDatasetSampler": "num_datasets",
    }
    name = group_keys.get(sampler.train_sampler)
    group = sampler[name] if name else 0
    if group > 0:
        if batch < group:
            raise _error("train.batch_size", batch, f"at least sampler.{name}, which is {group}")
        if batch % group:
            nearest = f"{batch - batch % group} or {batch + group - batch % group}"
            if name != "num_instances":
                raise _error("train.batch_size", batch, f"a multiple of sampler.{name} ({group}): {nearest}")
            logger.warning(
                "train.batch_size %d is not a multiple of sampler.num_instances (%d), so batches hold "
                "incomplete identities; %s would be",
                batch,
                group,
                nearest,
            )
    uses_triplets = cfg.loss.name == "triplet" and cfg.loss.triplet.weight_t > 0
    if uses_triplets and name == "num_instances" and batch < 2 * group:
        allowed = f"at least {2 * group}, twice sampler.num_instances: a triplet needs a second identity"
        raise _error("train.batch_size", batch, allowed)
    if uses_triplets and sampler.train_sampler != "RandomIdentitySampler":
        logger.warning(
            "The triplet loss needs several images per identity in a batch, which sampler.train_sampler '%s' "
            "does not provide; 'RandomIdentitySampler' does",
            sampler.train_sampler,
        )


def _value(node: Mapping[str, Any], key: str) -> Any:
    value: Any = node
    for name in key.split("."):
        value = value[name]
    return value


def _error(key: str, value: object, allowed: str) -> ConfigError:
    return ConfigError(f"'{key}' is {value!r}, but must be {allowed}.")
