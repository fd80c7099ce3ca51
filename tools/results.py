r"""Turn the figures of several runs into one JSON file and one Markdown table.

Examples:
  python tools/results.py intervals control=log/control/last.pth finetuned=log/pruned/last.pth --root reid-data \
      --output intervals.json
  python tools/results.py pruning --dense log/dense/result.json --control log/control/result.json \
      --prune log/pruned/result.json --intervals intervals.json --title "Dev split" --output docs/results/dev_split
  python tools/results.py seeds dense=log/1/dense/result.json dense=log/2/dense/result.json \
      "pruned=log/1/pruned/result.json#finetuned" "pruned=log/2/pruned/result.json#finetuned" \
      --reference dense --title "Dev split, two seeds" --output docs/results/seeds
  python tools/results.py occlusion --pruned PRUNED/result.json --control CONTROL/result.json \
      --manifest reid-data/occluded_market1501/occlusion.json --title "Occluded" --output docs/results/occluded
  python tools/results.py exports "dense PyTorch=dense/result.json" \
      "dense int8=dense_int8.onnx,dense_int8/result.json" --title "Exported files" --output docs/results/exported

'python tools/results.py TABLE --help' explains each.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from amg_plugin.errors import AMGError, InputError
from amg_plugin.runs import result as report
from amg_plugin.runs.targets import ATTENTION, as_markdown, further_tables
from amg_plugin.utils.files import write_text
from amg_plugin.utils.tables import markdown_table, per_cent, text_table

Result = dict[str, Any]
_CONDITIONS = ("seed", "device", "threads", "versions", "seconds")
#: What a configuration says about somebody's disk, which is not part of a result.
_PLACES = ("data.root", "data.save_dir", "amg.weights", "amg.distill.teacher")


# Shared ---------------------------------------------------------------------------------------------------------------


def read(path: str | Path) -> Result:
    """Read a JSON file."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"'{path}' cannot be read as JSON: {error}.") from error


def write(args: argparse.Namespace, result: object, text: str) -> None:
    """Write ``--output``.json and ``--output``.md, the latter with its title and notes, and print it."""
    text = f"# {args.title}\n\n{text.rstrip()}\n"
    if args.notes:
        try:
            text += "\n" + Path(args.notes).read_text(encoding="utf-8")
        except OSError as error:
            raise InputError(f"The notes '{args.notes}' cannot be read: {error}.") from error
    write_text(f"{args.output}.json", json.dumps(result, indent=1) + "\n")
    write_text(f"{args.output}.md", text)
    print(text)


def without_places(config: Result) -> Result:
    """A configuration with file names in place of paths."""
    for key in _PLACES:
        *nodes, name = key.split(".")
        node = config
        for step in nodes:
            node = node[step]
        node[name] = Path(node[name]).name
    return config


def versions_of(run: Result) -> str:
    """Versions on one line."""
    return ", ".join(f"{name} {version}" for name, version in run["versions"].items())


def with_interval(entry: Result, key: str, sign: str = "") -> str:
    """A figure in per cent with its interval in brackets."""
    low, high = entry[f"{key}_interval"]
    return f"{100 * entry[key]:{sign}.1f} [{100 * low:{sign}.1f}, {100 * high:{sign}.1f}]"


# intervals ------------------------------------------------------------------------------------------------------------


def per_query(path: str, root: str, target: str) -> Result:
    """Scores of every query of a checkpoint, under its own configuration."""
    from amg_plugin.checkpoint import read_checkpoint
    from amg_plugin.config import load_config
    from amg_plugin.evaluation.protocol import per_query_scores
    from amg_plugin.runs.setup import build_evaluator, fitted

    checkpoint = read_checkpoint(path)
    words = ["data.root", root, "data.targets", [target], "test.rerank", False]
    cfg = load_config(None, words, use_schedule=False, base=checkpoint.config)
    evaluator = build_evaluator(cfg, fitted(checkpoint, cfg).build())
    query, gallery = evaluator.embed(target)
    return per_query_scores(evaluator.protocol.distances(query, gallery), query, gallery)


