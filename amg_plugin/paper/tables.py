"""The published tables, and what the same structures cost here: published, by the published formula, counted.

Nothing is trained and no data is read: networks are built without weights and pruned to the published totals.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import Field, asdict, dataclass, field, fields, replace
from typing import Any

import torch
from torch import nn

from amg_plugin.errors import InputError
from amg_plugin.models import complexity
from amg_plugin.models.build import build_network
from amg_plugin.paper.accounting import published_accounting
from amg_plugin.paper.rows import ROWS, Row
from amg_plugin.pruning import PruningPlan, apply_plan, current_plan
from amg_plugin.pruning.cut import prunable_blocks
from amg_plugin.pruning.selection import removal_count
from amg_plugin.runs.result import SECTIONS
from amg_plugin.utils.files import kind_of, read_json
from amg_plugin.utils.tables import csv_table, markdown_table

#: Sections of a result that can be a published model's, finished ones first; one with a reducer cannot.
_LATEST_FIRST = ("dense", "finetuned", "pruned", "start")
#: A data set of the publications -> its names in torchreid and here, without signs between the words.
_NAMES = {
    "Market-1501": {"market1501"},
    "Occluded-Duke": {"occludedduke", "occludeddukemtmc", "occludeddukemtmcreid"},
}


def _column(heading: str, digits: int | None = None) -> Any:
    """A field that is a column of the table; one with digits is a number, or None."""
    return field(default="" if digits is None else None, metadata={"heading": heading, "digits": digits})


@dataclass(frozen=True)
class Entry:
    """A row of the table: removed heads and tokens are of the prunable ones, MACs in G, parameters in M.

    What is marked ``paper`` or ``published`` is the publication's; ``formula`` is its program's accounting of the
    structure, ``counted`` what the network really runs. None stands where there is nothing to show.
    """

    key: str
    model: str = _column("model")
    data: str = _column("data")
    heads: str = _column("heads removed")
    tokens: str = _column("tokens removed")
    paper_map: float | None = _column("mAP % (paper)", 2)
    paper_rank1: float | None = _column("Rank-1 % (paper)", 2)
    measured_map: float | None = _column("mAP % (measured)", 2)
    measured_rank1: float | None = _column("Rank-1 % (measured)", 2)
    published_macs: float | None = _column("MACs G, published", 2)
    formula_macs: float | None = _column("by its formula", 3)
    formula_difference: float | None = _column("diff. %", 1)
    counted_macs: float | None = _column("counted", 3)
    published_msa: float | None = _column("MSA M, published", 2)
    formula_msa: float | None = _column("by its accounting", 2)
    msa_difference: float | None = _column("MSA diff. %", 1)
    params: float | None = _column("params M", 2)
    note: str = _column("note")


_COLUMNS = [column for column in fields(Entry) if column.metadata]
HEADINGS = {column.name: column.metadata["heading"] for column in _COLUMNS}


@dataclass(frozen=True)
class _Structure:
    """What tells the networks on one data set apart: parameters without classifiers, heads and tokens left."""

    params: int
    heads: int
    tokens: int

    def __str__(self) -> str:
        return f"{self.heads} heads, {self.tokens} tokens and {self.params / 1e6:.2f} M parameters"


@dataclass(frozen=True)
class _Measurement:
    """Figures of one model on one target, out of a section of a ``result.json``; scores in per cent."""

    file: str
    section: str
    model: str
    data: str
    mAP: float
    rank1: float
    macs: int
    structure: _Structure
    conditions: str

    def is_of(self, data: str, structure: _Structure) -> bool:
        """Whether the figures are about a network of that structure on that published data set."""
        return self.is_on(data) and self.structure == structure

    def is_on(self, data: str) -> bool:
        """Whether the target is what the publications call ``data``."""
        return "".join(filter(str.isalnum, self.data.lower())) in _NAMES[data]


def even_plan(model: nn.Module, variant: str, heads: int, tokens: int) -> PruningPlan:
    """A plan that removes the given totals as evenly over the prunable blocks as possible.

    Which heads and positions go does not matter to the cost, and how the totals are spread hardly.

    Args:
        model: The dense network.
        variant: Token variant.
        heads: Heads to remove.
        tokens: (block, position) pairs to remove.
    """
    plan, blocks = current_plan(model).with_variant(variant), prunable_blocks(model)
    kept_heads = [list(kept) for kept in plan.heads]
    kept_tokens = [list(kept) for kept in plan.tokens]
    for place, block in enumerate(blocks):
        share = [total // len(blocks) + (place < total % len(blocks)) for total in (heads, tokens)]
        kept_heads[block] = kept_heads[block][: len(kept_heads[block]) - share[0]]
        kept_tokens[block] = kept_tokens[block][: len(kept_tokens[block]) - share[1]]
    return plan.narrow(
        heads=[range(len(kept)) for kept in kept_heads], tokens=[range(len(kept)) for kept in kept_tokens]
    )


def build(row: Row) -> tuple[nn.Module, int, int]:
    """The network of a row without weights (on the meta device), with its removed heads and tokens."""
    with torch.device("meta"):
        model = build_network(row.spec).eval()
        plan, blocks = current_plan(model), prunable_blocks(model)
        heads = row.removed_heads
        if heads is None:
            heads = removal_count(row.heads, sum(plan.num_heads[block] for block in blocks))
        tokens = removal_count(row.tokens, plan.num_patches * len(blocks))
        apply_plan(model, even_plan(model, row.variant, heads, tokens))
    return model, heads, tokens


def _describe(row: Row) -> tuple[Entry, _Structure]:
    """Build a row's network and count."""
    model, heads, tokens = build(row)
    counted = complexity.count(model, *row.spec.image_size)
    formula = published_accounting(model)
    plan, blocks = current_plan(model), prunable_blocks(model)
    macs, params = formula["macs"] / 1e9, formula["msa_params"] / 1e6
    entry = Entry(
        key=row.key,
        model=f"{row.model}, read as {_reading(row)}" if row.reading else row.model,
        data=row.data,
        heads=f"{heads}/{sum(plan.num_heads[block] for block in blocks)}",
        tokens=f"{tokens}/{plan.num_patches * len(blocks)}",
        paper_map=row.mAP,
        paper_rank1=row.rank1,
        published_macs=row.macs,
        formula_macs=macs,
        formula_difference=_difference(macs, row.macs),
        counted_macs=counted["macs"] / 1e9,
        published_msa=row.msa_params,
        formula_msa=params,
        msa_difference=_difference(params, row.msa_params),
        params=counted["params"] / 1e6,
        note=row.note,
    )
    return entry, _Structure(counted["params"], sum(plan.heads_per_block), sum(plan.tokens_per_block))


