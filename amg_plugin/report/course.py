"""The course of runs over their epochs, and what each block keeps, as charts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from amg_plugin.registries import TARGETS
from amg_plugin.report.reading import Run
from amg_plugin.report.svg import FAINT, INK, RULE, SOFT, Chart, line, series, whole_ticks

#: Terms of a loss that are further apart than this are drawn over a logarithmic axis.
_FAR_APART = 30
_CUT_LINES = {"heads": (0, (4, 2)), "tokens": (0, (1, 1.5)), "neurons": (0, (5, 1, 1, 1))}


@dataclass(frozen=True)
class Figure:
    """A chart of a page with its caption."""

    svg: str
    caption: str


@dataclass
class _Course:
    """A history by the number of epochs that were over."""

    loss: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    lr: list[tuple[int, float]] = field(default_factory=list)
    mAP: list[tuple[int, float]] = field(default_factory=list)
    rank1: list[tuple[int, float]] = field(default_factory=list)
    cuts: list[tuple[int, str]] = field(default_factory=list)

    @classmethod
    def of(cls, run: Run) -> _Course:
        found, over = cls(), 0
        for entry in run.history:
            if entry["event"] == "epoch":
                over += 1
                found.lr.append((over, float(entry["lr"])))
                for name, value in entry["loss"].items():
                    found.loss.setdefault(name, []).append((over, float(value)))
            elif entry["event"] == "test":
                scores = entry["targets"][run.target]
                found.mAP.append((over, 100 * scores["mAP"]))
                found.rank1.append((over, 100 * scores["rank1"]))
            elif entry["event"] == "cut":
                found.cuts.append((over, entry["target"]))
        return found


def course(runs: Sequence[Run]) -> list[Figure]:
    """Loss, learning rate and scores of runs that noted their epochs, with the cuts."""
    found = {run.name: _Course.of(run) for run in runs}
    found = {name: one for name, one in found.items() if one.lr}
    if not found:
        return []
    alone = len(found) == 1
    all_cuts = [one.cuts for one in found.values()]
    cuts = all_cuts[0] if all(one == all_cuts[0] for one in all_cuts) else []  # lines of several runs would mix
    marked = f" Vertical lines: cuts of {_listed(dict.fromkeys(what for _, what in cuts))}." if cuts else ""
    loss = {
        (term if alone else f"{name}: {term}" if len(one.loss) > 1 else name): points
        for name, one in found.items()
        for term, points in one.loss.items()
    }
    rates = {"learning rate" if alone else name: one.lr for name, one in found.items()}
    scores = {
        (kind if alone else f"{name}: {kind}"): getattr(one, attribute)
        for name, one in found.items()
        for kind, attribute in (("mAP", "mAP"), ("Rank-1", "rank1"))
    }
    target = runs[0].target
    last = max(point[0] for one in found.values() for point in one.lr)
    figures = [
        Figure(_lines(scores, cuts, last, "%", f"Scores on {target}"), f"mAP and Rank-1 on {target}.{marked}"),
        Figure(_lines(loss, cuts, last, "loss", "Loss"), f"Training loss, mean over an epoch{_terms(loss)}."),
        Figure(
            _lines(rates, cuts, last, "learning rate", "Learning rate"), "Learning rate in the last step of an epoch."
        ),
    ]
    return [one for one in figures if one.svg]


def _terms(loss: Mapping[str, Any]) -> str:
    """What the terms are, as far as they are the plugin's and torchreid's."""
    known = {"loss_t": "triplet", "loss_x": "cross-entropy", "loss_d": "distillation", "loss_f": "features"}
    found = [f"{name} {meaning}" for name, meaning in known.items() if any(key.endswith(name) for key in loss)]
    return f": {', '.join(found)}" if found else ""


def _lines(
    curves: Mapping[str, Sequence[tuple[int, float]]], cuts: Sequence[tuple[int, str]], last: int, unit: str, label: str
) -> str:
    curves = {name: points for name, points in curves.items() if points}
    if not curves:
        return ""
    chart = Chart()
    for number, (name, points) in enumerate(curves.items()):
        options = line(number) | ({"marker": ""} if len(points) > 30 else {})
        chart.axes.plot(*zip(*points, strict=True), label=name, linewidth=1.6, markersize=4, **options)
    for over, what in dict.fromkeys(cuts):
        chart.axes.axvline(over, color=FAINT, linewidth=1, linestyle=_CUT_LINES.get(what, "-"), zorder=1)
    values = [value for points in curves.values() for _, value in points]
    if unit == "loss" and min(values) > 0 and max(values) / min(values) > _FAR_APART:
        chart.axes.set_yscale("log")
    chart.axes.set(xlabel="epochs", ylabel=unit)
    chart.axes.grid(axis="y", linewidth=0.6)
    whole_ticks(chart.axes, [0, last])
    if len(curves) > 1:
        chart.legend()
    return chart.svg(label)


def kept(run: Run) -> list[Figure]:
    """How many heads, tokens and neurons each block of a run's last network keeps, out of how many."""
    first, last = (run.result[name] for name in (run.sections[0], run.last))
    figures = []
    for target in TARGETS:
        left, before = last.get(f"{target}_per_block"), _dense(run, first, target)
        if left and before and (target != "neurons" or left != before):
            figures.append(_bars(_called(run, target), left, before))
    return figures


