"""Every configuration key in one place: its default, its meaning, and what it may be.

The keys and defaults outside ``amg`` are torchreid's own. The type of a default is the type that a value must have.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from yacs.config import CfgNode

from amg_plugin.errors import ConfigError, InputError, shown
from amg_plugin.registries import (
    HEAD_SCORERS,
    HOOKS,
    NEURON_SCORERS,
    OPTIMIZERS,
    REDUCERS,
    REPAIR_PASSES,
    REPAIRS,
    TARGETS,
    TOKEN_SCORERS,
    TOKEN_VARIANTS,
)
from amg_plugin.registries.formats import FORMATS, NETWORK_FORMS
from amg_plugin.registries.registry import Registry

Check = Callable[[Any], str]
"""Value -> what is allowed in its place ("at least 0"); empty if the value is possible."""


def allowed(possible: Callable[[Any], bool], text: str) -> Check:
    """What ``possible`` says; ``text`` completes "must be"."""
    return lambda value: "" if possible(value) else text


def at_least(least: float) -> Check:
    """A number from ``least`` on."""
    return allowed(lambda value: value >= least, f"at least {least}")


def between(least: float, most: float) -> Check:
    """A number from ``least`` to ``most``."""
    return allowed(lambda value: least <= value <= most, f"from {least:g} to {most:g}")


def one_of(*words: str | Registry) -> Check:
    """One of some words, and of the names that tables hold by then."""

    def check(value: Any) -> str:
        names = [name for word in words for name in ([word] if isinstance(word, str) else word)]
        return "" if value in names else f"one of {', '.join(map(repr, names))}"

    return check


def _each(check: Check) -> Check:
    def check_all(value: Sequence[Any]) -> str:
        text = next(filter(None, map(check, value)), None)
        return (
            f"a list of {text.removeprefix('one of ') or 'registered names, of which there are none'}" if text else ""
        )

    return check_all


def _minus_1_or(least: int, meaning: str) -> Check:
    return allowed(lambda value: value == -1 or value >= least, f"-1 ({meaning}) or at least {least}")


POSITIVE = allowed(lambda value: value > 0, "greater than 0")
BELOW_1 = allowed(lambda value: 0 <= value < 1, "at least 0 and less than 1")
NOT_EMPTY = allowed(bool, "not empty")
COUNTS = allowed(lambda value: value and min(value) >= 1, "a list of one or more integers of at least 1")
_SHARE = allowed(lambda value: 0 < value <= 1, "greater than 0 and at most 1")
_IMAGE = allowed(lambda value: value == "image", "'image' (video engines are out of scope)")
_ONE_COPY = allowed(lambda value: value == 1, "1 (torchreid's engines take one augmented copy of an image)")
_THREE = allowed(lambda value: len(value) == 3, "a list of three numbers")
_THREE_POSITIVE = allowed(lambda value: len(value) == 3 and min(value) > 0, "a list of three numbers greater than 0")
_SIZE = allowed(
    lambda value: len(value) in (0, 2) and all(side >= 1 for side in value),
    "empty or [height, width], two integers of at least 1",
)


def _is_share(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


_BALANCE = allowed(
    lambda value: (
        value == "auto"
        or (set(value) <= set(TARGETS) and all(map(_is_share, value.values())) and abs(sum(value.values()) - 1) < 1e-6)
    ),
    f"'auto' or shares of {', '.join(TARGETS[:-1])} and {TARGETS[-1]} that add up to 1, such as "
    "{heads: 0.3, tokens: 0.7}",
)

#: torchreid's samplers of training images.
SAMPLERS = (
    "RandomSampler", "RandomIdentitySampler", "RandomDomainSampler", "RandomDatasetSampler", "SequentialSampler",
)  # fmt: skip
_SAMPLER = one_of(*SAMPLERS)


@dataclass(frozen=True)
class Key:
    """A configuration key.

    Default, meaning, check beyond the default's type, type of an empty list's items, and a word that may stand in place
    of a value of the default's type.
    """

    default: Any
    help: str
    check: Check | None = None
    item: type = str
    word: str = ""

    @property
    def element(self) -> type | None:
        """Type of the items of a list; None for what is not a list."""
        if not isinstance(self.default, list):
            return None
        return type(self.default[0]) if self.default else self.item


#: Dotted key -> what is known of it, in the order of a printed configuration.
KEYS: dict[str, Key] = {
    "use_gpu": Key(True, "use a GPU where there is one; False forces the CPU"),
    "model.name": Key("resnet50", "torchreid's model name, or vit_amg, vit_amg_small, vit_amg_tiny", NOT_EMPTY),
    "model.pretrained": Key(True, "start from published ImageNet weights (may need the network)"),
    "model.load_weights": Key("", "torchreid: file of weights to start from"),
    "model.resume": Key("", "state file of an interrupted train or prune to go on from, as --resume does"),
    "data.type": Key("image", "'image' only: video engines are out of scope of the plugin", _IMAGE),
    "data.root": Key("reid-data", "folder that holds the data set folders"),
    "data.sources": Key(["market1501"], "data sets to train on", NOT_EMPTY),
    "data.targets": Key(["market1501"], "data sets to evaluate on; the first decides which model is best", NOT_EMPTY),
    "data.workers": Key(4, "loader processes", at_least(0)),
    "data.split_id": Key(0, "which split, for data sets that have several", at_least(0)),
    "data.height": Key(256, "image height in pixels", at_least(1)),
    "data.width": Key(128, "image width in pixels", at_least(1)),
    "data.combineall": Key(False, "train on training, query and gallery images together"),
    "data.transforms": Key(["random_flip"], "named training augmentations"),
    "data.k_tfm": Key(1, "augmented copies made of each training image", _ONE_COPY),
    "data.norm_mean": Key([0.485, 0.456, 0.406], "channel means (ImageNet)", _THREE),
    "data.norm_std": Key([0.229, 0.224, 0.225], "channel standard deviations (ImageNet)", _THREE_POSITIVE),
    "data.save_dir": Key("log", "folder for checkpoints, curves and result.json", NOT_EMPTY),
    "data.load_train_targets": Key(False, "also load the targets' training sets"),
    "market1501.use_500k_distractors": Key(False, "put the 500k distractors into the gallery"),
    "cuhk03.labeled_images": Key(False, "hand-drawn boxes instead of detected ones"),
    "cuhk03.classic_split": Key(False, "the split of the first publication instead of the new protocol"),
    "cuhk03.use_metric_cuhk03": Key(False, "single-gallery-shot evaluation"),
    "sampler.train_sampler": Key("RandomSampler", "order of the source images", _SAMPLER),
    "sampler.train_sampler_t": Key("RandomSampler", "order of the targets' training images", _SAMPLER),
    "sampler.num_instances": Key(4, "images per identity in a batch (RandomIdentitySampler)", at_least(1)),
    "sampler.num_cams": Key(1, "cameras per batch, 0 = all (RandomDomainSampler)", at_least(0)),
    "sampler.num_datasets": Key(1, "data sets per batch, 0 = all (RandomDatasetSampler)", at_least(0)),
    # Video: there so that torchreid's files load, and not used
    "video.seq_len": Key(15, "images taken from a tracklet", at_least(1)),
    "video.sample_method": Key("evenly", "how they are chosen", one_of("evenly", "random", "all")),
    "video.pooling_method": Key("avg", "how their features are joined", one_of("avg", "max")),
    "train.optim": Key("adam", "the optimiser", one_of(OPTIMIZERS)),
    "train.lr": Key(0.0003, "learning rate of the new layers (of all layers without staged_lr)", POSITIVE),
    "train.weight_decay": Key(5e-4, "weight decay", at_least(0)),
    "train.max_epoch": Key(60, "epochs of dense training; pruning takes its epochs from amg.schedule", at_least(1)),
    "train.start_epoch": Key(0, "first epoch, counted from 0", at_least(0)),
    "train.batch_size": Key(32, "images per training batch", at_least(1)),
    "train.fixbase_epoch": Key(0, "epochs at the start in which only open_layers are trained", at_least(0)),
    "train.open_layers": Key(["classifier"], "attributes of the model trained in those epochs"),
    "train.staged_lr": Key(False, "give the layers outside new_layers a smaller learning rate"),
    "train.new_layers": Key(["classifier"], "attributes of the model trained at the full rate"),
    "train.base_lr_mult": Key(0.1, "factor of the learning rate of the other layers", at_least(0)),
    "train.lr_scheduler": Key("single_step", "the schedule of the rate", one_of("single_step", "multi_step", "cosine")),
    "train.stepsize": Key([20], "epochs between drops (single_step: last entry) or epochs of the drops", COUNTS),
    "train.gamma": Key(0.1, "factor of each drop", POSITIVE),
    "train.print_freq": Key(20, "batches between two progress lines", at_least(1)),
    "train.seed": Key(1, "seed of all random numbers", at_least(0)),
    "sgd.momentum": Key(0.9, "momentum of SGD and RMSprop", between(0, 1)),
    "sgd.dampening": Key(0.0, "dampening of the momentum", between(0, 1)),
    "sgd.nesterov": Key(False, "Nesterov momentum"),
    "rmsprop.alpha": Key(0.99, "smoothing of the squared gradient", BELOW_1),
    "adam.beta1": Key(0.9, "decay of the first moment (Adam and its relatives)", BELOW_1),
    "adam.beta2": Key(0.999, "decay of the second moment", BELOW_1),
    "loss.name": Key("softmax", "identity cross entropy, or with the triplet loss", one_of("softmax", "triplet")),
    "loss.softmax.label_smooth": Key(True, "smooth the labels of the cross entropy"),
    "loss.triplet.margin": Key(0.3, "distance margin; not used with amg.soft_margin", at_least(0)),
    "loss.triplet.weight_t": Key(1.0, "weight of the triplet loss", at_least(0)),
    "loss.triplet.weight_x": Key(0.0, "weight of the cross entropy next to it", at_least(0)),
    "test.batch_size": Key(100, "images per evaluation batch", at_least(1)),
    "test.dist_metric": Key("euclidean", "distance of features", one_of("euclidean", "cosine")),
    "test.normalize_feature": Key(False, "L2-normalise features before distances"),
    "test.ranks": Key([1, 5, 10, 20], "CMC ranks to report; clamped to the gallery", COUNTS),
    "test.evaluate": Key(False, "torchreid: only evaluate"),
    "test.eval_freq": Key(-1, "epochs between evaluations", _minus_1_or(1, "only at the end")),
    "test.start_eval": Key(0, "first epoch with an evaluation", at_least(0)),
    "test.rerank": Key(False, "k-reciprocal re-ranking"),
    "test.visrank": Key(False, "save pictures of ranked galleries (with test.evaluate)"),
    "test.visrank_topk": Key(10, "gallery images per picture", at_least(1)),
    # Network
    "amg.arch": Key("", "timm's name of a ViT; empty = model.name's (ViT-B/16, -S/16 or -Ti/16)"),
    "amg.stride": Key(0, "step between patches in pixels, at most the patch size; 0 = the patch size", at_least(0)),
    "amg.image_size": Key([], "[height, width] in pixels; empty = data.height, data.width", _SIZE, int),
    # Departures from the architecture, for small networks trained from scratch
    "amg.override.embed_dim": Key(0, "embedding width; 0 = the architecture's own", at_least(0)),
    "amg.override.depth": Key(0, "blocks; 0 = the architecture's own", at_least(0)),
    "amg.override.num_heads": Key(0, "heads per block; 0 = the architecture's own", at_least(0)),
    "amg.override.patch_size": Key(0, "patch side in pixels; 0 = the architecture's own", at_least(0)),
    "amg.override.mlp_ratio": Key(0.0, "MLP hidden width / embedding width; 0 = the architecture's own", at_least(0)),
    "amg.override.qkv_bias": Key(True, "False: queries, keys and values without bias"),
    "amg.override.attention_scale": Key(0.0, "factor of query times key; 0 = the architecture's own", at_least(0)),
    "amg.drop_path": Key(0.0, "stochastic depth rate of the last block", BELOW_1),
    "amg.weights": Key("", "local .pth or .safetensors file of backbone weights, or a checkpoint to start from"),
    "amg.weights_grid": Key([], "[rows, columns] of the positions in amg.weights; empty = deduced", _SIZE, int),
    "amg.neck_feat": Key("after", "evaluation feature before or after the batch-norm neck", one_of("before", "after")),
    "amg.head": Key("bnneck", "batch-norm neck and a classifier, or LA-Transformer's parts", one_of("bnneck", "parts")),
    "amg.parts.number": Key(14, "groups of patch tokens, one classifier each", at_least(1)),
    "amg.parts.hidden": Key(256, "hidden width of a part classifier", at_least(1)),
    "amg.parts.dropout": Key(0.5, "dropout rate of a part classifier", BELOW_1),
    "amg.sie.enabled": Key(False, "TransReID: add a learned vector per camera (and view) to every token"),
    "amg.sie.cameras": Key(-1, "training cameras; 0 = they do not count", _minus_1_or(0, "all of the training data")),
    "amg.sie.views": Key(0, "views of the training data; 0 = views do not count", at_least(0)),
    "amg.sie.coefficient": Key(3.0, "factor of the vector", POSITIVE),
    "amg.sie.unseen": Key("none", "what cameras and views that training has not seen get", one_of("none", "mean")),
    "amg.jpm.enabled": Key(False, "TransReID: a second copy of the last block over shuffled groups of patches"),
    "amg.jpm.parts": Key(4, "groups, one local feature each", at_least(1)),
    "amg.jpm.shift": Key(5, "the patches are rolled by shift - 1 places", at_least(1)),
    "amg.jpm.groups": Key(2, "groups that they are dealt out to", at_least(1)),
    # Training
    "amg.engine": Key("", "name in the engine registry; empty = amg_<loss.name>"),
    "amg.hooks": Key([], "registered hooks that train and prune add to their own", _each(one_of(HOOKS))),
    "amg.imports": Key([], "modules or files with what users register, in a configuration file; relative to it"),
    "amg.precision": Key(
        "fp32", "bf16, fp16: autocast in training; scoring and evaluation stay fp32", one_of("fp32", "bf16", "fp16")
    ),
    "amg.accumulate": Key(1, "training batches whose gradients make one step of the optimiser", at_least(1)),
    "amg.checkpoint_activations": Key(
        False, "keep only the inputs of the blocks in training and compute the rest again: less memory, more time"
    ),
    "amg.warmup_epochs": Key(
        0.0, "epochs of dense training, or part of one, with a linear rise of the rate", at_least(0)
    ),
    "amg.warmup_start": Key(0.01, "where it starts, as a share of the learning rate", _SHARE),
    "amg.lr_per_step": Key(False, "set the learning rate at every step, not once an epoch"),
    "amg.min_lr_factor": Key(0.0, "where the schedule 'cosine' ends, as a share of the learning rate", BELOW_1),
    "amg.bias_lr_factor": Key(1.0, "factor of the learning rate of biases", POSITIVE),
    "amg.unfreeze.every": Key(0, "epochs until one more block is trained, from the top; 0 = all at once", at_least(0)),
    "amg.soft_margin": Key(False, "triplet loss log(1 + exp(d_pos - d_neg)) instead of a fixed margin"),
    "amg.even_batches": Key(False, "identities come equally often, not by their number of images"),
    "amg.batches_per_epoch": Key(0, "end epochs of training after so many batches, for trials; 0 = all", at_least(0)),
    "amg.cache_images": Key("none", "auto: keep decoded, resized images in memory", one_of("none", "auto")),
    "amg.cache_gb": Key(2.0, "most memory that they take, in 10^9 bytes; training images come first", POSITIVE),
    "amg.report": Key(True, "write report.html at the end of train and prune"),
    "amg.check_images": Key(True, "open every image before training and name the unreadable ones"),
    "amg.skip_unreadable": Key(False, "leave out unreadable images and queries without a match, instead of stopping"),
    # Occlusion of training images, with the transform random_occlusion
    "amg.occlusion.probability": Key(0.5, "share of the training images that get an object in front", between(0, 1)),
    "amg.occlusion.min_coverage": Key(0.15, "smallest hidden share of such an image", between(0.05, 0.7)),
    "amg.occlusion.max_coverage": Key(0.6, "largest; between the two: a Beta(2, 3) distribution", between(0.05, 0.7)),
    # Pruning
    "amg.token_variant": Key(
        "block", "removed tokens skip the block, lose key and value, merge", one_of(*TOKEN_VARIANTS)
    ),
    "amg.head_scorer": Key("amg", "registered scorer of heads", one_of(HEAD_SCORERS)),
    "amg.token_scorer": Key("amg", "registered scorer of tokens", one_of(TOKEN_SCORERS)),
    "amg.neuron_scorer": Key("taylor", "registered scorer of hidden units of the MLPs", one_of(NEURON_SCORERS)),
    "amg.layer_growth": Key(0.005, "weight that heads gain per block when blocks are compared", at_least(0)),
    "amg.layer_decay": Key(0.015, "weight that tokens lose per block when blocks are compared", BELOW_1),
    "amg.normalize_entropy": Key(False, "divide head entropies by log2 of the keys of their block"),
    "amg.min_heads_per_block": Key(1, "heads that every block keeps", at_least(1)),
    "amg.min_tokens_per_block": Key(1, "patch tokens that every block keeps", at_least(1)),
    "amg.min_neurons_per_block": Key(1, "hidden units that every block's MLP keeps", at_least(1)),
    "amg.neuron_multiple": Key(1, "an MLP that loses hidden units keeps a multiple of this many", at_least(1)),
    "amg.repair": Key("none", "what is fitted anew after each cut", one_of(*REPAIRS)),
    "amg.repair_images": Key(1024, "training images of a repair, rounded up to whole batches", at_least(1)),
    "amg.repair_pass": Key("blocks", "on what the repaired blocks before give, or in one pass", one_of(*REPAIR_PASSES)),
    "amg.repair_ridge": Key(0.01, "weight of the change of the weights, relative to the inputs' variance", POSITIVE),
    "amg.schedule": Key([], "stages {target, rate, iterations, epochs}, in order; see STAGE_DEFAULTS", None, dict),
    "amg.final_epochs": Key(0, "epochs of fine-tuning after the last stage", at_least(0)),
    "amg.reducer": Key("amg", "pruning, or for comparison tokens reduced per image", one_of("amg", REDUCERS, "none")),
    "amg.target_macs_saving": Key(0.0, "share of the dense model's MACs to save; 0 = rates count", BELOW_1),
    "amg.target_latency_saving": Key(0.0, "share of the dense model's latency to save; measured first", BELOW_1),
    "amg.latency.form": Key("fast", "what is timed: a form of amg-reid bench", one_of(*NETWORK_FORMS, FORMATS)),
    "amg.latency.device": Key("cpu", "where it is timed", one_of("cpu", "cuda")),
    "amg.latency.threads": Key(1, "CPU threads", at_least(1)),
    "amg.latency.batch": Key(1, "images per pass", at_least(1)),
    "amg.latency.rounds": Key(20, "samples of each network", at_least(1)),
    "amg.balance": Key(
        {"heads": 0.3, "tokens": 0.7, "neurons": 0.0},
        "with a target: shares of the saving that come from heads, tokens and neurons; auto = found on images",
        _BALANCE,
        word="auto",
    ),
    "amg.finetune.warmup_share": Key(0.0, "share of each stretch of fine-tuning in which the rate rises", BELOW_1),
    # Scoring
    "amg.calibration.batches": Key(0, "batches that are scored; 0 = one pass over the training loader", at_least(0)),
    "amg.calibration.mode": Key("eval", "mode of the network while scoring", one_of("eval", "train")),
    "amg.calibration.augment": Key(False, "score augmented training images instead of plain ones"),
    # Distillation
    "amg.distill.enabled": Key(True, "fine-tune towards the logits of the frozen dense model"),
    "amg.distill.alpha": Key(2.0, "weight of the distillation loss", at_least(0)),
    "amg.distill.tau": Key(10.0, "softmax temperature of the distillation loss", POSITIVE),
    "amg.distill.features": Key(0.0, "weight of the distance to the teacher's features; 0 = none", at_least(0)),
    "amg.distill.teacher": Key("", "dense checkpoint to learn from; empty = the model that the run starts with"),
}

#: Keys of one entry of ``amg.schedule``; ``None`` marks a key without default, which every stage has to give.
STAGE_DEFAULTS: dict[str, object] = {
    "target": None,  # what the stage removes: 'heads', 'tokens' or 'neurons'
    "rate": None,  # share removed, relative to the dense model; rates of one target add up over the stages; left out
    # where amg.target_macs_saving decides
    "iterations": 1,  # rounds of score -> cut -> fine-tune that share the rate
    "epochs": 0,  # epochs of fine-tuning after each cut
}

#: The stages where ``amg.target_macs_saving`` is given and ``amg.schedule`` is empty: many small cuts of heads.
DEFAULT_STAGES: tuple[dict[str, object], ...] = (
    {"target": "heads", "iterations": 6, "epochs": 1},
    {"target": "neurons", "iterations": 1, "epochs": 1},
    {"target": "tokens", "iterations": 1, "epochs": 0},
)


def register_key(name: str, default: Any, help: str = "", check: Check | None = None) -> None:
    """Add a configuration key, which files and the command line then know; repeating a registration changes nothing.

    Args:
        name: The dotted key, for example ``"amg.my_key"``.
        default: Its default: True or False, an integer, a float, a text, or a list of texts or of what it holds.
        help: What it means.
        check: Gets a value and returns what is allowed in its place ("at least 0"), or an empty text if it is possible.

    Raises:
        InputError: The name is taken or no dotted key, or the default is of another type.
    """
    *parents, last = name.split(".")
    nodes = [".".join(parents[: end + 1]) for end in range(len(parents))]
    if not parents or not all(part.isidentifier() for part in (*parents, last)) or any(node in KEYS for node in nodes):
        raise InputError(f"'{name}' cannot be a configuration key; allowed is a dotted name such as 'amg.my_key'.")
    if not isinstance(default, bool | int | float | str | list):
        raise InputError(f"The default of '{name}' must be a bool, int, float, str or list, not {default!r}.")
    there = KEYS.get(name)
    if any(key.startswith(f"{name}.") for key in KEYS) or (there and (there.default, there.help) != (default, help)):
        raise InputError(f"The configuration key '{name}' is already taken; choose another name.")
    KEYS[name] = Key(default, help, check)


def check_value(name: str, value: Any) -> None:
    """Check a value of a key on its own.

    Raises:
        ConfigError: It is impossible; the message names the key, the value and what is allowed.
    """
    check = KEYS[name].check
    if check and (text := check(value)):
        raise impossible(name, value, text)


def impossible(name: str, value: object, text: str) -> ConfigError:
    """The error for a value of a key that has to be what ``text`` says."""
    return ConfigError(f"'{name}' is {shown(value)}, but must be {text}.")


def get_default_config() -> CfgNode:
    """Return a new, unfrozen configuration that holds every key with its default.

    Returns:
        torchreid's nodes, ``use_gpu`` and the node ``amg``.
    """
    cfg = CfgNode()
    for name, key in KEYS.items():
        *parents, last = name.split(".")
        node = cfg
        for parent in parents:
            node = node.setdefault(parent, CfgNode())
        node[last] = CfgNode(key.default) if isinstance(key.default, dict) else copy.copy(key.default)
    return cfg
