"""Figures out of ``result.json`` files, and which published network they are about."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amg_plugin.errors import InputError
from amg_plugin.runs.result import SECTIONS

#: A data set of the publications -> its names in torchreid and here, without signs between the words.
_NAMES = {
    "Market-1501": {"market1501"},
    "Occluded-Duke": {"occludedduke", "occludeddukemtmc", "occludeddukemtmcreid"},
}


@dataclass(frozen=True)
class Shape:
    """What tells one published network from the others.

    Attributes:
        data: Data set, as the publications write it.
        params: Parameters without classifiers; they tell backbone, side information and removed heads.
        heads: Heads left, of all blocks.
        tokens: Patch tokens left, of all blocks.
        is_dense: Whether nothing is removed.
    """

    data: str
    params: int
    heads: int
    tokens: int
    is_dense: bool


@dataclass(frozen=True)
class Measurement:
    """Figures of one model on one target.

    Attributes:
        file: The ``result.json``.
        section: ``"dense"``, ``"start"``, ``"pruned"`` or ``"finetuned"``.
        model: The configuration's ``model.name``.
        data: The target's name.
        mAP: mAP in per cent.
        rank1: Rank-1 in per cent.
        macs: Counted MACs of one image.
        params: Parameters without classifiers.
        heads: Heads left, of all blocks.
        tokens: Patch tokens left, of all blocks.
        conditions: Device and seed.
    """

    file: str
    section: str
    model: str
    data: str
    mAP: float
    rank1: float
    macs: int
    params: int
    heads: int
    tokens: int
    conditions: str

    def is_of(self, shape: Shape) -> bool:
        """Whether the figures are about a network of that shape on that data set."""
        return same_data(self.data, shape.data) and self.has_structure(shape)

    def has_structure(self, shape: Shape) -> bool:
        """Whether the network has the size and the removed totals of ``shape``."""
        return (self.params, self.heads, self.tokens) == (shape.params, shape.heads, shape.tokens)

    def remark(self, shape: Shape) -> str:
        """The measurement's origin, and what differs from ``shape`` if it was put there on demand."""
        differs = [] if same_data(self.data, shape.data) else [f"on {self.data}"]
        if not self.has_structure(shape):
            differs.append(
                f"with {self.heads} heads, {self.tokens} tokens and {self.params / 1e6:.2f} M parameters left "
                f"(here {shape.heads}, {shape.tokens} and {shape.params / 1e6:.2f} M)"
            )
        return " ".join([f"measured: {self.section}, {self.conditions}", *differs])


def same_data(name: str, published: str) -> bool:
    """Whether a target's name means the data set that the publications call ``published``."""
    return "".join(sign for sign in name.lower() if sign.isalnum()) in _NAMES[published]


def read_measurements(file: Path) -> list[Measurement]:
    """Read every section and target of a result.

    Args:
        file: A ``result.json`` of ``amg-reid train``, ``prune`` or ``test``.

    Returns:
        At least one, in the order of the run.

    Raises:
        InputError: If it is not such a file, naming what is wrong with it.
    """
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
        found = [
            _measurement(str(file), result, name, target)
            for name in SECTIONS
            if name in result
            for target in result[name]["targets"]
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"'{file}' is not a result.json of amg-reid ({type(error).__name__}: {error}).") from error
    if not found:
        raise InputError(f"'{file}' is not a result.json of amg-reid: it has none of {', '.join(SECTIONS)}.")
    return found


def _measurement(file: str, result: dict[str, Any], name: str, target: str) -> Measurement:
    section = result[name]
    scores = section["targets"][target]
    return Measurement(
        file=file,
        section=name,
        model=str(result["config"]["model"]["name"]),
        data=target,
        mAP=100 * scores["mAP"],
        rank1=100 * scores["rank1"],
        macs=int(section["macs"]),
        params=int(section["params"]),
        heads=sum(section["heads_per_block"]),
        tokens=sum(section["tokens_per_block"]),
        conditions=f"{result.get('device', 'unknown device')}, seed {result.get('seed', 'unknown')}",
    )