def compared(runs: Sequence[Run]) -> list[Figure]:
    """The same for several runs, as shares: their networks may be of different sizes."""
    figures = []
    for target in TARGETS:
        shares = {}
        for run in runs:
            left = run.result[run.last].get(f"{target}_per_block")
            before = _dense(run, run.result[run.sections[0]], target)
            if left and before:
                shares[run.name] = [100 * one / other for one, other in zip(left, before, strict=True)]
        if any(value < 100 for values in shares.values() for value in values):
            chart = Chart()
            for number, (name, values) in enumerate(shares.items()):
                style = line(number)
                chart.axes.plot(range(len(values)), values, label=name, linewidth=1.6, markersize=4, **style)
            chart.axes.set(xlabel="block", ylabel=f"{target} left, %", ylim=(0, 104))
            chart.axes.grid(axis="y", linewidth=0.6)
            whole_ticks(chart.axes, [0, max(map(len, shares.values())) - 1])
            chart.legend()
            figures.append(Figure(chart.svg(f"{target} per block"), f"{target.capitalize()} that each block keeps."))
    return figures


def _dense(run: Run, first: Mapping[str, Any], target: str) -> Sequence[int]:
    """What each block of the dense network has."""
    plan = run.structure and run.structure.plan
    if plan and target != "neurons":
        return [plan.dense_size(target, block) for block in range(plan.depth)]
    if plan and plan.num_neurons:
        return list(plan.num_neurons)
    return first.get(f"{target}_per_block", [])


def _called(run: Run, target: str) -> str:
    merged = target == "tokens" and run.structure and run.structure.plan.variant == "merge"
    return "groups of patches" if merged else target


def _bars(what: str, left: Sequence[int], before: Sequence[int]) -> Figure:
    chart, blocks = Chart(height=2.3), range(len(left))
    chart.axes.bar(blocks, before, width=0.74, color=SOFT, edgecolor=RULE, linewidth=0.8)
    chart.axes.bar(blocks, left, width=0.74, color=series(0))
    if len(left) <= 16:
        for block, count in zip(blocks, left, strict=True):
            chart.axes.text(block, count, f"{count}", ha="center", va="bottom", fontsize=9, color=INK)
    chart.axes.set(xlabel="block", ylabel=what, ylim=(0, 1.12 * max(before)))
    chart.axes.set_xticks(blocks if len(left) <= 16 else blocks[::2])
    whole = f"{what.capitalize()} that each block keeps: {sum(left)} of {sum(before)}."
    return Figure(chart.svg(f"{what} per block"), whole)


def _listed(words: Sequence[str] | Mapping[str, Any]) -> str:
    *some, last = words
    return f"{', '.join(some)} and {last}" if some else last
