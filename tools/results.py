r"""Turn the figures of several runs into one JSON file and one Markdown table.

Examples:
  python tools/results.py intervals control=log/control finetuned=log/pruned#finetuned --output intervals.json
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
from collections.abc import Callable, Sequence
from functools import reduce
from operator import getitem
from pathlib import Path
from statistics import fmean
from typing import Any

from amg_plugin.errors import AMGError, InputError
from amg_plugin.evaluation.intervals import RESAMPLES, bootstrap_interval
from amg_plugin.runs import result as report
from amg_plugin.runs.details import per_query, read_details
from amg_plugin.runs.result import ATTENTION, as_markdown, further_tables
from amg_plugin.utils.files import read_json, write_text
from amg_plugin.utils.tables import markdown_table, per_cent, text_table

Result = dict[str, Any]
CONDITIONS = ("seed", "device", "threads", "versions", "seconds")
#: What a configuration says about somebody's disk, which is not part of a result.
_PLACES = ("data.root", "data.save_dir", "amg.weights", "amg.distill.teacher")


# Shared ---------------------------------------------------------------------------------------------------------------


def read(path: str | Path) -> Result:
    """Read a JSON file."""
    return read_json(path)


def write(args: argparse.Namespace, result: object, text: str, title: str = "") -> None:
    """Print a table with its title and ``--notes``; write it to ``--output``.md, its figures to ``--output``.json."""
    text = f"# {title or args.title}\n\n{text.rstrip()}\n"
    if args.notes:
        try:
            text += "\n" + Path(args.notes).read_text(encoding="utf-8")
        except OSError as error:
            raise InputError(f"The notes '{args.notes}' cannot be read: {error}.") from error
    if args.output:
        write_text(f"{args.output}.json", json.dumps(result, indent=1) + "\n")
        write_text(f"{args.output}.md", text)
    print(text)


def without_places(config: Result) -> Result:
    """A configuration with file names in place of paths."""
    for key in _PLACES:
        *nodes, name = key.split(".")
        node = reduce(getitem, nodes, config)
        node[name] = Path(node[name]).name
    return config


def versions_of(run: Result) -> str:
    """Versions on one line."""
    return ", ".join(f"{name} {version}" for name, version in run["versions"].items())


def with_interval(entry: Result, key: str, sign: str = "") -> str:
    """A figure in per cent with its interval in brackets."""
    low, high = entry[f"{key}_interval"]
    return f"{100 * entry[key]:{sign}.1f} [{100 * low:{sign}.1f}, {100 * high:{sign}.1f}]"


def scores_of(entry: Result, kind: str = "", sign: str = "") -> list[str]:
    """Rank-1 and mAP with their intervals."""
    return [with_interval(entry, key + kind, sign) for key in ("rank1", "mAP")]


def interval_table(models: dict[str, Result], labels: dict[str, str]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of scores with their intervals, and of differences from the first model."""
    names = [labels.get(name, name) for name in models]
    rows = [
        [name, *scores_of(entry), *(scores_of(entry, "_difference", "+") if number else ("", ""))]
        for number, (name, entry) in enumerate(zip(names, models.values(), strict=True))
    ]
    return ["model", "Rank-1 %", "mAP %", f"Rank-1 - {names[0]}", f"mAP - {names[0]}"], rows


def measured_on(runs: Sequence[Result]) -> str:
    """Devices, threads, versions and seeds of runs, as a sentence without its full stop."""
    devices, threads, seeds = (
        [str(value) for value in sorted({run[key] for run in runs})] for key in ("device", "threads", "seed")
    )
    return (
        f"Measured on {' and '.join(devices)}, threads: {' or '.join(threads)}; {versions_of(runs[0])}; "
        f"seed{'s' * (len(seeds) > 1)} {', '.join(seeds)}"
    )


# intervals ------------------------------------------------------------------------------------------------------------


def queries_of(place: str, target: str) -> Result:
    """What the queries of a target contributed in a finished run ``FOLDER[#SECTION]``."""
    folder, _, section = place.partition("#")
    found = read_details(folder).get("queries", {})
    targets = found.get(section or next(iter(found), ""), {})
    if target not in targets:
        part = f"section '{section}'" if section else "details.json"
        raise InputError(f"The run in '{folder}' has no queries of '{target}' in its {part}.")
    return targets[target]


