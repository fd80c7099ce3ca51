r"""Join comparisons and evaluations of exported files into one table.

A row is LABEL=FILE for an exported file, whose FILE.json was written by 'amg-reid export' and whose result.json lies
where 'amg-reid test --weights FILE' puts it, or LABEL=RESULT for the result.json of a checkpoint. Rows with the first
word of the label in common belong to one model, the checkpoint's row first; files are compared with it.

example: python tools/combine_exports.py "dense PyTorch"=log/dense/test/result.json "dense int8"=dense_int8.onnx \\
             --title "Exported files" --output docs/results/exported
"""

import sys

if __name__ == "__main__":
    sys.path.pop(0)  # this folder, whose inspect.py would hide Python's own

import argparse
import json
from pathlib import Path

from amg_plugin.deploy.network import output_folder
from amg_plugin.errors import AMGError, InputError
from amg_plugin.runs.result import SECTIONS

_HEADER = ["model", "runtime", "MB", "largest difference", "cosine", "Rank-1 %", "mAP %", "mAP minus PyTorch's"]


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="+", metavar="LABEL=PATH", help="rows of the table, in order")
    parser.add_argument("--notes", metavar="FILE", help="Markdown text to put below the table")
    parser.add_argument("--title", required=True, help="heading of the Markdown file")
    parser.add_argument("--output", required=True, metavar="PATH", help="without suffix; .json and .md are written")
    return parser.parse_args()


def read(path: Path) -> dict:
    """Read a JSON file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise InputError(f"'{path}' cannot be read as JSON: {error}.") from error


def row(text: str) -> dict:
    """One row as data."""
    label, _, name = text.partition("=")
    path = Path(name)
    if not label or not name:
        raise InputError(f"'{text}' is no row; give LABEL=PATH.")
    is_file = path.suffix != ".json"
    result = read(output_folder(path) / "test" / "result.json" if is_file else path)
    section = next((result[key] for key in reversed(SECTIONS) if key in result), None)
    if section is None:
        raise InputError(f"'{path}' belongs to no result.json of amg-reid.")
    found = {"label": label, **{key: section[key] for key in ("mAP", "rank1", "params", "macs", "targets")}}
    found |= {key: result[key] for key in ("seed", "device", "threads", "versions", "seconds")}
    if is_file:
        written = read(path.with_name(f"{path.name}.json"))
        if written["info"]["source"] != section["source"]:
            raise InputError(f"'{path}' was evaluated as another file than it is now; run 'amg-reid test' again.")
        found |= {key: written[key] for key in ("bytes", "opset", "calibration_images", "comparison", "runtime")}
        found |= {key: written["info"][key] for key in ("file_format", "precision", "source", "versions")}
    else:
        found["runtime"] = f"torch {result['versions']['torch']}"
    return found


def cells(entry: dict, reference: dict) -> list[str]:
    """One line of the table."""
    comparison = entry.get("comparison")
    return [
        entry["label"],
        entry["runtime"],
        f"{entry['bytes'] / 1e6:.1f}" if comparison else "",
        f"{comparison['relative_difference']:.1e}" if comparison else "",
        f"{comparison['cosine']:.4f}" if comparison else "",
        f"{100 * entry['rank1']:.1f}",
        f"{100 * entry['mAP']:.1f}",
        f"{100 * (entry['mAP'] - reference['mAP']):+.2f}" if comparison else "",
    ]


def markdown(title: str, entries: list[dict], notes: str) -> str:
    """The table with what it was measured on."""
    models: dict[str, dict] = {}
    for entry in entries:
        models.setdefault(entry["label"].split()[0], entry)
    lines = [f"# {title}", "", f"| {' | '.join(_HEADER)} |", f"|{'---|' * len(_HEADER)}"]
    for entry in entries:
        lines.append(f"| {' | '.join(cells(entry, models[entry['label'].split()[0]]))} |")
    first = entries[0]
    versions = ", ".join(f"{name} {number}" for name, number in first["versions"].items())
    lines += ["", f"Measured on {first['device']}, threads of torch: {first['threads']}; {versions}.", ""]
    return "\n".join([*lines, notes.rstrip(), ""] if notes else lines)


def main() -> int:
    """Write both files; 0 on success."""
    args = parse_arguments()
    try:
        entries = [row(text) for text in args.rows]
        notes = Path(args.notes).read_text(encoding="utf-8") if args.notes else ""
    except AMGError as error:
        print(f"combine_exports: error: {error}", file=sys.stderr)
        return error.exit_status
    output = Path(args.output)
    output.with_suffix(".json").write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")
    output.with_suffix(".md").write_text(markdown(args.title, entries, notes), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
