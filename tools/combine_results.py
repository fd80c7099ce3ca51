r"""Join the results of a dense, a control and a pruning run into one result.json and a Markdown table.

example: python tools/combine_results.py --prune log/pruned/result.json --control log/control/result.json \\
             --dense log/dense/result.json --intervals intervals.json --title "Market-1501 dev split" \\
             --output docs/results/market1501_dev_split
"""

import sys

if __name__ == "__main__":
    sys.path.pop(0)  # this folder, whose inspect.py would hide Python's own

import argparse
import json
from pathlib import Path

from amg_plugin.errors import AMGError, InputError

LABELS = {
    "dense": "dense",
    "control": "dense, trained on (control)",
    "pruned": "pruned, before final fine-tuning",
    "finetuned": "pruned, fine-tuned",
}
#: What of a configuration is a place on somebody's disk and not part of the result.
_PLACES = {"data": ("root", "save_dir"), "amg": ("weights",)}


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("prune", "control", "dense"):
        parser.add_argument(f"--{name}", required=True, metavar="RESULT", help=f"result.json of the {name} run")
    parser.add_argument("--intervals", metavar="JSON", help="output of tools/bootstrap_interval.py")
    parser.add_argument("--notes", metavar="FILE", help="Markdown text to put below the table")
    parser.add_argument("--title", required=True, help="heading of the Markdown file")
    parser.add_argument("--output", required=True, metavar="PATH", help="without suffix; .json and .md are written")
    return parser.parse_args()


def read(path: str) -> dict:
    """Read a JSON file."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise InputError(f"'{path}' cannot be read as JSON: {error}.") from error


def without_places(config: dict) -> dict:
    """Blank out paths."""
    for node, keys in _PLACES.items():
        for key in keys:
            config[node][key] = Path(config[node][key]).name
    config["amg"]["distill"]["teacher"] = Path(config["amg"]["distill"]["teacher"]).name
    return config


def combine(args: argparse.Namespace) -> dict:
    """One result with the control row beside the sections of the pruning run."""
    result, control, dense = read(args.prune), read(args.control), read(args.dense)
    result["control"] = control["dense"]
    for run in (result, control, dense):
        run["config"] = without_places(run["config"])
    runs = (("dense", dense), ("control", control), ("prune", result))
    result["runs"] = {
        name: {key: run[key] for key in ("config", "seconds", "seed", "device", "threads", "versions")}
        for name, run in runs
    }
    result["dense_history"], result["control_history"] = dense["history"], control["history"]
    if args.intervals:
        result["intervals"] = read(args.intervals)
    return result


def markdown(result: dict, title: str) -> str:
    """The table."""
    intervals = result.get("intervals", {}).get("models", {})
    base = result["dense"]
    lines = [
        f"# {title}",
        "",
        "| model | Rank-1 % | mAP % | params (M) | MACs (G) | heads | tokens |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, label in LABELS.items():
        row = result[name]
        cells = []
        for key in ("rank1", "mAP"):
            cell = f"{100 * row[key]:.1f}"
            if name in intervals:
                low, high = intervals[name][f"{key}_interval"]
                cell += f" [{100 * low:.1f}, {100 * high:.1f}]"
            cells.append(cell)
        for key, unit in (("params", 1e6), ("macs", 1e9)):
            change = 100 * (row[key] / base[key] - 1)
            cells.append(f"{row[key] / unit:.2f}" + (f" ({change:+.1f} %)" if round(change, 1) else ""))
        cells += [str(sum(row["heads_per_block"])), str(sum(row["tokens_per_block"]))]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    environment = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    lines += [
        "",
        f"Measured on {result['device']}, dense training with {result['runs']['dense']['threads']} threads, the other "
        f"runs with {result['threads']}; {environment}; seed {result['seed']}.",
    ]
    if intervals:
        count = next(iter(intervals.values()))["queries"]
        lines.append(f"In brackets: 95 % percentile bootstrap interval over the {count} queries.")
        reference, row = next(iter(intervals)), intervals["finetuned"]
        parts = []
        for label, key in (("Rank-1", "rank1"), ("mAP", "mAP")):
            low, high = row[f"{key}_difference_interval"]
            parts.append(f"{label} {100 * row[f'{key}_difference']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]")
        lines += ["", f"Pruned and fine-tuned minus {reference}, paired over the queries: {', '.join(parts)} points."]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Write both files."""
    args = parse_arguments()
    result = combine(args)
    base = Path(args.output)
    base.parent.mkdir(parents=True, exist_ok=True)
    Path(f"{base}.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    text = markdown(result, args.title)
    if args.notes:
        text += "\n" + Path(args.notes).read_text(encoding="utf-8")
    Path(f"{base}.md").write_text(text, encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except AMGError as error:
        print(f"combine_results: error: {error}", file=sys.stderr)
        sys.exit(error.exit_status)
