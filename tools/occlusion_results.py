r"""Join evaluations under occlusion into one JSON file and a Markdown page.

Takes the result.json of 'amg-reid test' for a pruned model with --dense, that for the control (the dense model trained
on for as many epochs), the manifest of the occluded data set and, if there are any, bootstrap intervals on it.

example: python tools/occlusion_results.py --pruned log/pruned/test/result.json \
             --control log/control/test/result.json --manifest reid-data/occluded_market1501/occlusion.json \
             --intervals intervals.json --title "Occluded dev split" --output docs/results/occluded_dev_split
"""

import sys

if __name__ == "__main__":
    sys.path.pop(0)  # this folder, whose inspect.py would hide Python's own

import argparse
import json
from pathlib import Path

from amg_plugin.data.occlusion.copy import FORMAT
from amg_plugin.errors import AMGError, InputError
from amg_plugin.runs.targets import ATTENTION, as_markdown, further_tables

LABELS = {"dense": "dense", "control": "control", "finetuned": "pruned"}


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pruned", required=True, metavar="RESULT", help="of amg-reid test with --dense")
    parser.add_argument("--control", required=True, metavar="RESULT", help="of amg-reid test")
    parser.add_argument("--manifest", required=True, metavar="FILE", help="occlusion.json of the occluded data set")
    parser.add_argument("--intervals", metavar="JSON", help="of tools/bootstrap_interval.py on the occluded target")
    parser.add_argument("--notes", metavar="FILE", help="Markdown text to put below the tables")
    parser.add_argument("--title", required=True, help="heading of the Markdown file")
    parser.add_argument("--output", required=True, metavar="PATH", help="without suffix; .json and .md are written")
    return parser.parse_args()


def read(path: str) -> dict:
    """Read a JSON file."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise InputError(f"'{path}' cannot be read as JSON: {error}.") from error


def combine(args: argparse.Namespace) -> dict:
    """One result with the rows dense, control and pruned.

    Raises:
        InputError: If a run has no such row, or they looked at different masks.
    """
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
        attention[target] = {**section, "models": {label: shares[name] for name, label in LABELS.items()}}
    manifest = read(args.manifest)
    if manifest.get("format") != FORMAT:
        raise InputError(f"'{args.manifest}' is no manifest of amg-reid occlude.")
    manifest.pop("images", None)
    rows = {"dense": pruned["dense"], "control": control["dense"], "finetuned": pruned["finetuned"]}
    return {
        **{label: rows[name] for name, label in LABELS.items()},
        ATTENTION: attention,
        "occlusion": manifest,
        **({"intervals": read(args.intervals)} if args.intervals else {}),
        **{key: pruned[key] for key in ("seed", "device", "threads", "versions")},
        "seconds": {"pruned and dense": pruned["seconds"], "control": control["seconds"]},
    }


def intervals_table(intervals: dict) -> str:
    """Scores on the occluded target with their intervals, and differences from the first model."""
    reference = LABELS.get(first := next(iter(intervals["models"])), first)
    count = intervals["models"][first]["queries"]
    header = ["model", "Rank-1", "mAP", f"Rank-1 - {reference}", f"mAP - {reference}"]
    rows = []
    for name, entry in intervals["models"].items():
        cells = []
        for kind in ("", "_difference"):
            for key in ("rank1", "mAP"):
                low, high = entry[f"{key}{kind}_interval"]
                sign = "+" if kind else ""
                cells.append(f"{100 * entry[key + kind]:{sign}.1f} [{100 * low:{sign}.1f}, {100 * high:{sign}.1f}]")
        rows.append([LABELS.get(name, name), *(cells[:2] if name == first else cells), *[""] * (2 * (name == first))])
    heading = (
        f"On {intervals['target']}, in points, with 95 % percentile bootstrap intervals over the {count} queries; "
        "differences are paired."
    )
    return as_markdown((heading, header, rows))


def markdown(result: dict, title: str) -> str:
    """The page without notes."""
    counts = [
        f"{part}: {of['occluded']} of {of['images']} images occluded"
        + (f", {100 * result['occlusion']['coverage'][part]['mean']:.1f} % hidden on average" if of["occluded"] else "")
        for part, of in result["occlusion"]["counts"].items()
    ]
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    parts = [f"# {title}", *map(as_markdown, further_tables(result, list(LABELS.values())))]
    if "intervals" in result:
        parts.insert(2, intervals_table(result["intervals"]))
    parts.append(f"Occlusion: seed {result['occlusion']['seed']}; {'; '.join(counts)}.")
    parts.append(f"Measured on {result['device']}, {result['threads']} thread(s), seed {result['seed']}; {versions}.")
    return "\n\n".join(parts) + "\n"


def main() -> int:
    """Write both files."""
    args = parse_arguments()
    result = combine(args)
    base = Path(args.output)
    base.parent.mkdir(parents=True, exist_ok=True)
    Path(f"{base}.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    text = markdown(result, args.title)
    if args.notes:
        try:
            text += "\n" + Path(args.notes).read_text(encoding="utf-8")
        except OSError as error:
            raise InputError(f"'{args.notes}' cannot be read: {error}.") from error
    Path(f"{base}.md").write_text(text, encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except AMGError as error:
        print(f"occlusion_results: error: {error}", file=sys.stderr)
        sys.exit(error.exit_status)
