"""The tables that users may extend, and what is built in: names, places and one line on each."""

from __future__ import annotations

from dataclasses import dataclass

from amg_plugin.registries.registry import Registry, Row


@dataclass(frozen=True)
class ScorerRow(Row):
    """A scorer; ``weighted`` says whether AMG's weights per block (growth of heads, decay of tokens) apply to it."""

    weighted: bool = False


@dataclass(frozen=True)
class TransformRow(Row):
    """An image transform.

    Attributes:
        places: The function puts its steps into the pipelines itself: ``place(train, test, height, width)``. Otherwise
            the entry, or an instance of it, takes a training image and gives one back.
        stock: torchreid builds it.
    """

    places: bool = False
    stock: bool = False


#: Scorers of heads: ``score(model, calibration, blocks)`` gives a tensor per block; large ones go first.
HEAD_SCORERS = Registry("head scorer", ScorerRow)
#: Scorers of tokens, called in the same way; small ones go first.
TOKEN_SCORERS = Registry("token scorer", ScorerRow)
#: Token reducers: subclasses of :class:`amg_plugin.models.reducers.TokenReducer`.
REDUCERS = Registry("token reducer")
#: Data sets: classes of torchreid's kind.
DATASETS = Registry("data set")
#: Image transforms, placed in this order.
TRANSFORMS = Registry("transform", TransformRow)
#: Hooks that ``amg.hooks`` switches on: classes with ``from_config(cfg)``, or callables that take ``cfg``.
HOOKS = Registry("hook")

_SCORERS, _DATA = "amg_plugin.pruning.scorers", "amg_plugin.data"
HEAD_SCORERS.register("amg", f"{_SCORERS}:entropy_of_heads", summary="entropy of the mean attention map", weighted=True)
HEAD_SCORERS.register("random", f"{_SCORERS}:random_heads", summary="random scores, for comparison")
HEAD_SCORERS.register("magnitude", f"{_SCORERS}:magnitude_of_heads", summary="norm of the weights, for comparison")
TOKEN_SCORERS.register("amg", f"{_SCORERS}:importance_of_tokens", summary="attention times gradient", weighted=True)
TOKEN_SCORERS.register("random", f"{_SCORERS}:random_tokens", summary="random scores, for comparison")
TOKEN_SCORERS.register(
    "cls_attention", f"{_SCORERS}:class_attention_of_tokens", summary="attention of the class token, for comparison"
)
REDUCERS.register("tome", "amg_plugin.models.reducers.merging:TokenMerging", summary="token merging (arXiv 2210.09461)")
REDUCERS.register(
    "evit", "amg_plugin.models.reducers.dropping:TokenDropping", summary="token dropping (arXiv 2202.07800)"
)
for _name, _class, _line in (
    ("synthetic_reid", "occluded:SyntheticReID", "people drawn as coloured figures (amg-reid demo)"),
    ("occluded_duke", "occluded:OccludedDuke", "Occluded-DukeMTMC (ICCV 2019)"),
    ("occluded_reid", "occluded:OccludedREID", "Occluded-REID (ICME 2018), to evaluate on"),
    ("partial_reid", "occluded:PartialREID", "Partial-REID (ICCV 2015), to evaluate on"),
    ("p_dukemtmc", "occluded:PDukeMTMC", "P-DukeMTMC-reID (ICME 2018)"),
    ("occluded_market1501", "occluded:OccludedMarket1501", "Market-1501 behind drawn objects (amg-reid occlude)"),
):
    DATASETS.register(_name, f"{_DATA}.datasets.{_class}", summary=_line, needs=("torchreid",))
for _name in ("random_flip", "random_crop", "random_patch", "color_jitter", "random_erase"):
    TRANSFORMS.register(_name, f"torchreid's {_name}", summary="torchreid's own", stock=True)
for _name, _line in (
    ("pad_crop", "a border of 10 pixels and a random crop back"),
    ("bicubic", "bicubic resize, in training and evaluation"),
    ("random_occlusion", "a drawn object in front of some people (amg.occlusion)"),
):
    TRANSFORMS.register(_name, f"{_DATA}.transforms:place_{_name}", summary=_line, places=True)