def intervals(args: argparse.Namespace) -> None:
    """Measure, print and write."""
    from amg_plugin.utils.environment import environment
    from amg_plugin.utils.statistics import interval

    pairs = [model.partition("=")[::2] for model in args.models]
    if any(not path for _, path in pairs):
        raise InputError("Every model is given as NAME=CKPT.")
    scores = {name: per_query(path, args.root, args.target) for name, path in pairs}
    reference = pairs[0][0]
    figures, rows = {}, []
    for name, values in scores.items():
        entry: Result = {"queries": len(values["AP"])}
        for label, key in (("mAP", "AP"), ("rank1", "rank1")):
            for kind, numbers in (("", values[key]), ("_difference", values[key] - scores[reference][key])):
                entry[label + kind] = float(numbers.mean())
                entry[f"{label}{kind}_interval"] = interval(numbers, args.resamples, args.seed)
        figures[name] = entry
        rows.append([name, *(with_interval(entry, key) for key in ("rank1", "mAP")),
                     *(with_interval(entry, f"{key}_difference", "+") for key in ("rank1", "mAP"))])  # fmt: skip
    header = ["model", "Rank-1 % [95 %]", "mAP % [95 %]", f"Rank-1 - {reference}", f"mAP - {reference}"]
    print(text_table(header, rows))
    if args.output:
        content = {"target": args.target, "resamples": args.resamples, "seed": args.seed, "models": figures}
        write_text(args.output, json.dumps({**content, **environment()}, indent=1) + "\n")


# pruning --------------------------------------------------------------------------------------------------------------

_STEPS = {
    "dense": "dense",
    "control": "dense, trained on (control)",
    "pruned": "pruned, before final fine-tuning",
    "finetuned": "pruned, fine-tuned",
}


def pruning(args: argparse.Namespace) -> None:
    """Join a dense, a control and a pruning run."""
    runs = {"dense": read(args.dense), "control": read(args.control), "prune": read(args.prune)}
    for run in runs.values():
        run["config"] = without_places(run["config"])
    result = {**runs["prune"], "control": runs["control"]["dense"]}
    result["runs"] = {name: {key: run[key] for key in ("config", *_CONDITIONS)} for name, run in runs.items()}
    result["dense_history"], result["control_history"] = runs["dense"]["history"], runs["control"]["history"]
    found: Result = {}
    if args.intervals:
        result["intervals"] = read(args.intervals)
        found = result["intervals"]["models"]
    rows = []
    for name, label in _STEPS.items():
        row = result[name]
        cells = [with_interval(found[name], key) if name in found else per_cent([row[key]]) for key in ("rank1", "mAP")]
        for key, unit in (("params", 1e6), ("macs", 1e9)):
            change = 100 * (row[key] / result["dense"][key] - 1)
            cells.append(f"{row[key] / unit:.2f}" + (f" ({change:+.1f} %)" if round(change, 1) else ""))
        rows.append([label, *cells, str(sum(row["heads_per_block"])), str(sum(row["tokens_per_block"]))])
    header = ["model", "Rank-1 %", "mAP %", "params (M)", "MACs (G)", "heads", "tokens"]
    lines = [
        markdown_table(header, rows),
        "",
        f"Measured on {result['device']}, dense training with {result['runs']['dense']['threads']} threads, the other "
        f"runs with {result['threads']}; {versions_of(result)}; seed {result['seed']}.",
    ]
    if found:
        reference, last = next(iter(found)), found["finetuned"]
        lines.append(f"In brackets: 95 % percentile bootstrap interval over the {last['queries']} queries.")
        parts = [f"{label} {with_interval(last, f'{key}_difference', '+')}"
                 for label, key in (("Rank-1", "rank1"), ("mAP", "mAP"))]  # fmt: skip
        lines += ["", f"Pruned and fine-tuned minus {reference}, paired over the queries: {', '.join(parts)} points."]
    write(args, result, "\n".join(lines))


# seeds ----------------------------------------------------------------------------------------------------------------

Rows = dict[str, dict[int, Result]]


