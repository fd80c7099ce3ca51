"""What is open to users: tables of names, and the ways into them. Light: only the standard library is imported.

Each ``register_...`` is a call, ``register_dataset("mine", MyData)``, or a decorator, ``@register_dataset("mine")``.
The first line of the docstring becomes the line in lists; :class:`amg_plugin.registries.registry.Registry` says more.
"""

from __future__ import annotations

from dataclasses import dataclass

from amg_plugin.registries import formats
from amg_plugin.registries.registry import Registry, Row

#: What can be removed: attention heads, patch tokens, hidden units of the MLPs.
TARGETS = ("heads", "tokens", "neurons")
#: What a removed token loses: the whole block, or only its key and value; or it is merged into another one for good.
TOKEN_VARIANTS = ("block", "kv", "merge")
#: What a repair fits anew after a cut: nothing, biases and constants, or weights as well.
REPAIRS = ("none", "mean", "least_squares")
#: What a block is repaired on: what the repaired blocks in front of it give, or what it got before the cut.
REPAIR_PASSES = ("blocks", "one")


@dataclass(frozen=True)
class ScorerRow(Row):
    """A scorer; ``weighted`` says whether AMG's weights per block (growth of heads, decay of tokens) apply to it.

    Neurons have no weights per block.
    """

    weighted: bool = False


@dataclass(frozen=True)
class TransformRow(Row):
    """An image transform: the entry, or an instance of it, takes a training image and gives one back.

    ``places``: the function puts its steps into the pipelines itself, ``place(train, test, height, width)``.
    ``stock``: torchreid builds it.
    """

    places: bool = False
    stock: bool = False


@dataclass(frozen=True)
class OptimizerRow(Row):
    """An optimiser: ``entry(groups, cfg)`` gives a torch optimiser of groups of parameters with their learning rates.

    ``stock``: torchreid builds it.
    """

    stock: bool = False


#: Scorers of heads: ``score(model, calibration, blocks)`` gives a tensor per block; large ones go first.
HEAD_SCORERS = Registry("head scorer", ScorerRow)
#: Scorers of tokens, called in the same way; small ones go first.
TOKEN_SCORERS = Registry("token scorer", ScorerRow)
#: Scorers of neurons, the hidden units of the MLPs, called in the same way; small ones go first.
NEURON_SCORERS = Registry("neuron scorer", ScorerRow)
#: Token reducers: subclasses of :class:`amg_plugin.models.reducers.TokenReducer`.
REDUCERS = Registry("token reducer")
#: Data sets: classes of torchreid's kind.
DATASETS = Registry("data set")
#: Image transforms, placed in this order.
TRANSFORMS = Registry("transform", TransformRow)
#: Optimisers of ``train.optim``.
OPTIMIZERS = Registry("optimiser", OptimizerRow)
#: Hooks that ``amg.hooks`` switches on: classes with ``from_config(cfg)``, or callables that take ``cfg``.
HOOKS = Registry("hook")

FORMATS, ExportFormat, register_format = formats.FORMATS, formats.ExportFormat, formats.register_format
TABLES = (
    HEAD_SCORERS,
    TOKEN_SCORERS,
    NEURON_SCORERS,
    REDUCERS,
    DATASETS,
    TRANSFORMS,
    OPTIMIZERS,
    HOOKS,
    FORMATS,
)
register_head_scorer = HEAD_SCORERS.register
register_token_scorer = TOKEN_SCORERS.register
register_neuron_scorer = NEURON_SCORERS.register
register_reducer = REDUCERS.register
register_dataset = DATASETS.register
register_transform = TRANSFORMS.register
register_optimizer = OPTIMIZERS.register
register_hook = HOOKS.register


def described() -> list[str]:
    """A line on every entry: what it is, its name, its summary."""
    return [
        f"{table.kind} {row.name}{f': {row.summary}' if row.summary else ''}"
        for table in TABLES
        for row in table.rows.values()
    ]


