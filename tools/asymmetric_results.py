r"""Join results of ``amg-reid test --gallery-weights`` into one JSON file and a Markdown table.

example: python tools/asymmetric_results.py "dense=log/a/result.json" "control=log/b/result.json" \
             --title "Market-1501 dev split, asymmetric" --output docs/results/market1501_asymmetric
"""

import sys

if __name__ == "__main__":
    sys.path.pop(0)  # this folder, whose inspect.py would hide Python's own

import argparse
import json
from pathlib import Path
from typing import Any

from amg_plugin.errors import AMGError, InputError

CASES = {"query_model": "query model on both sides", "asymmetric": "query model, {} gallery",
         "gallery_model": "{} on both sides"}  # fmt: skip
_ENVIRONMENT = ("seed", "device", "threads", "versions", "seconds")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "results", nargs="+", metavar="NAME=RESULT", help="name of the gallery's model, its result.json"
    )
    parser.add_argument("--notes", metavar="FILE", help="Markdown text to put below the table")
    parser.add_argument("--title", required=True, help="heading of the Markdown file")
    parser.add_argument("--output", required=True, metavar="PATH", help="without suffix; .json and .md are written")
    return parser.parse_args()


def read(word: str) -> tuple[str, dict[str, Any]]:
    """Name and result of one argument."""
    name, separator, path = word.partition("=")
    if not separator:
        raise InputError(f"'{word}' must be NAME=RESULT, for example dense=log/test/result.json.")
    try:
        result = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise InputError(f"'{path}' cannot be read as JSON: {error}.") from error
    if missing := [case for case in CASES if case not in result]:
        raise InputError(f"'{path}' has no section {missing[0]}; it must come from 'amg-reid test --gallery-weights'.")
    return name, {key: result[key] for key in (*CASES, *_ENVIRONMENT)}


def markdown(found: dict[str, dict[str, Any]], title: str) -> str:
    """The table: the query's model once, then every gallery."""
    lines = [f"# {title}", "", "| features of query and gallery | Rank-1 % | mAP % |", "|---|---|---|"]
    for number, (name, result) in enumerate(found.items()):
        for case, label in CASES.items():
            if case == "query_model" and number:
                continue
            scores = result[case]
            lines.append(f"| {label.format(name)} | {100 * scores['rank1']:.1f} | {100 * scores['mAP']:.1f} |")
    last = next(iter(found.values()))
    costs = {"query": last["query_model"]["macs"], **{name: r["gallery_model"]["macs"] for name, r in found.items()}}
    macs = ", ".join(f"{name} {value / 1e9:.3f} G" for name, value in costs.items())
    versions = ", ".join(f"{name} {version}" for name, version in last["versions"].items())
    threads = f"{last['threads']} thread{'s' * (last['threads'] > 1)}"
    where = f"Measured on {last['device']}, {threads}; {versions}; seed {last['seed']}."
    return "\n".join([*lines, "", f"MACs per image: {macs}.", "", where, ""])


def main() -> int:
    """Write both files."""
    args = parse_arguments()
    found = dict(map(read, args.results))
    text = markdown(found, args.title)
    if args.notes:
        text += "\n" + Path(args.notes).read_text(encoding="utf-8")
    base = Path(args.output)
    base.parent.mkdir(parents=True, exist_ok=True)
    Path(f"{base}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    Path(f"{base}.md").write_text(text, encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except AMGError as error:
        sys.exit(f"asymmetric_results: error: {error}")