def figures_of(word: str) -> tuple[str, Result]:
    """Row and figures of one argument ``ROW=RESULT[#SECTION]``."""
    row, equals, place = word.partition("=")
    path, _, name = place.partition("#")
    if not (row and equals and path):
        raise InputError(f"'{word}' must be ROW=RESULT or ROW=RESULT#SECTION.")
    result = read(path)
    sections = (*report.SECTIONS, "query_model", "gallery_model", "asymmetric")
    present = [section for section in sections if section in result]
    name = name or next(iter(present), "")
    if name not in present:
        raise InputError(f"'{path}' has no section '{name}', only {', '.join(present) or 'none of a result.json'}.")
    config = without_places(result["config"])
    schedule = {key: config["amg"][key] for key in ("schedule", "final_epochs", "distill", "calibration")}
    training = {key: config["train"][key] for key in ("max_epoch", "lr")}
    conditions = {key: result[key] for key in _CONDITIONS}
    costs = {key: result["query_model"][key] for key in ("params", "macs")} if name == "asymmetric" else {}
    return row, {"section": name, **result[name], **costs, **conditions, "config": {"amg": schedule, "train": training}}


def rows_of(words: Sequence[str], reference: str | None) -> Rows:
    """Rows with one entry per seed."""
    rows: Rows = {}
    for row, figures in map(figures_of, words):
        if figures["seed"] in rows.setdefault(row, {}):
            raise InputError(f"Row '{row}' has two results of seed {figures['seed']}.")
        rows[row][figures["seed"]] = figures
    if reference is not None and reference not in rows:
        raise InputError(f"--reference '{reference}' is not a row; rows are {', '.join(rows)}.")
    if uneven := [row for row in rows if set(rows[row]) != set(next(iter(rows.values())))]:
        raise InputError(f"Row '{uneven[0]}' has other seeds than '{next(iter(rows))}'.")
    return rows


def seeds(args: argparse.Namespace) -> None:
    """Join results of the same commands with several seeds."""
    rows, reference = rows_of(args.results, args.reference), args.reference
    header = ["model", "Rank-1 %", "mAP %", "params (M)", "MACs (G)"]
    header += [f"{score} minus {reference}" for score in ("Rank-1", "mAP")] if reference else []
    table = []
    for row, found in rows.items():
        cells = [row, *(per_cent([run[key] for run in found.values()]) for key in ("rank1", "mAP"))]
        for key, unit in (("params", 1e6), ("macs", 1e9)):
            cells.append(f"{fmean(run[key] for run in found.values()) / unit:.2f}")
        for key in ("rank1", "mAP") if reference else ():
            pairs = [run[key] - rows[reference][seed][key] for seed, run in found.items()]
            cells.append("" if row == reference else per_cent(pairs, "+"))
        table.append(cells)
    runs = [run for found in rows.values() for run in found.values()]
    devices, threads, numbers = (sorted({str(run[key]) for run in runs}) for key in ("device", "threads", "seed"))
    where = (
        f"Measured on {' and '.join(devices)}, threads: {' or '.join(threads)}; {versions_of(runs[0])}; "
        f"seeds {', '.join(numbers)}."
    )
    spread = ["Mean ± standard deviation over the seeds; differences are taken seed by seed."] * (len(numbers) > 1)
    write(args, rows, "\n".join([markdown_table(header, table, left=range(len(header))), "", where, *spread]))


# occlusion ------------------------------------------------------------------------------------------------------------

_MODELS = {"dense": "dense", "control": "control", "finetuned": "pruned"}


def joined_under_occlusion(args: argparse.Namespace) -> Result:
    """One result with the rows dense, control and pruned.

    Raises:
        InputError: If a run has no such row, or they looked at different masks.
    """
    from amg_plugin.data.occlusion.copy import FORMAT

    pruned, control = read(args.pruned), read(args.control)
    for path, run, names in ((args.pruned, pruned, ("dense", "finetuned")), (args.control, control, ("dense",))):
        if missing := [name for name in (*names, ATTENTION) if name not in run]:
            raise InputError(
                f"'{path}' lacks {', '.join(missing)}; evaluate the targets, one with masks, as --help says."
            )
    attention = {}
    for target, section in pruned[ATTENTION].items():
        other = control[ATTENTION].get(target, {})
        if (section["images"], section["patches"]) != (other.get("images"), other.get("patches")):
            raise InputError(f"The two results have different masks of {target}.")
        shares = {**section["models"], "control": other["models"]["dense"]}
        attention[target] = {**section, "models": {label: shares[name] for name, label in _MODELS.items()}}
    manifest = read(args.manifest)
    if manifest.get("format") != FORMAT:
        raise InputError(f"'{args.manifest}' is not a manifest of amg-reid occlude.")
    manifest.pop("images", None)
    rows = {"dense": pruned["dense"], "control": control["dense"], "finetuned": pruned["finetuned"]}
    return {
        **{label: rows[name] for name, label in _MODELS.items()},
        ATTENTION: attention,
        "occlusion": manifest,
        **({"intervals": read(args.intervals)} if args.intervals else {}),
        **{key: pruned[key] for key in ("seed", "device", "threads", "versions")},
        "seconds": {"pruned and dense": pruned["seconds"], "control": control["seconds"]},
    }


