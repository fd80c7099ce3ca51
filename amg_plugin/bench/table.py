"""From samples to rows, warnings and documents."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from amg_plugin.bench.run import case_title, quartiles
from amg_plugin.registries.formats import forms
from amg_plugin.utils.tables import markdown_table, text_table

#: Share of the counted saving below which pruning did not pay.
PAYS = 0.5
HEADER = (
    "network", "ms", "quartiles", "images/s", "MACs", "params", "file MB", "peak MB", "MACs saved", "time saved",
    "quartiles", "realised",
)  # fmt: skip


def rows(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row per case and network.

    Savings compare neighbouring samples: a network and its dense one in the same round, so that a slow phase of the
    machine meets both. ``realised`` is the share of the counted saving in MACs that the median shows as time; None
    where nothing is saved, and for files in fp16 or int8, whose time tells of more than pruning.
    """
    subjects = {subject["name"]: subject for subject in result["subjects"]}
    found = []
    for case in result["cases"]:
        for name, samples in case["samples"].items():
            subject, (low, middle, high) = subjects[name], quartiles(samples)
            row = {
                **{key: case[key] for key in ("form", "device", "threads", "batch")},
                "network": name,
                "milliseconds": 1e3 * middle,
                "milliseconds_quartiles": [1e3 * low, 1e3 * high],
                "images_per_second": case["batch"] / middle,
                "macs": subject["macs"],
                "macs_run": subject["macs"] if case["form"] == "eager" else subject["macs_fast"],
                "params": subject["params"],
                "bytes": case.get("bytes", {}).get(name, subject["bytes"]),
                "peak_memory": case.get("peak_memory", {}).get(name),
            }
            if subject["baseline"]:
                row.update(_savings(subject, subjects[subject["baseline"]], samples, case))
            found.append(row)
    return found


def _savings(
    subject: Mapping[str, Any], dense: Mapping[str, Any], samples: Sequence[float], case: Mapping[str, Any]
) -> dict[str, Any]:
    pairs = zip(samples, case["samples"][dense["name"]], strict=True)
    low, middle, high = quartiles([1 - ours / theirs for ours, theirs in pairs])
    counted, precision = 1 - subject["macs"] / dense["macs"], subject.get("precision", "fp32")
    return {
        "baseline": dense["name"],
        "macs_saved": counted,
        "time_saved": middle,
        "time_saved_quartiles": [low, high],
        "precision": precision,
        "realised": middle / counted if counted > 0 and precision == "fp32" else None,
    }


def warnings(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """A sentence for every row whose pruning did not pay."""
    said = []
    for row in found:
        slower = "is not faster than the dense network"
        if row.get("precision", "fp32") != "fp32" and row["time_saved"] <= 0:
            said.append(f"{row['network']} ({_title(row)}, {row['precision']}) {slower} in fp32.")
        if row.get("realised") is not None and row["realised"] < PAYS:
            what = slower if row["time_saved"] <= 0 else f"saves {100 * row['time_saved']:.1f} % of the time only"
            said.append(
                f"{row['network']} ({_title(row)}) {what}, although it saves {100 * row['macs_saved']:.1f} % of the "
                "MACs: here pruning did not pay."
            )
    return said


def tables(found: Sequence[Mapping[str, Any]]) -> dict[str, list[list[str]]]:
    """Cells by case; the key is the table's title."""
    grouped: dict[str, list[list[str]]] = {}
    for row in found:
        grouped.setdefault(_title(row), []).append(_cells(row))
    return grouped


def _title(row: Mapping[str, Any]) -> str:
    return f"{case_title(row['form'], row['device'], row['threads'])}, batch {row['batch']}"


def _cells(row: Mapping[str, Any]) -> list[str]:
    low, high = row["milliseconds_quartiles"]
    cells = [
        row["network"],
        f"{row['milliseconds']:.1f}",
        f"{low:.1f}-{high:.1f}",
        f"{row['images_per_second']:.1f}",
        "" if row["macs"] is None else f"{row['macs'] / 1e9:.2f} G",
        "" if row["params"] is None else f"{row['params'] / 1e6:.2f} M",
        f"{row['bytes'] / 1e6:.1f}",
        "" if row["peak_memory"] is None else f"{row['peak_memory'] / 1e6:.0f}",
    ]
    if "time_saved" not in row:
        return [*cells, "", "", "", ""]
    low, high, middle = (f"{100 * share:.1f}" for share in (*row["time_saved_quartiles"], row["time_saved"]))
    realised = "" if row["realised"] is None else f"{row['realised']:.2f}"
    return [*cells, f"{100 * row['macs_saved']:.1f} %", f"{middle} %", f"{low} to {high}", realised]


def text(found: Sequence[Mapping[str, Any]]) -> str:
    """For the terminal."""
    parts = [f"{title}\n{text_table(HEADER, cells)}" for title, cells in tables(found).items()]
    return "\n\n".join([*parts, *(f"WARNING: {sentence}" for sentence in warnings(found))])


def markdown(result: Mapping[str, Any], found: Sequence[Mapping[str, Any]]) -> str:
    """For a document."""
    where = result["environment"]
    versions = ", ".join(f"{name} {version}" for name, version in where["versions"].items())
    lines = [
        f"{where['device']}, {where['cores']} cores, {where['system']}; {versions}.",
        "",
        f"`{result['command']}`",
        "",
        f"Medians of {where['rounds']} alternating runs, with quartiles. Time saved: against the dense network "
        "in the same round. Realised: time saved / MACs saved, as counted by `amg-reid inspect`. Peak memory is that "
        "of the whole process.",
        "",
        *(f"- {form}: {meaning}." for form, meaning in forms().items() if any(row["form"] == form for row in found)),
    ]
    for title, cells in tables(found).items():
        lines += ["", f"### {title}", "", markdown_table(HEADER, cells)]
    if said := warnings(found):
        lines += ["", *(f"- {sentence}" for sentence in said)]
    return "\n".join(lines) + "\n"


def to_json(result: Mapping[str, Any], found: Sequence[Mapping[str, Any]]) -> str:
    """Everything, samples included."""
    return json.dumps({**result, "rows": list(found), "warnings": warnings(found)}, indent=1) + "\n"
