"""Accuracy over cost: any set of finished runs, and the methods of ``tools/compare_methods.py`` over their sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from amg_plugin.errors import InputError
from amg_plugin.plots.style import FAINT, FONT, Sheet, header_text
from amg_plugin.runs.finished import folder_of, names_of, read_finished, times_beside
from amg_plugin.runs.result import FILE_NAME as RESULT
from amg_plugin.runs.result import SECTIONS
from amg_plugin.utils.files import kind_of, read_json

#: The axis of cost that needs no measurement.
MACS = "macs"
STEPS = {"before": "nothing trained", "after": "fine-tuned"}
# Okabe and Ito's colours, which readers with any colour vision can tell apart, and a shape each for print.
_LOOKS = (
    ("#0072b2", "o"), ("#d55e00", "s"), ("#009e73", "^"), ("#e69f00", "D"), ("#cc79a7", "v"), ("#56b4e9", "P"),
    ("#7f7f7f", "X"),
)  # fmt: skip
_DENSE = "dense"


@dataclass(frozen=True)
class Axis:
    """What cost is.

    Attributes:
        kind: :data:`MACS`, or the form that was timed: ``"onnx"``, ``"fast"``.
        batch: Images per pass, for times.
    """

    kind: str
    batch: int = 1

    @property
    def label(self) -> str:
        """Text of the axis."""
        if self.kind == MACS:
            return "counted MACs of an image (G)"
        return f"milliseconds per pass of {self.batch} image{'s' * (self.batch > 1)} ({self.kind})"


@dataclass
class Curves:
    """What is drawn.

    Attributes:
        points: Label -> (cost, mAP in per cent), ascending by cost.
        marks: Name -> cost, of networks without an accuracy.
        conditions: What times were measured on; empty for MACs.
    """

    points: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    marks: dict[str, float] = field(default_factory=dict)
    conditions: str = ""


def read_curves(paths: Sequence[str | Path], axis: Axis, step: str, methods: Sequence[str] = ()) -> Curves:
    """Gather the points of runs and of comparisons, each of which has its methods at one size.

    Args:
        paths: Folders of runs (or their ``result.json``), ``LABEL=RUN`` for those that belong together, and JSON files
            of ``tools/compare_methods.py``.
        axis: What cost is.
        step: ``"before"`` or ``"after"`` the fine-tuning; the dense model is shown without it.
        methods: Keys of the methods to draw; empty for all. Runs have no such keys and are all drawn.

    Raises:
        InputError: If a file is something else, knows no such method, or has no times.
    """
    curves, known = Curves(), set()
    comparisons, runs = _sorted_out(paths)
    for folder, label in runs.items():
        _add_run(curves, folder, label, axis, step)
    for path in comparisons:
        result = _read(path)
        known |= set(result["methods"])
        timed = _times(path, result, axis)
        for name, entry in result["methods"].items():
            found = entry["before" if name == _DENSE else step]
            if not found or (methods and name not in methods):
                continue
            if axis.kind != MACS and name not in timed:
                raise InputError(f"'{path}' has no time of '{name}'; run tools/compare_methods.py --latency again.")
            cost = timed[name] if timed else fmean(run["macs"] for run in found.values()) / 1e9
            point = cost, 100 * fmean(run["mAP"] for run in found.values())
            if name != _DENSE or entry["label"] not in curves.points:  # every file has it
                curves.points.setdefault(entry["label"], []).append(point)
        curves.marks |= {name: cost for name, cost in timed.items() if name not in result["methods"]}
        if timed:
            on = result["latency_on"]
            curves.conditions = f"{on['device']}, {on['threads']} thread{'s' * (on['threads'] > 1)}"
    if missing := [name for name in methods if name not in known]:
        raise InputError(f"No file has the method '{missing[0]}'; there are {', '.join(sorted(known))}.")
    if not curves.points:
        raise InputError(f"No file has figures of the step '{step}'.")
    for points in curves.points.values():
        points.sort()
    return curves


def _sorted_out(words: Sequence[str | Path]) -> tuple[list[str | Path], dict[Path, str]]:
    """Comparisons, and the folders of runs with their labels."""
    comparisons: list[str | Path] = []
    given: dict[Path, str] = {}
    for word in words:
        label, found, place = str(word).rpartition("=")
        path = Path(place if found else word)
        if found or kind_of(path) == "folder" or path.name == RESULT:
            given[folder_of(path)] = label
        else:
            comparisons.append(word)
    names = names_of(list(given)) if given else []
    return comparisons, {one: label or name for (one, label), name in zip(given.items(), names, strict=True)}


def _add_run(curves: Curves, folder: Path, label: str, axis: Axis, step: str) -> None:
    """Add the network that a run ended with, and the dense one that it began with."""
    result = read_finished(folder)
    sections = [name for name in SECTIONS if name in result]
    last = "pruned" if step == "before" and "pruned" in sections else next(reversed(sections), "")
    chosen = {last: label, **({_DENSE: _DENSE} if _DENSE in sections else {})}
    for section, name in chosen.items():
        try:
            point = _cost(folder, result[section], section == _DENSE, axis, curves), 100 * float(result[section]["mAP"])
        except InputError:
            raise
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"The result in '{folder}' has no accuracy and cost to draw: {error!r}.") from error
        points = curves.points.setdefault(name, [])
        points += [point] if point not in points else []  # runs may share their dense network


def _cost(folder: Path, section: Mapping[str, Any], dense: bool, axis: Axis, curves: Curves) -> float:
    if axis.kind == MACS:
        return section["macs"] / 1e9
    rows = [row for row in times_beside(folder) if (row["form"], row["batch"]) == (axis.kind, axis.batch)]
    # A dense network is what others are measured against.
    rows = [row for row in rows if ("baseline" in row) != dense]
    threads = min((row["threads"] for row in rows), default=0)
    rows = [row for row in rows if row["threads"] == threads]
    if len(rows) != 1:
        raise InputError(
            f"'{folder}' has {len(rows) or 'no'} times of {axis.kind} at batch {axis.batch} for its "
            f"{'dense' if dense else 'last'} network; one is needed: amg-reid bench CKPT --output {folder.name}/bench."
        )
    curves.conditions = f"{rows[0]['measured_on']}, {threads} thread{'s' * (threads > 1)}"
    return rows[0]["milliseconds"]


def _read(path: str | Path) -> dict[str, Any]:
    result = read_json(path)
    methods = result.get("methods") if isinstance(result, Mapping) else None
    if not isinstance(methods, Mapping) or not all(
        isinstance(entry, Mapping) and {"label", *STEPS} <= set(entry) for entry in methods.values()
    ):
        raise InputError(f"'{path}' is neither the folder of a run nor a file of tools/compare_methods.py.")
    return result


def _times(path: str | Path, result: Mapping[str, Any], axis: Axis) -> dict[str, float]:
    if axis.kind == MACS:
        return {}
    timed = {
        name: forms[axis.kind][str(axis.batch)]["median"]
        for name, forms in result.get("latency", {}).items()
        if str(axis.batch) in forms.get(axis.kind, ())
    }
    if not timed:
        raise InputError(
            f"'{path}' has no times of {axis.kind} at batch {axis.batch}; run tools/compare_methods.py --latency, or "
            f"choose '{MACS}'."
        )
    return timed


def pareto_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points (cost, accuracy) that none beats: the others cost more or are less accurate; ascending by cost."""
    best: list[tuple[float, float]] = []
    for point in sorted(points, key=lambda one: (one[0], -one[1])):
        if not best or point[1] > best[-1][1]:
            best.append(point)
    return best


