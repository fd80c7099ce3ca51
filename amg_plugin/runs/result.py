"""Results of a run as plain data (``result.json``), their tables, and the description of a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from amg_plugin.checkpoint import Checkpoint
from amg_plugin.models import complexity
from amg_plugin.models.spec import ModelSpec
from amg_plugin.models.vit import backbone_of, unwrap
from amg_plugin.pruning import PruningPlan, current_plan
from amg_plugin.registries import TARGETS
from amg_plugin.utils.files import write_text
from amg_plugin.utils.processes import main_only
from amg_plugin.utils.tables import markdown_table, text_table

FILE_NAME = "result.json"
MARKDOWN_FILE = "result.md"
#: ``start`` takes the place of ``dense`` where a run began with a model that was pruned already; ``reduced`` is a
#: network that merges or drops tokens per image (``amg.reducer``).
SECTIONS = ("dense", "start", "pruned", "finetuned", "reduced", "exported")
#: Key of a result that holds what falls on covered patches, per target.
ATTENTION = "covered_attention"
_OCCLUDED = "occluded_"

Table = tuple[str, list[str], list[list[str]]]
"""Heading (one sentence, or empty), header and rows."""


def structure(model: nn.Module, height: int, width: int) -> dict[str, Any]:
    """What the model is and costs.

    Returns:
        ``params`` (without classifier), ``macs`` (one image, without classifier), ``heads_per_block``,
        ``tokens_per_block`` (without prefix tokens; with a reducer, those that enter the block),
        ``neurons_per_block``, and ``constants``, the values in constant updates, if there are any.
    """
    model = unwrap(model)
    constants = complexity.count_constants(model)
    counted, plan = complexity.count(model, height, width), current_plan(model)
    return {
        "params": counted["params"],
        "macs": counted["macs"],
        "heads_per_block": plan.heads_per_block,
        "tokens_per_block": getattr(model, "tokens_per_block", None) or plan.tokens_per_block,
        "neurons_per_block": plan.neurons_per_block,
        **({"constants": constants} if constants else {}),
    }


def section(scores: Mapping[str, Mapping[str, Any]], shape: Mapping[str, Any]) -> dict[str, Any]:
    """One section of a result.

    Args:
        scores: Per target, ``mAP``, ``rank1`` (fractions) and ``cmc``.
        shape: What :func:`structure` gave.
    """
    first = next(iter(scores.values()))
    return {"mAP": first["mAP"], "rank1": first["rank1"], "targets": {k: dict(v) for k, v in scores.items()}, **shape}


@main_only
def write_result(folder: str | Path, result: Mapping[str, Any]) -> Path:
    """Write ``result.json``; an old one is replaced only once the new one is complete.

    Raises:
        RunError: If it cannot be written.
    """
    return write_text(Path(folder) / FILE_NAME, json.dumps(result, indent=1) + "\n")


def comparison_rows(result: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the first table: a row per section that a result has, or per case of asymmetric retrieval."""
    if "asymmetric" in result:
        return _asymmetric_rows(result)
    present = [name for name in SECTIONS if name in result]
    base = result[present[0]]

    def share(value: int, reference: int) -> str:
        change = 100 * (value / reference - 1)
        return "" if value == reference else f" ({change:+.1f} %)"

    rows = [
        [
            name,
            *map("{:.1f}".format, _percent(data)),
            f"{data['params'] / 1e6:.2f} M{share(data['params'], base['params'])}",
            f"{data['macs'] / 1e9:.3f} G{share(data['macs'], base['macs'])}",
            *(str(sum(data[f"{target}_per_block"])) for target in TARGETS),
        ]
        for name in present
        for data in [result[name]]
    ]
    return ["model", "Rank-1 %", "mAP %", "params", "MACs", *TARGETS], rows