def occluded_intervals(found: Result) -> str:
    """Scores on the occluded target with their intervals, and differences from the first model."""
    first = next(iter(found["models"]))
    reference, count = _MODELS.get(first, first), found["models"][first]["queries"]
    header = ["model", "Rank-1", "mAP", f"Rank-1 - {reference}", f"mAP - {reference}"]
    rows = []
    for name, entry in found["models"].items():
        differences = [with_interval(entry, f"{key}_difference", "+") for key in ("rank1", "mAP")]
        rows.append([_MODELS.get(name, name), *(with_interval(entry, key) for key in ("rank1", "mAP")),
                     *(["", ""] if name == first else differences)])  # fmt: skip
    heading = (
        f"On {found['target']}, in points, with 95 % percentile bootstrap intervals over the {count} queries; "
        "differences are paired."
    )
    return as_markdown((heading, header, rows))


def occlusion(args: argparse.Namespace) -> None:
    """Join the evaluations of a dense, a control and a pruned model on an occluded data set."""
    result = joined_under_occlusion(args)
    hidden = result["occlusion"]
    counts = [
        f"{part}: {of['occluded']} of {of['images']} images occluded"
        + (f", {100 * hidden['coverage'][part]['mean']:.1f} % hidden on average" if of["occluded"] else "")
        for part, of in hidden["counts"].items()
    ]
    parts = [*map(as_markdown, further_tables(result, list(_MODELS.values())))]
    if "intervals" in result:
        parts.insert(1, occluded_intervals(result["intervals"]))
    parts.append(f"Occlusion: seed {hidden['seed']}; {'; '.join(counts)}.")
    conditions = f"{result['threads']} thread(s), seed {result['seed']}; {versions_of(result)}"
    write(args, result, "\n\n".join([*parts, f"Measured on {result['device']}, {conditions}."]))


# exports --------------------------------------------------------------------------------------------------------------


def exported_row(text: str) -> Result:
    """Data of one argument ``LABEL=RESULT`` or ``LABEL=FILE,RESULT``."""
    label, _, places = text.partition("=")
    file, _, result_path = places.rpartition(",")
    if not label or not result_path:
        raise InputError(f"'{text}' is not a row; give LABEL=RESULT or LABEL=FILE,RESULT.")
    result = read(result_path)
    section = next((result[key] for key in reversed(report.SECTIONS) if key in result), None)
    if section is None:
        raise InputError(f"'{result_path}' is not a result.json of amg-reid.")
    found = {"label": label, **{key: section[key] for key in ("mAP", "rank1", "params", "macs", "targets")}}
    found |= {key: result[key] for key in _CONDITIONS}
    if not file:
        return {**found, "runtime": f"torch {result['versions']['torch']}"}
    written = read(f"{file}.json")
    if written["info"]["source"] != section.get("source"):
        raise InputError(f"'{file}' was evaluated as another file than it is now; run 'amg-reid test' again.")
    found |= {key: written[key] for key in ("bytes", "opset", "calibration_images", "comparison", "runtime")}
    return found | {key: written["info"][key] for key in ("file_format", "precision", "source", "versions")}