def draw_pareto(panels: Sequence[tuple[Axis, Curves]], step: str) -> Figure:
    """One panel per axis, side by side; up and left is better."""
    width, height, left, bottom, gap = 4.6, 3.3, 0.62, 0.95, 0.62
    with mpl.rc_context(FONT):
        sheet = Sheet(left + len(panels) * (width + gap) - gap + 0.25, bottom + height + 0.75)
        conditions = next((curves.conditions for _, curves in panels if curves.conditions), "counted, not measured")
        header_text(sheet, "Accuracy over cost", f"mAP, {STEPS[step]}; up and left is better; {conditions}")
        for number, (axis, curves) in enumerate(panels):
            axes = sheet.panel(left + number * (width + gap), bottom, width, height)
            _draw_panel(axes, axis, curves)
        handles, labels = axes.get_legend_handles_labels()
        x = left / sheet.width
        sheet.figure.legend(
            handles, labels, loc="lower left", bbox_to_anchor=(x, 0.06 / sheet.height), ncols=min(len(labels), 5),
            frameon=False, borderaxespad=0, fontsize=8,
        )  # fmt: skip
    return sheet.figure


def _draw_panel(axes: Axes, axis: Axis, curves: Curves) -> None:
    looks = iter(_LOOKS * (1 + len(curves.points) // len(_LOOKS)))
    for label, points in curves.points.items():
        if label == _DENSE:
            axes.plot(*zip(*points, strict=True), "k*", markersize=11, label=label, zorder=4)
            continue
        colour, shape = next(looks)
        axes.plot(*zip(*points, strict=True), color=colour, marker=shape, markersize=5, linewidth=1.2, label=label)
    front = pareto_front([point for points in curves.points.values() for point in points])
    axes.step(*zip(*front, strict=True), where="post", color=FAINT, linewidth=0.8, alpha=0.6, zorder=1, label="_front")
    for name, cost in curves.marks.items():
        axes.axvline(cost, color=FAINT, linewidth=0.7, linestyle=(0, (4, 3)), zorder=1)
        axes.text(cost, 0.02, f" {name}", rotation=90, fontsize=7, color=FAINT, transform=axes.get_xaxis_transform(),
                  ha="right", va="bottom")  # fmt: skip
    axes.set(xlabel=axis.label, ylabel="mAP %")
    axes.set_xlim(left=0)
    axes.grid(color="#e6e6e6", linewidth=0.5)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