def _reading(row: Row) -> str:
    shares = {"head": row.heads, "token": row.tokens}
    return " + ".join(f"{name} {100 * share:.0f} %" for name, share in shares.items() if share)


def _difference(found: float, published: float | None) -> float | None:
    return None if published is None else 100 * (found / published - 1)


def build_table(results: Sequence[str] = ()) -> list[Entry]:
    """Every published row, and rows for measurements that belong to none.

    A measurement belongs to the row of the same data set, structure and number of parameters. Of several for one row
    it takes the fine-tuned one, then the first; the others follow as rows of their own.

    Args:
        results: ``result.json`` files of runs, each as ``FILE`` or ``KEY=FILE`` with the key of a row.

    Raises:
        InputError: If a key is unknown, a file is not a result, or has no figures of the row's kind.
    """
    keys = [row.key for row in ROWS]
    read: list[tuple[str, str, list[_Measurement]]] = []
    for argument in results:
        key, separator, file = argument.partition("=")
        if not separator or kind_of(argument) == "file":
            key, file = "", argument
        elif key not in keys:
            raise InputError(f"'{key}' is not a row of the published tables; the rows are: {', '.join(keys)}.")
        read.append((key, file, _read_measurements(file)))
    described = {row.key: _describe(row) for row in ROWS}
    measurements = [measured for _, _, found in read for measured in found]
    # At most one for each row.
    placed = {key: _of_the_kind(found, described[key][0], file) for key, file, found in read if key}
    able = [measured for measured in measurements if measured.section in _LATEST_FIRST]
    for measured in sorted(able, key=lambda one: _LATEST_FIRST.index(one.section)):
        fitting = (key for key, (entry, structure) in described.items() if measured.is_of(entry.data, structure))
        key = next(fitting, None)
        if key and key not in placed and measured not in placed.values():
            placed[key] = measured
    entries = {key: entry for key, (entry, _) in described.items()}
    for key, measured in placed.items():
        remark = _remark(measured, *described[key])
        entries[key] = replace(
            entries[key],
            measured_map=measured.mAP,
            measured_rank1=measured.rank1,
            note="; ".join(filter(None, [entries[key].note, remark])),
        )
    return [*entries.values(), *(_further_row(one) for one in measurements if one not in placed.values())]


