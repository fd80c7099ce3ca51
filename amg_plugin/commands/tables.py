"""``amg-reid tables``: the published tables beside what the same structures cost here."""

from __future__ import annotations

import argparse
from pathlib import Path

from amg_plugin.errors import RunError
from amg_plugin.published_tables import FORMATS, build_table, render

HELP = "print the published tables: published, published accounting, counted"
DESCRIPTION = """Build every published model without weights, prune it at the published rates and print published,
published-accounting and counted MACs, MSA parameters and parameters. No data is needed.

example: amg-reid tables --output docs/paper_tables.md
         amg-reid tables --format csv --results tr_base_duke_dense=log/transreid/result.json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("--format", choices=FORMATS, default="markdown", help="form of the table (default: markdown)")
    parser.add_argument("--output", metavar="FILE", help="write there instead of printing")
    parser.add_argument(
        "--results",
        nargs="+",
        default=[],
        metavar="[ROW=]RESULT",
        help="result.json files of own runs; ROW is the key of a published row (see --format json)",
    )


def run(args: argparse.Namespace) -> int:
    """Print or write the table; 0 on success.

    Raises:
        RunError: If the file cannot be written.
    """
    text = render(build_table(args.results), args.format)
    if not args.output:
        print(text, end="")
        return 0
    try:
        Path(args.output).write_text(text, encoding="utf-8")
    except OSError as error:
        raise RunError(f"The table '{args.output}' cannot be written: {error}.") from error
    print(args.output)
    return 0