def _asymmetric_rows(result: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The two models alone and together, for every target."""
    cases = (
        ("query_model", ("query", "query")),
        ("gallery_model", ("gallery", "gallery")),
        ("asymmetric", ("query", "gallery")),
    )
    rows = [
        [
            *(f"{side} model" for side in sides),
            target,
            *map("{:.1f}".format, _percent(result[case]["targets"][target])),
            *(f"{result[f'{side}_model']['macs'] / 1e9:.3f} G" for side in sides),
        ]
        for target in result["asymmetric"]["targets"]
        for case, sides in cases
    ]
    header = ["queries by", "gallery by", "target", "Rank-1 %", "mAP %", "MACs per query", "MACs per gallery image"]
    return header, rows


def targets_table(result: Mapping[str, Any], models: Sequence[str] = SECTIONS) -> Table | None:
    """Scores of every model on every target, one column per target; None if there is one target only.

    A target ``occluded_X`` next to the target ``X`` gets a further column: how much is lost by occlusion.

    Args:
        result: Sections by the name of their model.
        models: Names that are looked for, in this order.
    """
    present = [name for name in models if name in result]
    targets = list(result[present[0]]["targets"]) if present else []
    if len(targets) < 2:
        return None
    pairs = [
        (whole, name) for name in targets if (whole := name.replace(_OCCLUDED, "", 1)) in targets and whole != name
    ]
    header = ["model", *targets, *(f"{occluded} - {whole}" for whole, occluded in pairs)]
    rows = []
    for name in present:
        scores = {target: _percent(result[name]["targets"][target]) for target in targets}
        changes = [[b - a for a, b in zip(scores[whole], scores[occluded], strict=True)] for whole, occluded in pairs]
        absolute = ["{:.1f} / {:.1f}".format(*pair) for pair in scores.values()]
        rows.append([name, *absolute, *("{:+.1f} / {:+.1f}".format(*pair) for pair in changes)])
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


def as_text(table: Table, form: Callable[[list[str], list[list[str]]], str] = text_table) -> str:
    """A table for the terminal."""
    heading, header, rows = table
    return f"{heading}\n\n{form(header, rows)}" if heading else form(header, rows)


def as_markdown(table: Table) -> str:
    """A table for a document."""
    return as_text(table, markdown_table)


@main_only
def write_markdown(folder: str | Path, result: Mapping[str, Any]) -> Path:
    """Write the tables of a result as ``result.md`` next to ``result.json``.

    Raises:
        RunError: If it cannot be written.
    """
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    measured = f"Measured on {result['device']}, {result['threads']} threads, seed {result['seed']}; {versions}."
    text = "\n\n".join([*map(as_markdown, tables(result)), measured]) + "\n"
    return write_text(Path(folder) / MARKDOWN_FILE, text)


def describe(checkpoint: Checkpoint) -> dict[str, Any]:
    """Structure and counted cost of the checkpoint's network."""
    model, spec, plan = checkpoint.build(), checkpoint.spec, checkpoint.plan
    counted = complexity.count(model, *spec.image_size)
    tokens = getattr(model, "tokens_per_block", None) or plan.tokens_per_block
    neurons = current_plan(model).neurons_per_block
    blocks = [
        {
            "heads": list(plan.heads[index]),
            "tokens": tokens[index],
            "neurons": neurons[index],
            "macs": counted["macs_by_module"][f"backbone.blocks.{index}"],
            "params": sum(p.numel() for p in block.parameters()),
        }
        for index, block in enumerate(backbone_of(model).blocks)
    ]
    return {
        "spec": spec.to_dict(),
        "variant": plan.variant,
        "num_heads": list(plan.num_heads),
        "num_patches": plan.num_patches,
        "num_neurons": list(current_plan(model).num_neurons),
        "plan_digest": plan.digest,
        "macs": counted["macs"],
        "params": counted["params"],
        "constants": complexity.count_constants(model),
        "blocks": blocks,
        "preprocessing": checkpoint.preprocessing.to_dict() if checkpoint.preprocessing else {},
    }


def _published_parts(spec: ModelSpec) -> list[str]:
    """What the network has of TransReID and LA-Transformer, a line each."""
    lines = []
    if side := spec.side_information:
        known = ", ".join(f"{name} {' '.join(map(str, numbers))}" for name, numbers in side.camera_table.items())
        sizes = f"{side.cameras} cameras{f', {side.views} views' if side.views else ''}"
        known = known or "data set not recorded"
        lines.append(f"side information: {sizes} ({known}), coefficient {side.coefficient:g}")
    if spec.jigsaw:
        lines.append(f"jigsaw patch module: {spec.jigsaw.parts} parts; the last block is never pruned")
    if spec.head == "parts":
        lines.append(f"part classifiers: {spec.parts}")
    return lines


def _constants(plan: PruningPlan, values: int) -> list[str]:
    """What the constant updates are, as a line, if there are any."""
    blocks = " ".join(map(str, plan.updates))
    return [f"constant updates in blocks {blocks}: {values:,} values in buffers, not trained"] if values else []


def description_text(checkpoint: Checkpoint, content: dict[str, Any]) -> str:
    """The description as text."""
    spec, plan = checkpoint.spec, checkpoint.plan
    rows = [
        [
            str(index),
            f"{len(block['heads'])}/{plan.num_heads[index]}",
            " ".join(map(str, block["heads"])),
            f"{block['tokens']}/{plan.num_patches}",
            f"{block['neurons']}/{content['num_neurons'][index]}",
            f"{block['macs'] / 1e6:.1f}",
            f"{block['params'] / 1e3:.0f}",
        ]
        for index, block in enumerate(content["blocks"])
    ]
    height, width = spec.image_size
    heads = sum(plan.heads_per_block)
    tokens, neurons = (sum(block[target] for block in content["blocks"]) for target in ("tokens", "neurons"))
    how = f"token variant {plan.variant}"
    if spec.reducer:
        how = f"reducer {spec.reducer.method} (tokens that enter a block; which ones depends on the image)"
    summary = [
        f"{spec.arch}, {height}x{width}, stride {spec.stride or 'patch'}, {spec.num_classes} training identities",
        *_published_parts(spec),
        f"{how}; heads {heads}/{sum(plan.num_heads)}; tokens {tokens}/{plan.num_patches * plan.depth}; "
        f"neurons {neurons}/{sum(content['num_neurons'])}",
        f"{content['macs']:,} MACs and {content['params']:,} parameters without the classifier",
        *_constants(plan, content["constants"]),
        f"plan {plan.digest[:16]}",
    ]
    table = text_table(["block", "heads", "kept heads", "tokens", "neurons", "M MACs", "k params"], rows)
    return "\n".join([*summary, "", table])
