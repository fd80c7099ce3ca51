r"""Join results of the same commands with several seeds into one JSON file and a Markdown table.

A row is given once per seed. Its figures are one section of a result.json, the first unless #SECTION names another. Of
two models (section asymmetric), parameters and MACs are those of the query's.

example: python tools/seed_results.py dense=log/1/dense/result.json dense=log/2/dense/result.json \
             "pruned=log/1/pruned/result.json#finetuned" "pruned=log/2/pruned/result.json#finetuned" \
             --reference dense --title "Market-1501 dev split, two seeds" --output docs/results/seeds
"""

import sys

if __name__ == "__main__":
    sys.path.pop(0)  # this folder, whose inspect.py would hide Python's own

import argparse
import json
from pathlib import Path
from statistics import fmean
from typing import Any

from amg_plugin.errors import AMGError, InputError
from amg_plugin.runs import result as report
from amg_plugin.utils.tables import per_cent

_SECTIONS = (*report.SECTIONS, "query_model", "gallery_model", "asymmetric")
_CONDITIONS = ("seed", "device", "threads", "versions", "seconds")
Rows = dict[str, dict[int, dict[str, Any]]]


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", metavar="ROW=RESULT[#SECTION]", help="a row's result.json of one seed")
    parser.add_argument("--reference", metavar="ROW", help="row that differences are taken from, seed by seed")
    parser.add_argument("--notes", metavar="FILE", help="Markdown text to put below the table")
    parser.add_argument("--title", required=True, help="heading of the Markdown file")
    parser.add_argument("--output", required=True, metavar="PATH", help="without suffix; .json and .md are written")
    return parser.parse_args()


def read(word: str) -> tuple[str, dict[str, Any]]:
    """Row and figures of one argument."""
    row, equals, place = word.partition("=")
    path, _, name = place.partition("#")
    if not (row and equals and path):
        raise InputError(f"'{word}' must be ROW=RESULT or ROW=RESULT#SECTION.")
    try:
        result = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise InputError(f"'{path}' cannot be read as JSON: {error}.") from error
    present = [section for section in _SECTIONS if section in result]
    name = name or next(iter(present), "")
    if name not in present:
        raise InputError(f"'{path}' has no section '{name}', only {', '.join(present) or 'none of a result.json'}.")
    schedule = {key: result["config"]["amg"][key] for key in ("schedule", "final_epochs", "distill", "calibration")}
    schedule["distill"]["teacher"] = Path(schedule["distill"]["teacher"]).name
    training = {"max_epoch": result["config"]["train"]["max_epoch"], "lr": result["config"]["train"]["lr"]}
    conditions = {key: result[key] for key in _CONDITIONS}
    costs = {key: result["query_model"][key] for key in ("params", "macs")} if name == "asymmetric" else {}
    return row, {"section": name, **result[name], **costs, **conditions, "config": {"amg": schedule, "train": training}}


def gather(words: list[str], reference: str | None) -> Rows:
    """Rows with one entry per seed."""
    rows: Rows = {}
    for row, figures in map(read, words):
        if figures["seed"] in rows.setdefault(row, {}):
            raise InputError(f"Row '{row}' has two results of seed {figures['seed']}.")
        rows[row][figures["seed"]] = figures
    if reference is not None and reference not in rows:
        raise InputError(f"--reference '{reference}' is no row; rows are {', '.join(rows)}.")
    if uneven := [row for row in rows if set(rows[row]) != set(next(iter(rows.values())))]:
        raise InputError(f"Row '{uneven[0]}' has other seeds than '{next(iter(rows))}'.")
    return rows


def markdown(rows: Rows, reference: str | None, title: str) -> str:
    """The table."""
    header = ["model", "Rank-1 %", "mAP %", "params (M)", "MACs (G)"]
    header += [f"{score} minus {reference}" for score in ("Rank-1", "mAP")] if reference else []
    lines = [f"# {title}", "", f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    for row, seeds in rows.items():
        cells = [row, *(per_cent([found[key] for found in seeds.values()]) for key in ("rank1", "mAP"))]
        for key, unit in (("params", 1e6), ("macs", 1e9)):
            cells.append(f"{fmean(found[key] for found in seeds.values()) / unit:.2f}")
        for key in ("rank1", "mAP") if reference else ():
            pairs = [found[key] - rows[reference][seed][key] for seed, found in seeds.items()]
            cells.append("" if row == reference else per_cent(pairs, "+"))
        lines.append(f"| {' | '.join(cells)} |")
    runs = [found for seeds in rows.values() for found in seeds.values()]
    devices, threads, seeds = (sorted({str(run[key]) for run in runs}) for key in ("device", "threads", "seed"))
    versions = ", ".join(f"{name} {version}" for name, version in runs[0]["versions"].items())
    where = (
        f"Measured on {' and '.join(devices)}, threads: {' or '.join(threads)}; {versions}; seeds {', '.join(seeds)}."
    )
    spread = "Mean ± standard deviation over the seeds; differences are taken seed by seed."
    return "\n".join([*lines, "", where, *([spread] if len(seeds) > 1 else []), ""])


def main() -> int:
    """Write both files."""
    args = parse_arguments()
    rows = gather(args.results, args.reference)
    text = markdown(rows, args.reference, args.title)
    if args.notes:
        text += "\n" + Path(args.notes).read_text(encoding="utf-8")
    base = Path(args.output)
    report.write_text(base.with_name(base.name + ".json"), json.dumps(rows, indent=1) + "\n")
    report.write_text(base.with_name(base.name + ".md"), text)
    print(text)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except AMGError as error:
        print(f"seed_results: error: {error}", file=sys.stderr)
        sys.exit(error.exit_status)
