"""Every configuration key in one place: its default, its meaning, and what it may be.

The keys and defaults outside ``amg`` are torchreid's own. The type of a default is the type that a value must have.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from yacs.config import CfgNode

from amg_plugin.config.allowed import (
    BELOW_1,
    COUNTS,
    NOT_EMPTY,
    POSITIVE,
    Check,
    allowed,
    at_least,
    between,
    each,
    one_of,
)
from amg_plugin.errors import ConfigError, InputError
from amg_plugin.registries.formats import FORMATS, NETWORK_FORMS
from amg_plugin.registries.tables import HEAD_SCORERS, HOOKS, REDUCERS, TOKEN_SCORERS


@dataclass(frozen=True)
class Key:
    """A configuration key.

    Attributes:
        default: Its default.
        help: What it means.
        check: What it may be, beyond the type of the default; None for anything.
        item: Type of the items where the default is an empty list.
    """

    default: Any
    help: str
    check: Check | None = None
    item: type = str

    @property
    def element(self) -> type | None:
        """Type of the items of a list; None for what is not a list."""
        if not isinstance(self.default, list):
            return None
        return type(self.default[0]) if self.default else self.item


#: Dotted key -> what is known of it, in the order of a printed configuration.
KEYS: dict[str, Key] = {}


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
        raise ConfigError(f"'{name}' is {value!r}, but must be {text}.")


def _section(node: str, *rows: tuple[Any, ...]) -> None:
    """Enter keys of a node, given as ``(name, default, help[, check[, item]])``."""
    for name, *known in rows:
        KEYS[f"{node}.{name}" if node else name] = Key(*known)


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
        node[last] = copy.copy(key.default)
    return cfg


#: Keys of one entry of ``amg.schedule``; ``None`` marks a key without default, which every stage has to give.
STAGE_DEFAULTS: dict[str, object] = {
    "target": None,  # what the stage removes: 'heads' or 'tokens'
    "rate": None,  # share removed, relative to the dense model; rates of one target add up over the stages; left out
    # where amg.target_macs_saving decides
    "iterations": 1,  # rounds of score -> cut -> fine-tune that share the rate
    "epochs": 0,  # epochs of fine-tuning after each cut
}

#: The stages where ``amg.target_macs_saving`` is given and ``amg.schedule`` is empty: many small cuts of heads.
DEFAULT_STAGES: tuple[dict[str, object], ...] = (
    {"target": "heads", "iterations": 6, "epochs": 1},
    {"target": "tokens", "iterations": 1, "epochs": 0},
)

#: torchreid's samplers of training images.
SAMPLERS = (
    "RandomSampler", "RandomIdentitySampler", "RandomDomainSampler", "RandomDatasetSampler", "SequentialSampler",
)  # fmt: skip
_SAMPLER = one_of(*SAMPLERS)


def _image_only(value: str) -> str:
    reason = "video engines are out of scope" if value == "video" else "there is no such type"
    return "" if value == "image" else f"'image' ({reason})"


_section("", ("use_gpu", True, "use a GPU where there is one; False forces the CPU"))
_section(
    "model",
    ("name", "resnet50", "name in torchreid's model factory; vit_amg, vit_amg_small, vit_amg_tiny are ours", NOT_EMPTY),
    ("pretrained", True, "start from published ImageNet weights (may need the network)"),
    ("load_weights", "", "torchreid: file of weights to start from"),
    ("resume", "", "torchreid: checkpoint of an interrupted training"),
)
_section(
    "data",
    ("type", "image", "'image' only: video engines are out of scope of the plugin", _image_only),
    ("root", "reid-data", "folder that holds the data set folders"),
    ("sources", ["market1501"], "data sets to train on", NOT_EMPTY),
    ("targets", ["market1501"], "data sets to evaluate on; the first one decides which model is best", NOT_EMPTY),
    ("workers", 4, "loader processes", at_least(0)),
    ("split_id", 0, "which split, for data sets that have several", at_least(0)),
    ("height", 256, "image height in pixels", at_least(1)),
    ("width", 128, "image width in pixels", at_least(1)),
    ("combineall", False, "train on training, query and gallery images together"),
    ("transforms", ["random_flip"], "named training augmentations"),
    (
        "k_tfm",
        1,
        "augmented copies made of each training image",
        allowed(lambda value: value == 1, "1 (torchreid's engines take one augmented copy of an image)"),
    ),
    (
        "norm_mean",
        [0.485, 0.456, 0.406],
        "channel means (ImageNet)",
        allowed(lambda value: len(value) == 3, "a list of three numbers"),
    ),
    (
        "norm_std",
        [0.229, 0.224, 0.225],
        "channel standard deviations (ImageNet)",
        allowed(lambda value: len(value) == 3 and min(value) > 0, "a list of three numbers greater than 0"),
    ),
    ("save_dir", "log", "folder for checkpoints, curves and result.json", NOT_EMPTY),
    ("load_train_targets", False, "also load the targets' training sets"),
)
_section("market1501", ("use_500k_distractors", False, "put the 500k distractors into the gallery"))
_section(
    "cuhk03",
    ("labeled_images", False, "hand-drawn boxes instead of detected ones"),
    ("classic_split", False, "the split of the first publication instead of the new protocol"),
    ("use_metric_cuhk03", False, "single-gallery-shot evaluation"),
)
_section(
    "sampler",
    ("train_sampler", "RandomSampler", "order of the source images", _SAMPLER),
    ("train_sampler_t", "RandomSampler", "order of the targets' training images", _SAMPLER),
    ("num_instances", 4, "images per identity in a batch (RandomIdentitySampler)", at_least(1)),
    ("num_cams", 1, "cameras per batch, 0 = all (RandomDomainSampler)", at_least(0)),
    ("num_datasets", 1, "data sets per batch, 0 = all (RandomDatasetSampler)", at_least(0)),
)
_section(  # kept so that torchreid's files load; not used
    "video",
    ("seq_len", 15, "images taken from a tracklet", at_least(1)),
    ("sample_method", "evenly", "how they are chosen", one_of("evenly", "random", "all")),
    ("pooling_method", "avg", "how their features are joined", one_of("avg", "max")),
)
_section(
    "train",
    ("optim", "adam", "the optimiser", one_of("adam", "amsgrad", "sgd", "rmsprop", "radam")),
    ("lr", 0.0003, "learning rate of the new layers (of all layers without staged_lr)", POSITIVE),
    ("weight_decay", 5e-4, "weight decay", at_least(0)),
    ("max_epoch", 60, "epochs of dense training; pruning takes its epochs from amg.schedule", at_least(1)),
    ("start_epoch", 0, "first epoch, counted from 0", at_least(0)),
    ("batch_size", 32, "images per training batch", at_least(1)),
    ("fixbase_epoch", 0, "epochs at the start in which only open_layers are trained", at_least(0)),
    ("open_layers", ["classifier"], "attributes of the model trained in those epochs"),
    ("staged_lr", False, "give the layers outside new_layers a smaller learning rate"),
    ("new_layers", ["classifier"], "attributes of the model trained at the full rate"),
    ("base_lr_mult", 0.1, "factor of the learning rate of the other layers", at_least(0)),
    ("lr_scheduler", "single_step", "the schedule of the rate", one_of("single_step", "multi_step", "cosine")),
    ("stepsize", [20], "epochs between drops (single_step: last entry) or epochs of the drops", COUNTS),
    ("gamma", 0.1, "factor of each drop", POSITIVE),
    ("print_freq", 20, "batches between two progress lines", at_least(1)),
    ("seed", 1, "seed of all random numbers", at_least(0)),
)
_section(
    "sgd",
    ("momentum", 0.9, "momentum of SGD and RMSprop", between(0, 1)),
    ("dampening", 0.0, "dampening of the momentum", between(0, 1)),
    ("nesterov", False, "Nesterov momentum"),
)
_section("rmsprop", ("alpha", 0.99, "smoothing of the squared gradient", BELOW_1))
_section(
    "adam",
    ("beta1", 0.9, "decay of the first moment (Adam and its relatives)", BELOW_1),
    ("beta2", 0.999, "decay of the second moment", BELOW_1),
)
_section(
    "loss",
    ("name", "softmax", "identity cross entropy, or with the triplet loss", one_of("softmax", "triplet")),
    ("softmax.label_smooth", True, "smooth the labels of the cross entropy"),
    ("triplet.margin", 0.3, "distance margin; not used with amg.soft_margin", at_least(0)),
    ("triplet.weight_t", 1.0, "weight of the triplet loss", at_least(0)),
    ("triplet.weight_x", 0.0, "weight of the cross entropy next to it", at_least(0)),
)
_section(
    "test",
    ("batch_size", 100, "images per evaluation batch", at_least(1)),
    ("dist_metric", "euclidean", "distance of features", one_of("euclidean", "cosine")),
    ("normalize_feature", False, "L2-normalise features before distances"),
    ("ranks", [1, 5, 10, 20], "CMC ranks to report; clamped to the gallery", COUNTS),
    ("evaluate", False, "torchreid: only evaluate"),
    (
        "eval_freq",
        -1,
        "epochs between evaluations; -1: only at the end",
        allowed(lambda value: value == -1 or value >= 1, "-1 (only at the end) or at least 1"),
    ),
    ("start_eval", 0, "first epoch with an evaluation", at_least(0)),
    ("rerank", False, "k-reciprocal re-ranking"),
    ("visrank", False, "save pictures of ranked galleries (with test.evaluate)"),
    ("visrank_topk", 10, "gallery images per picture", at_least(1)),
)
_section(
    "amg",
    # Network
    ("arch", "", "timm name of a plain ViT; empty = that of model.name (vit_amg: ViT-B/16, _small: S, _tiny: Ti)"),
    ("stride", 0, "step between patches in pixels, at most the patch size; 0 = the patch size", at_least(0)),
    (
        "image_size",
        [],
        "[height, width] in pixels; empty = data.height, data.width",
        allowed(
            lambda value: len(value) in (0, 2) and all(item >= 1 for item in value),
            "empty or [height, width], two integers of at least 1",
        ),
        int,
    ),
    # Departures from the architecture, for small networks trained from scratch
    ("override.embed_dim", 0, "embedding width; 0 = the architecture's own", at_least(0)),
    ("override.depth", 0, "blocks; 0 = the architecture's own", at_least(0)),
    ("override.num_heads", 0, "heads per block; 0 = the architecture's own", at_least(0)),
    ("override.patch_size", 0, "patch side in pixels; 0 = the architecture's own", at_least(0)),
    ("override.mlp_ratio", 0.0, "MLP hidden width / embedding width; 0 = the architecture's own", at_least(0)),
    ("override.qkv_bias", True, "False: queries, keys and values without bias"),
    ("override.attention_scale", 0.0, "factor of query times key; 0 = the architecture's own", at_least(0)),
    ("drop_path", 0.0, "stochastic depth rate of the last block", BELOW_1),
    ("weights", "", "local .pth or .safetensors file of backbone weights"),
    ("neck_feat", "after", "evaluation feature before or after the batch-norm neck", one_of("before", "after")),
    ("head", "bnneck", "batch-norm neck and one classifier, or LA-Transformer's parts", one_of("bnneck", "parts")),
    ("parts.number", 14, "groups of patch tokens, one classifier each", at_least(1)),
    ("parts.hidden", 256, "hidden width of a part classifier", at_least(1)),
    ("parts.dropout", 0.5, "dropout rate of a part classifier", BELOW_1),
    ("sie.enabled", False, "TransReID: add a learned vector per camera (and view) to every token"),
    (
        "sie.cameras",
        -1,
        "training cameras; -1 = as many as the training data has, 0 = cameras do not count",
        allowed(lambda value: value >= -1, "-1 (as many as the training data has) or at least 0"),
    ),
    ("sie.views", 0, "views of the training data; 0 = views do not count", at_least(0)),
    ("sie.coefficient", 3.0, "factor of the vector", POSITIVE),
    ("sie.unseen", "none", "what cameras and views that training has not seen get", one_of("none", "mean")),
    ("jpm.enabled", False, "TransReID: a second copy of the last block over shuffled groups of patches"),
    ("jpm.parts", 4, "groups, one local feature each", at_least(1)),
    ("jpm.shift", 5, "the patches are rolled by shift - 1 places", at_least(1)),
    ("jpm.groups", 2, "groups that they are dealt out to", at_least(1)),
    # Training
    ("engine", "", "name in the engine registry; empty = amg_<loss.name>"),
    ("hooks", [], "registered hooks that train and prune add to their own", each(one_of(HOOKS))),
    ("imports", [], "modules or files with what users register, in a configuration file; relative to it"),
    ("precision", "fp32", "bf16: autocast in training; evaluation stays fp32", one_of("fp32", "bf16")),
    ("warmup_epochs", 0, "epochs of dense training over which the learning rate rises linearly", at_least(0)),
    (
        "warmup_start",
        0.01,
        "where it starts, as a share of the learning rate",
        allowed(lambda value: 0 < value <= 1, "greater than 0 and at most 1"),
    ),
    ("min_lr_factor", 0.0, "where the schedule 'cosine' ends, as a share of the learning rate", BELOW_1),
    ("bias_lr_factor", 1.0, "factor of the learning rate of biases", POSITIVE),
    ("unfreeze.every", 0, "epochs after which one more block is trained, from the top; 0 = all at once", at_least(0)),
    ("soft_margin", False, "triplet loss log(1 + exp(d_pos - d_neg)) instead of a fixed margin"),
    ("batches_per_epoch", 0, "end each epoch of training after so many batches, for trials; 0 = all", at_least(0)),
    ("check_images", True, "open every image before training and name the unreadable ones"),
    ("skip_unreadable", False, "leave out unreadable images and queries without a match, instead of stopping"),
    # Occlusion of training images, with the transform random_occlusion
    ("occlusion.probability", 0.5, "share of the training images that get an object in front", between(0, 1)),
    ("occlusion.min_coverage", 0.15, "smallest hidden share of such an image", between(0.05, 0.7)),
    ("occlusion.max_coverage", 0.6, "largest; between the two: a Beta(2, 3) distribution", between(0.05, 0.7)),
    # Pruning
    ("token_variant", "block", "a removed token skips the block, or only its key and value", one_of("block", "kv")),
    ("head_scorer", "amg", "how heads are scored: AMG's entropy, or for comparison", one_of(HEAD_SCORERS)),
    ("token_scorer", "amg", "how tokens are scored: attention times gradient, or", one_of(TOKEN_SCORERS)),
    ("layer_growth", 0.005, "weight of later blocks when heads are compared over blocks, per block", at_least(0)),
    ("layer_decay", 0.015, "weight lost by later blocks when tokens are compared over blocks, per block", BELOW_1),
    ("normalize_entropy", False, "divide head entropies by log2 of the keys of their block"),
    ("min_heads_per_block", 1, "heads that every block keeps", at_least(1)),
    ("min_tokens_per_block", 1, "patch tokens that every block keeps", at_least(1)),
    ("schedule", [], "stages {target, rate, iterations, epochs}, in order; see STAGE_DEFAULTS", None, dict),
    ("final_epochs", 0, "epochs of fine-tuning after the last stage", at_least(0)),
    ("reducer", "amg", "pruning, or for comparison tokens reduced per image", one_of("amg", REDUCERS, "none")),
    ("target_macs_saving", 0.0, "share of the dense model's MACs to save; 0 = rates count", BELOW_1),
    ("target_latency_saving", 0.0, "share of the dense model's latency to save; measured first", BELOW_1),
    (
        "latency.form",
        "fast",
        "what is timed, out of the forms of amg-reid bench",
        one_of(*NETWORK_FORMS, FORMATS),
    ),
    ("latency.device", "cpu", "where it is timed", one_of("cpu", "cuda")),
    ("latency.threads", 1, "CPU threads", at_least(1)),
    ("latency.batch", 1, "images per pass", at_least(1)),
    ("latency.rounds", 20, "samples of each network", at_least(1)),
    ("head_token_balance", 0.3, "with a target: share of the saving that comes from heads", between(0, 1)),
    # Scoring
    ("calibration.batches", 0, "batches that are scored; 0 = one pass over the training loader", at_least(0)),
    ("calibration.mode", "eval", "mode of the network while scoring", one_of("eval", "train")),
    ("calibration.augment", False, "score augmented training images instead of plain ones"),
    # Distillation
    ("distill.enabled", True, "fine-tune towards the logits of the frozen dense model"),
    ("distill.alpha", 2.0, "weight of the distillation loss", at_least(0)),
    ("distill.tau", 10.0, "softmax temperature of the distillation loss", POSITIVE),
    ("distill.features", 0.0, "weight of the distance of student's and teacher's features; 0 = none", at_least(0)),
    ("distill.teacher", "", "dense checkpoint to learn from; empty = the model that the run starts with"),
)
