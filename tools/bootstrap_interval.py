r"""Bootstrap intervals over queries for checkpoints, and for their differences from the first.

example: python tools/bootstrap_interval.py dense=log/dense/last.pth pruned=log/pruned/last.pth \\
             --root reid-data --target market1501 --output intervals.json
"""

import sys

if __name__ == "__main__":
    sys.path.pop(0)  # this folder, whose inspect.py would hide Python's own

import argparse
import json
from pathlib import Path

import torch

from amg_plugin.checkpoint import read_checkpoint
from amg_plugin.config.load import load_config
from amg_plugin.errors import AMGError, InputError
from amg_plugin.utils.environment import environment
from amg_plugin.utils.statistics import interval
from amg_plugin.utils.tables import text_table


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="NAME=CKPT", help="checkpoints, the reference first")
    parser.add_argument("--root", required=True, metavar="FOLDER", help="folder that holds the data set")
    parser.add_argument("--target", default="market1501", metavar="NAME", help="data set (%(default)s)")
    parser.add_argument("--resamples", type=int, default=10_000, help="bootstrap samples (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the resampling (%(default)s)")
    parser.add_argument("--output", metavar="FILE", help="JSON file for the figures")
    return parser.parse_args()


@torch.no_grad()
def scores_of(path: str, root: str, target: str) -> dict:
    """Per-query scores of a checkpoint under its own configuration."""
    from amg_plugin.data.manager import build_datamanager
    from amg_plugin.evaluation.protocol import distances, embed, per_query_scores
    from amg_plugin.runs.setup import assemble, restore_model

    checkpoint = read_checkpoint(path)
    names = ["data.root", root, "data.sources", [target], "data.targets", [target]]
    cfg = load_config(None, names, use_schedule=False, base=checkpoint.config)
    engine = assemble(cfg, build_datamanager(cfg), restore_model(checkpoint, cfg), [], 1)
    engine.set_model_mode("eval")

    extract = engine.extractor(target)
    query, gallery = (
        embed(engine.test_loader[target][part], engine.parse_data_for_eval, extract, part)
        for part in ("query", "gallery")
    )
    matrix = distances(query, gallery, cfg.test.dist_metric, cfg.test.normalize_feature, False)
    return per_query_scores(matrix, query, gallery)


def main() -> int:
    """Measure, print and write."""
    args = parse_arguments()
    pairs = [model.partition("=")[::2] for model in args.models]
    if any(not path for _, path in pairs):
        raise InputError("Every model is given as NAME=CKPT.")
    scores = {name: scores_of(path, args.root, args.target) for name, path in pairs}
    reference = pairs[0][0]
    figures, rows = {}, []
    for name, values in scores.items():
        entry = {"queries": len(values["AP"])}
        for label, key in (("mAP", "AP"), ("rank1", "rank1")):
            entry[label] = float(values[key].mean())
            entry[f"{label}_interval"] = interval(values[key], args.resamples, args.seed)
            difference = values[key] - scores[reference][key]
            entry[f"{label}_difference"] = float(difference.mean())
            entry[f"{label}_difference_interval"] = interval(difference, args.resamples, args.seed)
        figures[name] = entry
        rows.append([name, *(_cell(entry, label, kind) for kind in ("", "_difference") for label in ("rank1", "mAP"))])
    header = ["model", "Rank-1 % [95 %]", "mAP % [95 %]", f"Rank-1 - {reference}", f"mAP - {reference}"]
    print(text_table(header, rows))
    if args.output:
        content = {"target": args.target, "resamples": args.resamples, "seed": args.seed, "models": figures}
        Path(args.output).write_text(json.dumps({**content, **environment()}, indent=1) + "\n", encoding="utf-8")
    return 0


def _cell(entry: dict, label: str, kind: str) -> str:
    low, high = entry[f"{label}{kind}_interval"]
    sign = "+" if kind else ""
    return f"{100 * entry[label + kind]:{sign}.1f} [{100 * low:{sign}.1f}, {100 * high:{sign}.1f}]"


if __name__ == "__main__":
    try:
        sys.exit(main())
    except AMGError as error:
        print(f"bootstrap_interval: error: {error}", file=sys.stderr)
        sys.exit(error.exit_status)
