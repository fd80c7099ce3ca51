"""The table of models side by side, with the differences from the first one, and the sentence that sums it up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from amg_plugin.evaluation.intervals import bootstrap_interval
from amg_plugin.registries import TARGETS
from amg_plugin.report.reading import NAMES, Run
from amg_plugin.runs.details import per_query

_SCORES = (("Rank-1", "rank1"), ("mAP", "mAP"))


@dataclass(frozen=True)
class Model:
    """A column of the table.

    Attributes:
        name: Its heading.
        section: Its section of a result.
        queries: Target -> what every query contributed.
    """

    name: str
    section: Mapping[str, Any]
    queries: Mapping[str, Any]

    @classmethod
    def of(cls, run: Run, section: str, name: str = "") -> Model:
        """A section of a run."""
        called = "trained on" if section == "finetuned" and len(run.sections) == 1 else NAMES[section]
        return cls(name or called, run.result[section], run.queries.get(section, {}))


@dataclass(frozen=True)
class Difference:
    """A difference of two scores in points.

    Attributes:
        points: The difference.
        interval: Its 95 % bootstrap interval over the queries, paired; None if it is not known.
    """

    points: float
    interval: tuple[float, float] | None = None

    def __str__(self) -> str:
        ends = f" [{_signed(self.interval[0])},\u00a0{_signed(self.interval[1])}]" if self.interval else ""
        return f"{_signed(self.points)}{ends}"


@dataclass(frozen=True)
class Row:
    """A figure of every model: texts, and below each what it differs by from the first."""

    label: str
    cells: list[tuple[str, str]]


def models_of(runs: Sequence[Run]) -> list[Model]:
    """The columns: the sections of one run, or the network that each of several runs ended with.

    Where the first of several runs began with a network that it changed, that one comes first.
    """
    if len(runs) == 1:
        return [Model.of(runs[0], name) for name in runs[0].sections]
    first = runs[0]
    begin = [Model.of(first, first.sections[0], f"{first.name}: {NAMES[first.sections[0]]}")]
    return begin * (len(first.sections) > 1) + [Model.of(run, run.last, run.name) for run in runs]


def difference(one: Model, other: Model, target: str, score: str) -> Difference | None:
    """By how much a score of a model differs from that of another; None without the target."""
    both = [model.section["targets"].get(target) for model in (one, other)]
    if None in both:
        return None
    points, kept = 100 * (both[0][score] - both[1][score]), [model.queries.get(target) for model in (one, other)]
    if None in kept or kept[0]["labels"] != kept[1]["labels"]:
        return Difference(points)
    ours, theirs = (per_query(each, score) for each in kept)
    return Difference(points, tuple(100 * end for end in bootstrap_interval(ours - theirs)))


def table(models: Sequence[Model]) -> list[Row]:
    """Scores per target, parameters, MACs and what is left."""
    targets = list(dict.fromkeys(target for model in models for target in model.section["targets"]))
    first, rows = models[0], []
    for target in targets:
        for label, score in _SCORES:
            cells = []
            for number, model in enumerate(models):
                scores = model.section["targets"].get(target)
                by = difference(model, first, target, score) if number and scores else None
                cells.append((f"{100 * scores[score]:.1f} %" if scores else "", str(by) if by else ""))
            rows.append(Row(f"{label}, {target}" if len(targets) > 1 else label, cells))
    for label, key in (("parameters", "params"), ("MACs", "macs")):
        values = [(model.section[key], _share(model.section[key], first.section[key])) for model in models]
        rows.append(Row(label, [(amount(value), by) for value, by in values]))
    for target in TARGETS:
        left = [sum(model.section.get(f"{target}_per_block", ())) for model in models]
        if target != "neurons" or len(set(left)) > 1:
            rows.append(Row(target, [(f"{count}", _share(count, left[0])) for count in left]))
    return rows


def amount(value: float) -> str:
    """A count with three digits at least: 526 k, 12.4 M, 1.62 G."""
    unit, suffix = next((one for one in ((1e9, "G"), (1e6, "M"), (1e3, "k")) if value >= one[0]), (1, ""))
    number = value / unit
    return f"{number:.{2 if number < 10 else 1 if number < 100 else 0}f} {suffix}".rstrip()


def _share(value: float, reference: float) -> str:
    return "" if value == reference or not reference else f"{_signed(100 * (value / reference - 1))} %"


def _signed(value: float) -> str:
    """With a sign and a true minus."""
    return f"{value:+.1f}".replace("-", "\u2212")


def summary(runs: Sequence[Run], models: Sequence[Model]) -> str:
    """What came out, in a sentence or two."""
    first, last, target = models[0], models[-1], runs[0].target
    if len(models) == 1:
        scores = last.section["targets"][target]
        network = "The dense network" if runs[0].last == "dense" else "The network"
        return (
            f"{network} reaches {100 * scores['mAP']:.1f} % mAP and {100 * scores['rank1']:.1f} % Rank-1 on {target}, "
            f"with {amount(last.section['macs'])} MACs per image."
        )
    if len(runs) > 1:
        return _best(models, target)
    by = difference(last, first, target, "mAP")
    before, after = (100 * model.section["targets"][target]["mAP"] for model in (first, last))
    saved = [1 - last.section[key] / first.section[key] for key in ("macs", "params")]
    return (
        f"{100 * saved[0]:.1f} % of the MACs and {100 * saved[1]:.1f} % of the parameters are gone; mAP on {target} "
        f"went from {before:.1f} % to {after:.1f} %{_judged(by)}."
    )


def _judged(by: Difference) -> str:
    if by.interval is None:
        return ""
    low, high = by.interval
    said = "no clear difference" if low <= 0 <= high else "a clear loss" if high < 0 else "a clear gain"
    return f", {said} over these queries ({_signed(by.points)} points, 95 % interval {_signed(low)} to {_signed(high)})"


def _best(models: Sequence[Model], target: str) -> str:
    scored = [model for model in models if target in model.section["targets"]]
    best = max(scored, key=lambda model: model.section["targets"][target]["mAP"])
    small = min(scored, key=lambda model: model.section["macs"])
    sentence = f"{best.name} has the highest mAP on {target}, {100 * best.section['targets'][target]['mAP']:.1f} %"
    if small.section["macs"] > 0.99 * best.section["macs"]:
        return f"{sentence}."
    return (
        f"{sentence}; {small.name} has the fewest MACs, {amount(small.section['macs'])} against "
        f"{amount(best.section['macs'])}, at {100 * small.section['targets'][target]['mAP']:.1f} %."
    )
