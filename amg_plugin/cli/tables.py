"""Print the published tables: published, published accounting, counted.

Build every published model without weights, prune it at the published rates and print published,
published-accounting and counted MACs, MSA parameters and parameters. No data is needed.

The paper's accuracies and the measured ones have columns of their own. Measured ones come from the result.json files
given with --results: every section (dense, start, pruned, finetuned) and target of them. A measurement goes to the
row of the same data set, parameters, heads and tokens; all others follow as rows of their own. ROW=FILE puts the run's
last figures (for dense rows, its dense ones) into that row, and the note says what differs.

example: amg-reid tables --output docs/paper_tables.md
         amg-reid tables --results log/transreid/result.json log/transreid_pruned/result.json
         amg-reid tables --format csv --results tr_base_duke_dense=log/transreid/result.json

more: docs/paper_tables.md
"""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "--format",
        choices=("markdown", "csv", "json"),
        default="markdown",
        help="form of the table (default: markdown)",
    )
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
        InputError: If the file cannot be written.
    """
    from amg_plugin.paper.tables import build_table, render
    from amg_plugin.utils.files import check_output, write_text

    if args.output:
        check_output(args.output)
    text = render(build_table(args.results), args.format)
    if not args.output:
        print(text, end="")
        return 0
    print(write_text(args.output, text))
    return 0