def exports(args: argparse.Namespace) -> None:
    """Join comparisons and evaluations of exported files."""
    entries = [exported_row(text) for text in args.rows]
    models: dict[str, Result] = {}
    rows = []
    for entry in entries:
        reference = models.setdefault(entry["label"].split()[0], entry)
        cells = [entry["label"], entry["runtime"], "", "", "", per_cent([entry["rank1"]]), per_cent([entry["mAP"]]), ""]
        if comparison := entry.get("comparison"):
            cells[2:5] = [f"{entry['bytes'] / 1e6:.1f}", f"{comparison['relative_difference']:.1e}",
                          f"{comparison['cosine']:.4f}"]  # fmt: skip
            cells[7] = f"{100 * (entry['mAP'] - reference['mAP']):+.2f}"
        rows.append(cells)
    header = ["model", "runtime", "MB", "largest difference", "cosine", "Rank-1 %", "mAP %", "mAP minus PyTorch's"]
    first = entries[0]
    where = f"Measured on {first['device']}, threads of torch: {first['threads']}; {versions_of(first)}."
    write(args, entries, f"{markdown_table(header, rows, left=range(len(header)))}\n\n{where}")


# Command line ---------------------------------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    """The arguments of every table."""
    whole = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tables = whole.add_subparsers(metavar="TABLE", required=True)
    page = argparse.ArgumentParser(add_help=False)
    page.add_argument("--title", required=True, help="heading of the Markdown file")
    page.add_argument("--notes", metavar="FILE", help="Markdown text to put below the table")
    page.add_argument("--output", required=True, metavar="PATH", help="without suffix; .json and .md are written")

    sub = tables.add_parser("intervals", help="bootstrap intervals over queries, and of differences from the first")
    sub.add_argument("models", nargs="+", metavar="NAME=CKPT", help="checkpoints, the reference first")
    sub.add_argument("--root", required=True, metavar="FOLDER", help="folder that holds the data set")
    sub.add_argument("--target", default="market1501", metavar="NAME", help="data set (%(default)s)")
    sub.add_argument("--resamples", type=int, default=10_000, help="bootstrap samples (%(default)s)")
    sub.add_argument("--seed", type=int, default=0, help="seed of the resampling (%(default)s)")
    sub.add_argument("--output", metavar="FILE", help="JSON file for the figures")
    sub.set_defaults(run=intervals)

    of_intervals = {"metavar": "JSON", "help": "output of the table 'intervals'"}
    sub = tables.add_parser("pruning", parents=[page], help="a dense, a control and a pruning run")
    for name in ("prune", "control", "dense"):
        sub.add_argument(f"--{name}", required=True, metavar="RESULT", help=f"result.json of the {name} run")
    sub.add_argument("--intervals", **of_intervals)
    sub.set_defaults(run=pruning)

    text = (
        "A row is given once per seed. Its figures are one section of a result.json, the first unless #SECTION names "
        "another. Of two models (section asymmetric), parameters and MACs are those of the query model."
    )
    sub = tables.add_parser("seeds", parents=[page], help="the same runs with several seeds", description=text)
    sub.add_argument("results", nargs="+", metavar="ROW=RESULT[#SECTION]", help="a row's result.json of one seed")
    sub.add_argument("--reference", metavar="ROW", help="row that differences are taken from, seed by seed")
    sub.set_defaults(run=seeds)

    sub = tables.add_parser("occlusion", parents=[page], help="dense, control and pruned models on occluded images")
    sub.add_argument("--pruned", required=True, metavar="RESULT", help="of amg-reid test with --dense")
    sub.add_argument("--control", required=True, metavar="RESULT", help="of amg-reid test")
    sub.add_argument("--manifest", required=True, metavar="FILE", help="occlusion.json of the occluded data set")
    sub.add_argument("--intervals", **of_intervals)
    sub.set_defaults(run=occlusion)

    text = (
        "FILE is an exported file, next to which 'amg-reid export' wrote FILE.json; RESULT is the result.json of "
        "'amg-reid test'. Rows with the first word of the label in common belong to one model, its checkpoint first; "
        "files are compared with it."
    )
    sub = tables.add_parser("exports", parents=[page], help="exported files and their checkpoints", description=text)
    sub.add_argument("rows", nargs="+", metavar="LABEL=[FILE,]RESULT", help="rows of the table, in order")
    sub.set_defaults(run=exports)
    return whole


def main() -> int:
    """Make one table; 0 on success, else the error's exit status."""
    args = parser().parse_args()
    try:
        args.run(args)
    except AMGError as error:
        print(f"results: error: {error}", file=sys.stderr)
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