def _remark(measured: _Measurement, entry: Entry, structure: _Structure) -> str:
    """The measurement's origin, and what differs from the row if it was put there on demand."""
    said = [f"measured: {measured.section}, {measured.conditions}"]
    if not measured.is_on(entry.data):
        said.append(f"on {measured.data}")
    if measured.structure != structure:
        said.append(f"with {measured.structure} left (here {structure})")
    return " ".join(said)


def _read_measurements(file: str) -> list[_Measurement]:
    """Every section and target of a result, at least one, in the order of the run."""
    try:
        result = read_json(file)
        found = [
            _Measurement(
                file=file,
                section=name,
                model=str(result["config"]["model"]["name"]),
                data=target,
                mAP=100 * scores["mAP"],
                rank1=100 * scores["rank1"],
                macs=int(section["macs"]),
                structure=_Structure(
                    int(section["params"]), sum(section["heads_per_block"]), sum(section["tokens_per_block"])
                ),
                conditions=f"{result.get('device', 'unknown device')}, seed {result.get('seed', 'unknown')}",
            )
            for name, section in ((name, result[name]) for name in SECTIONS if name in result)
            for target, scores in section["targets"].items()
        ]
    except Exception as error:  # values of any type fail anywhere
        raise InputError(f"'{file}' is not a result.json of amg-reid ({type(error).__name__}: {error}).") from error
    if not found:
        raise InputError(f"'{file}' is not a result.json of amg-reid: it has none of {', '.join(SECTIONS)}.")
    return found


def _further_row(measured: _Measurement) -> Entry:
    left = measured.structure
    return Entry(
        key=f"{measured.file}:{measured.section}:{measured.data}",
        model=f"measured here: {measured.model}, {measured.section}",
        data=measured.data,
        measured_map=measured.mAP,
        measured_rank1=measured.rank1,
        counted_macs=measured.macs / 1e9,
        params=left.params / 1e6,
        note=f"{measured.conditions}; {left.heads} heads and {left.tokens} tokens left",
    )


def _of_the_kind(found: Sequence[_Measurement], entry: Entry, file: str) -> _Measurement:
    """The measurement that a row named by the user is about."""
    is_dense = entry.heads.startswith("0/") and entry.tokens.startswith("0/")
    names = _LATEST_FIRST[:1] if is_dense else _LATEST_FIRST[1:]
    kind = [measured for name in names for measured in found if measured.section == name]
    if not kind:
        raise InputError(
            f"'{file}' has no section {' or '.join(names)}, which the row '{entry.key}' is about; it has "
            f"{', '.join(dict.fromkeys(measured.section for measured in found))}."
        )
    return next((measured for measured in kind if measured.is_on(entry.data)), kind[0])


def render(entries: Sequence[Entry], form: str) -> str:
    """The table as text.

    Args:
        entries: Its rows.
        form: ``"markdown"``, ``"csv"`` or ``"json"``.
    """
    if form == "json":
        return json.dumps([asdict(entry) for entry in entries], indent=1) + "\n"
    if form == "csv":
        return csv_table(list(asdict(entries[0])), [list(asdict(entry).values()) for entry in entries])
    return _markdown(entries)


_PREFACE = """# Published tables

Generated by `amg-reid tables`; do not edit. Every published model is built without weights and pruned to the published
totals, spread evenly over the prunable blocks; nothing is trained.

- Columns marked *paper* are the publication's and were not measured here. Columns marked *measured* come from
  `result.json` files of own runs (`--results`), and the note says which section, device and seed. The two never mix.
- *published* is the published figure; *by its formula* is the accounting of its program: blocks only, the
  last block once under the jigsaw patch module; the LA program counts queries and projection as pruned although they
  are not.
- *counted* is what one image really costs: patch embedding, all blocks, both branches of the jigsaw patch module, no
  classifiers. *params* leaves classifiers out too.
- The LA accuracies come from an evaluator that keeps same-camera images and takes the average precision over the first
  10 ranks. They cannot be compared with torchreid's: a re-scored LA-Transformer fell from 98/94 to 86.1/68.8.
"""


def _markdown(entries: Sequence[Entry]) -> str:
    rows = [[_cell(getattr(entry, one.name), one) for one in _COLUMNS] for entry in entries]
    left = [place for place, name in enumerate(HEADINGS) if name in ("model", "data", "note")]
    return f"{_PREFACE}\n{markdown_table(list(HEADINGS.values()), rows, left=left)}\n"


def _cell(value: Any, column: Field) -> str:
    digits = column.metadata["digits"]
    if value is None or digits is None:
        return str(value or "").replace("|", "\\|")
    return f"{value:{'+' * column.name.endswith('difference')}.{digits}f}"
