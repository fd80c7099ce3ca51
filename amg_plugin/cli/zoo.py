"""List or fetch the authors' published checkpoints.

The checkpoints that the authors of AMG pruning published, by Google Drive id.

'list' prints them with their published figures. 'fetch' downloads one into a cache folder, records its size and SHA-256
(the authors publish neither) and verifies them whenever it is used again. Then it reads the file as data, never as
code, and prints its structure. --out writes it as a checkpoint that 'amg-reid test', 'prune' and 'inspect' take.

The cache folder is --cache, $AMG_REID_CACHE, or amg_plugin/zoo in the user's cache folder.
Without network, download the file elsewhere (its address is in the error and in 'list --json') and give it with --file.

Licence: the authors' repositories state none, and weights trained on Market-1501 are for research; what you may do with
the files is between you and their authors.

example: amg-reid zoo list
         amg-reid zoo fetch tr_base_market_head25_token25 --out log/tr_base_market_head25_token25.pth

more: docs/zoo.md
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from amg_plugin.paper.zoo import ZooEntry


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    shown = actions.add_parser("list", help="print the checkpoints and what the cache holds")
    shown.add_argument("--json", action="store_true", help="print JSON instead of a table")
    wanted = actions.add_parser("fetch", help="download, verify and import one")
    wanted.add_argument("name", metavar="NAME", help="as 'amg-reid zoo list' prints it")
    wanted.add_argument("--out", metavar="CKPT", help="write the imported model there")
    wanted.add_argument("--file", metavar="FILE", help="a copy downloaded by hand, instead of downloading")
    wanted.add_argument("--refresh", action="store_true", help="fetch again, and record size and SHA-256 again")
    for action in (shown, wanted):
        action.add_argument(
            "--cache", metavar="FOLDER", help="folder of fetched files (default: $AMG_REID_CACHE or ~/.cache)"
        )


def run(args: argparse.Namespace) -> int:
    """List or fetch; 0 on success."""
    from amg_plugin.paper.zoo import ENTRIES, cache_folder, find_entry

    folder = cache_folder(args.cache)
    if args.action == "list":
        rows = [row_of(entry, folder) for entry in ENTRIES]
        print(json.dumps(rows, indent=1) if args.json else listing(rows, folder))
        return 0
    return fetch_one(find_entry(args.name), folder, args)


def fetch_one(entry: ZooEntry, folder: Path, args: argparse.Namespace) -> int:
    """Fetch, verify, import and show one checkpoint; 0 on success."""
    from amg_plugin.checkpoint import Checkpoint
    from amg_plugin.paper.importing import save_imported
    from amg_plugin.paper.zoo import LICENCE, fetch, import_entry, remarks
    from amg_plugin.pruning import current_plan
    from amg_plugin.runs.result import describe, description_text
    from amg_plugin.utils.files import check_output

    if args.out:
        check_output(args.out, "--out")
    fetched = fetch(entry, folder, local_file=args.file, refresh=args.refresh)
    record = fetched.record
    state = "recorded" if fetched.is_new else "verified"
    print(f"{fetched.path}\n{record.size} bytes, SHA-256 {record.sha256} ({state})\nlicence: {LICENCE}\n")
    model = import_entry(entry, fetched.path)
    checkpoint = Checkpoint(model.spec, current_plan(model), model.state_dict())
    print(description_text(checkpoint, describe(checkpoint)))
    print("".join(f"\n{sentence}" for sentence in remarks(entry, model)))
    if args.out:
        save_imported(args.out, model, entry.family, fetched.path.name, entry.data_set)
        print(f"\n{args.out}")
    return 0


def row_of(entry: ZooEntry, folder: Path) -> dict[str, Any]:
    """An entry as plain data."""
    from amg_plugin.paper.zoo import LICENCE, recorded

    row, record, path = entry.published[0], recorded(entry, folder), entry.path(folder)
    return {
        "name": entry.name,
        "program": {"transreid": "TransReID", "la": "LA-Transformer"}[entry.family],
        "model": row.model,
        "data": row.data,
        "rates": entry.rates,
        "mAP_paper": row.mAP,
        "rank1_paper": row.rank1,
        "macs_paper_giga": row.macs,
        "image_size": list(entry.spec.image_size),
        "stride": entry.spec.stride or 16,
        "num_heads": entry.num_heads,
        "head_dim": entry.head_dim,
        "cameras": entry.cameras,
        "identities": entry.spec.num_classes,
        "licence": LICENCE,
        "drive_id": entry.drive_id,
        "url": entry.url,
        "size": record.size if record else None,
        "sha256": record.sha256 if record else None,
        "file": str(path) if path.is_file() else None,
    }


def listing(rows: list[dict[str, Any]], folder: Path) -> str:
    """The table of ``zoo list``."""
    from amg_plugin.utils.tables import text_table

    header = ["name", "program", "data", "removed (label)", "mAP %", "Rank-1 %", "MACs G", "licence", "in the cache"]
    cells = [
        [
            *(row[key] for key in ("name", "program", "data", "rates")),
            *(f"{row[key]:.2f}" for key in ("mAP_paper", "rank1_paper", "macs_paper_giga")),
            row["licence"],
            f"{row['size'] / 2**20:.0f} MiB" if row["file"] and row["size"] else "-",
        ]
        for row in rows
    ]
    return (
        f"{text_table(header, cells)}\n\n"
        "mAP, Rank-1 and MACs are published figures; LA-Transformer's are from another evaluator and not comparable.\n"
        "Licence: the authors' repositories state none; weights trained on Market-1501 are for research.\n"
        f"Cache: {folder}"
    )