def intervals(args: argparse.Namespace) -> None:
    """Bootstrap intervals over queries, and of differences from the first model."""
    pairs = [model.partition("=")[::2] for model in args.models]
    if any(not place for _, place in pairs):
        raise InputError("Every model is given as NAME=RUN or NAME=RUN#SECTION.")
    kept = {name: queries_of(place, args.target) for name, place in pairs}
    reference = kept[pairs[0][0]]
    figures = {}
    for name, queries in kept.items():
        entry = figures[name] = {"queries": len(queries["AP"])}
        for score in ("mAP", "rank1"):
            values = per_query(queries, score)
            if values.shape != (first := per_query(reference, score)).shape:
                raise InputError(f"'{name}' has {len(values)} queries, but '{pairs[0][0]}' has {len(first)}.")
            for kind, numbers in (("", values), ("_difference", values - first)):
                entry[score + kind] = float(numbers.mean())
                entry[f"{score}{kind}_interval"] = bootstrap_interval(numbers, args.resamples, args.seed)
    print(text_table(*interval_table(figures, {})))
    if args.output:
        content = {"target": args.target, "resamples": args.resamples, "seed": args.seed, "models": figures}
        write_text(args.output, json.dumps(content, indent=1) + "\n")


# pruning --------------------------------------------------------------------------------------------------------------

_STEPS = {
    "dense": "dense",
    "control": "dense, trained on (control)",
    "pruned": "pruned, before final fine-tuning",
    "finetuned": "pruned, fine-tuned",
}


def pruning(args: argparse.Namespace) -> None:
    """A dense, a control and a pruning run."""
    runs = {"dense": read(args.dense), "control": read(args.control), "prune": read(args.prune)}
    for run in runs.values():
        run["config"] = without_places(run["config"])
    result = {**runs["prune"], "control": runs["control"]["dense"]}
    result["runs"] = {name: {key: run[key] for key in ("config", *CONDITIONS)} for name, run in runs.items()}
    result["dense_history"], result["control_history"] = runs["dense"]["history"], runs["control"]["history"]
    found: Result = {}
    if args.intervals:
        result["intervals"] = read(args.intervals)
        found = result["intervals"]["models"]
    rows = []
    for name, label in _STEPS.items():
        row = result[name]
        cells = scores_of(found[name]) if name in found else [per_cent([row[key]]) for key in ("rank1", "mAP")]
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
        rank1, precision = scores_of(last, "_difference", "+")
        sentence = f"Pruned and fine-tuned minus {reference}, paired over the queries: Rank-1 {rank1}, mAP {precision}"
        lines += ["", f"{sentence} points."]
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
    conditions = {key: result[key] for key in CONDITIONS}
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
    """The same runs with several seeds."""
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
    several = any(len(found) > 1 for found in rows.values())
    spread = ["Mean ± standard deviation over the seeds; differences are taken seed by seed."] * several
    text = [markdown_table(header, table, left=range(len(header))), "", f"{measured_on(runs)}.", *spread]
    write(args, rows, "\n".join(text))


# occlusion ------------------------------------------------------------------------------------------------------------

_MODELS = {"dense": "dense", "control": "control", "finetuned": "pruned"}


def joined_under_occlusion(args: argparse.Namespace) -> Result:
    """One result with the rows dense, control and pruned."""
    from amg_plugin.data.occlusion.masks import FORMAT

    pruned, control = read(args.pruned), read(args.control)
    for path, run, names in ((args.pruned, pruned, ("dense", "finetuned")), (args.control, control, ("dense",))):
        if missing := [name for name in (*names, ATTENTION) if name not in run]:
            raise InputError(
                f"'{path}' lacks {', '.join(missing)}; evaluate the targets, one with masks, as --help says."
            )
    rows = {"dense": pruned["dense"], "control": control["dense"], "finetuned": pruned["finetuned"]}
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
    return {
        **{label: rows[name] for name, label in _MODELS.items()},
        ATTENTION: attention,
        "occlusion": manifest,
        **({"intervals": [read(path) for path in args.intervals]} if args.intervals else {}),
        **{key: pruned[key] for key in ("seed", "device", "threads", "versions")},
        "seconds": {"pruned and dense": pruned["seconds"], "control": control["seconds"]},
    }