for _table, _name, _function, _line in (
    (HEAD_SCORERS, "amg", "entropy_of_heads", "entropy of the mean attention map"),
    (HEAD_SCORERS, "taylor", "taylor_of_heads", "first-order change of the loss, beyond the paper"),
    (HEAD_SCORERS, "entropy_gradient", "entropy_against_gradient_of_heads", "entropy against taylor, beyond the paper"),
    (HEAD_SCORERS, "reconstruction", "reconstruction_of_heads", "taylor of what a repair leaves, beyond the paper"),
    (HEAD_SCORERS, "random", "random_heads", "random scores, for comparison"),
    (HEAD_SCORERS, "magnitude", "magnitude_of_heads", "norm of the weights, for comparison"),
    (TOKEN_SCORERS, "amg", "importance_of_tokens", "attention times gradient"),
    (TOKEN_SCORERS, "amg_image", "importance_per_image_of_tokens", "as amg, but per image, beyond the paper"),
    (TOKEN_SCORERS, "random", "random_tokens", "random scores, for comparison"),
    (TOKEN_SCORERS, "cls_attention", "class_attention_of_tokens", "attention of the class token, for comparison"),
    (NEURON_SCORERS, "taylor", "taylor_of_neurons", "activation times gradient, per image"),
    (NEURON_SCORERS, "variance", "variance_of_neurons", "variance of the activation"),
    (NEURON_SCORERS, "magnitude", "magnitude_of_neurons", "norm of the weights, for comparison"),
    (NEURON_SCORERS, "random", "random_neurons", "random scores, for comparison"),
):
    _table.register(
        _name, f"amg_plugin.pruning.scorers:{_function}", summary=_line, weighted=_name in ("amg", "amg_image")
    )
for _name, _class, _line in (
    ("tome", "TokenMerging", "token merging (arXiv 2210.09461)"),
    ("evit", "TokenDropping", "token dropping (arXiv 2202.07800)"),
):
    REDUCERS.register(_name, f"amg_plugin.models.reducers:{_class}", summary=_line)
for _name, _class, _line in (
    ("synthetic_reid", "SyntheticReID", "people drawn as coloured figures (amg-reid demo)"),
    ("occluded_duke", "OccludedDuke", "Occluded-DukeMTMC (ICCV 2019)"),
    ("occluded_reid", "OccludedREID", "Occluded-REID (ICME 2018), to evaluate on"),
    ("partial_reid", "PartialREID", "Partial-REID (ICCV 2015), to evaluate on"),
    ("p_dukemtmc", "PDukeMTMC", "P-DukeMTMC-reID (ICME 2018)"),
    ("occluded_market1501", "OccludedMarket1501", "Market-1501 behind drawn objects (amg-reid occlude)"),
):
    DATASETS.register(_name, f"amg_plugin.data.datasets.local:{_class}", summary=_line, needs=("torchreid",))
for _name in ("random_flip", "random_crop", "random_patch", "color_jitter", "random_erase"):
    TRANSFORMS.register(_name, f"torchreid's {_name}", summary="torchreid's own", stock=True)
for _name, _line in (
    ("pad_crop", "a border of 10 pixels and a random crop back"),
    ("bicubic", "bicubic resize, in training and evaluation"),
    ("random_occlusion", "a drawn object in front of some people (amg.occlusion)"),
):
    TRANSFORMS.register(_name, f"amg_plugin.data.transforms:place_{_name}", summary=_line, places=True)
for _name in ("adam", "amsgrad", "sgd", "rmsprop", "radam"):
    OPTIMIZERS.register(_name, f"torchreid's {_name}", summary="torchreid's own", stock=True)
OPTIMIZERS.register(
    "adamw",
    "amg_plugin.engine.optim:adamw",
    summary="Adam with decoupled weight decay (arXiv 1711.05101)",
    needs=("torchreid",),
)
