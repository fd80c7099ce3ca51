"""Tables over several targets: holistic and occluded scores side by side, and attention on covered patches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from amg_plugin.runs.result import SECTIONS, comparison_rows
from amg_plugin.utils.files import write_text
from amg_plugin.utils.tables import markdown_table, text_table

MARKDOWN_FILE = "result.md"
#: Key of a result that holds what falls on covered patches, per target.
ATTENTION = "covered_attention"
_OCCLUDED = "occluded_"

Table = tuple[str, list[str], list[list[str]]]
"""Heading (one sentence, or empty), header and rows."""


def targets_table(result: Mapping[str, Any], models: Sequence[str] = SECTIONS) -> Table | None:
    """Scores of every model on every target, one column per target; None if there is one target only.

    A target ``occluded_X`` next to the target ``X`` gets a further column: how much is lost by occlusion.

    Args:
        result: Sections by the name of their model.
        models: Names that are looked for, in this order.
    """
    present = [name for name in models if name in result]
    if not present:
        return None
    targets = list(result[present[0]]["targets"])
    if len(targets) < 2:
        return None
    pairs = [(name.removeprefix(_OCCLUDED), name) for name in targets if name.removeprefix(_OCCLUDED) != name]
    pairs = [pair for pair in pairs if pair[0] in targets]
    header = ["model", *targets, *(f"{occluded} - {whole}" for whole, occluded in pairs)]
    rows = []
    for name in present:
        scores = {target: _percent(result[name]["targets"][target]) for target in targets}
        changes = [
            tuple(b - a for a, b in zip(scores[whole], scores[occluded], strict=True)) for whole, occluded in pairs
        ]
        rows.append(
            [
                name,
                *(f"{rank1:.1f} / {precision:.1f}" for rank1, precision in scores.values()),
                *(f"{rank1:+.1f} / {precision:+.1f}" for rank1, precision in changes),
            ]
        )
    return "Rank-1 / mAP in %.", header, rows


def _percent(scores: Mapping[str, Any]) -> tuple[float, float]:
    return 100 * scores["rank1"], 100 * scores["mAP"]


def attention_table(target: str, section: Mapping[str, Any]) -> Table:
    """Per block, what share of the attention to patches falls on covered ones; the last row is the mean over blocks.

    Models whose keys differ from all patches get a second column: the covered share of the keys they keep.
    """
    models, patches = section["models"], section["patches"]
    columns: list[tuple[str, list[float]]] = []
    for name, blocks in models.items():
        columns.append((f"{name}: attention %", [block["attention"] for block in blocks]))
        if any(abs(block["keys"] - patches) > 1e-6 for block in blocks):
            columns.append((f"{name}: kept keys %", [block["keys"] for block in blocks]))
    depth = len(columns[0][1])
    rows = [[str(block), *(f"{100 * values[block]:.1f}" for _, values in columns)] for block in range(depth)]
    rows.append(["mean", *(f"{100 * sum(values) / depth:.1f}" for _, values in columns)])
    heading = (
        f"Attention on covered patches of {target}: {section['images']} images with masks, on average "
        f"{100 * patches:.1f} % of the patches are covered by at least {100 * section['threshold']:.0f} %."
    )
    return heading, ["block", *(title for title, _ in columns)], rows


def further_tables(result: Mapping[str, Any], models: Sequence[str] = SECTIONS) -> list[Table]:
    """What a result has besides the table of its models; arguments as :func:`targets_table`."""
    scores = targets_table(result, models)
    attention = [attention_table(target, section) for target, section in result.get(ATTENTION, {}).items()]
    return [*([scores] if scores else []), *attention]


def tables(result: Mapping[str, Any]) -> list[Table]:
    """Every table of a result, that of its models first."""
    return [("", *comparison_rows(result)), *further_tables(result)]


def as_text(table: Table) -> str:
    """A table for the terminal."""
    heading, header, rows = table
    return "\n".join([*([heading, ""] if heading else []), text_table(header, rows)])


def as_markdown(table: Table) -> str:
    """A table for a document."""
    heading, header, rows = table
    return "\n".join([*([heading, ""] if heading else []), markdown_table(header, rows)])


def write_markdown(folder: str | Path, result: Mapping[str, Any]) -> Path:
    """Write the tables of a result as ``result.md`` next to ``result.json``.

    Args:
        folder: Where.
        result: Whose.

    Raises:
        RunError: If it cannot be written.
    """
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    measured = f"Measured on {result['device']}, {result['threads']} threads, seed {result['seed']}; {versions}."
    text = "\n\n".join([*map(as_markdown, tables(result)), measured]) + "\n"
    return write_text(Path(folder) / MARKDOWN_FILE, text)