def occlusion(args: argparse.Namespace) -> None:
    """Dense, control and pruned models on occluded images."""
    result = joined_under_occlusion(args)
    hidden = result["occlusion"]
    counts = [
        f"{part}: {of['occluded']} of {of['images']} images occluded"
        + (f", {100 * hidden['coverage'][part]['mean']:.1f} % hidden on average" if of["occluded"] else "")
        for part, of in hidden["counts"].items()
    ]
    parts = [*map(as_markdown, further_tables(result, list(_MODELS.values())))]
    for number, found in enumerate(result.get("intervals", ()), 1):
        heading = (
            f"On {found['target']}, in points, with 95 % percentile bootstrap intervals over the "
            f"{next(iter(found['models'].values()))['queries']} queries; differences are paired."
        )
        parts.insert(number, as_markdown((heading, *interval_table(found["models"], _MODELS))))
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
    found |= {key: result[key] for key in CONDITIONS}
    if not file:
        return {**found, "runtime": f"torch {result['versions']['torch']}"}
    written = read(f"{file}.json")
    if written["info"]["source"] != section.get("source"):
        raise InputError(f"'{file}' was evaluated as another file than it is now; run 'amg-reid test' again.")
    found |= {key: written[key] for key in ("bytes", "opset", "calibration_images", "comparison", "runtime")}
    return found | {key: written["info"][key] for key in ("file_format", "precision", "source", "versions")}


def exports(args: argparse.Namespace) -> None:
    """Exported files and their checkpoints."""
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
    of_intervals = {"metavar": "JSON", "help": "output of the table 'intervals'"}

    def table(run: Callable[[argparse.Namespace], None], text: str = "") -> Callable[..., argparse.Action]:
        sub = tables.add_parser(
            run.__name__, parents=[page] * (run is not intervals), help=run.__doc__, description=text or run.__doc__
        )
        sub.set_defaults(run=run)
        return sub.add_argument

    option = table(
        intervals,
        "Finished runs of amg-reid give what every query contributed; the first section of a run unless #SECTION names "
        "another. Intervals are 95 % percentile bootstrap intervals over the queries; differences are paired.",
    )
    option("models", nargs="+", metavar="NAME=RUN[#SECTION]", help="folders of runs, the reference first")
    option("--target", default="market1501", metavar="NAME", help="data set (%(default)s)")
    option("--resamples", type=int, default=RESAMPLES, help="bootstrap samples (%(default)s)")
    option("--seed", type=int, default=0, help="seed of the resampling (%(default)s)")
    option("--output", metavar="FILE", help="JSON file for the figures")
    option = table(pruning)
    for name in ("prune", "control", "dense"):
        option(f"--{name}", required=True, metavar="RESULT", help=f"result.json of the {name} run")
    option("--intervals", **of_intervals)
    option = table(
        seeds,
        "A row is given once per seed. Its figures are one section of a result.json, the first unless #SECTION names "
        "another. Of two models (section asymmetric), parameters and MACs are those of the query model.",
    )
    option("results", nargs="+", metavar="ROW=RESULT[#SECTION]", help="a row's result.json of one seed")
    option("--reference", metavar="ROW", help="row that differences are taken from, seed by seed")
    option = table(occlusion)
    option("--pruned", required=True, metavar="RESULT", help="of amg-reid test with --dense")
    option("--control", required=True, metavar="RESULT", help="of amg-reid test")
    option("--manifest", required=True, metavar="FILE", help="occlusion.json of the occluded data set")
    option("--intervals", nargs="+", **of_intervals)
    option = table(
        exports,
        "FILE is an exported file, next to which 'amg-reid export' wrote FILE.json; RESULT is the result.json of "
        "'amg-reid test'. Rows with the first word of the label in common belong to one model, its checkpoint first; "
        "files are compared with it.",
    )
    option("rows", nargs="+", metavar="LABEL=[FILE,]RESULT", help="rows of the table, in order")
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
