r"""Compare ways to save the same share of MACs on one dense checkpoint, without training and after a short fine-tuning.

Methods: AMG (single-shot, heads and tokens, or tokens only), ToMe, EViT, random and magnitude pruning, and the dense
model with the same fine-tuning. Each method's figures are in SAVE_DIR/seedN/METHOD; what is there already is not run
again, so that an interrupted comparison continues where it stopped. The table of what is there goes to --output.

example: python tools/compare_reducers.py --weights log/dev_split_vits14/last.pth --root DATA \
             --save-dir log/dev_split_vits14_equal_macs --output docs/results/market1501_equal_macs
         python tools/compare_reducers.py --weights log/dense{seed}/last.pth --seeds 1 2 3 --root DATA \
             --save-dir log/equal_macs --output docs/results/market1501_equal_macs
"""

import argparse
import sys
import time
from collections.abc import Callable, Collection
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

from results import CONDITIONS, measured_on, read, without_places, write
from yacs.config import CfgNode

from amg_plugin.checkpoint import LAST_CHECKPOINT, Checkpoint, read_checkpoint
from amg_plugin.cli.arguments import finish, logged
from amg_plugin.config.load import load_config
from amg_plugin.errors import AMGError, InputError
from amg_plugin.pruning import apply_plan, current_plan
from amg_plugin.pruning.cut import carry_out
from amg_plugin.registries import TARGETS
from amg_plugin.runs import result as report
from amg_plugin.runs.setup import assemble, build_evaluator, check_identities, fitted, prepare
from amg_plugin.runs.test import evaluate_checkpoint
from amg_plugin.runs.train import train
from amg_plugin.utils.tables import markdown_table, per_cent

#: Method -> label, keys besides those of the configuration.
SINGLE_SHOT = [{"target": "heads"}, {"target": "tokens"}]
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "tome": ("ToMe", {"amg.reducer": "tome"}),
    "evit": ("EViT", {"amg.reducer": "evit"}),
    "amg": ("AMG, heads and tokens", {"amg.schedule": SINGLE_SHOT}),
    "amg_tokens": ("AMG, tokens only", {"amg.schedule": SINGLE_SHOT[1:], "amg.head_token_balance": 0.0}),
    "random": ("random heads and tokens", {"amg.schedule": SINGLE_SHOT, "amg.head_scorer": "random",
                                           "amg.token_scorer": "random"}),
    "magnitude": ("heads by weight magnitude, tokens by class attention",
                  {"amg.schedule": SINGLE_SHOT, "amg.head_scorer": "magnitude", "amg.token_scorer": "cls_attention"}),
    "dense": ("dense", {"amg.reducer": "none"}),
}  # fmt: skip
BEFORE, AFTER = "before", "after"


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--weights", required=True, metavar="CKPT", help="the dense checkpoint; {seed} stands for the seed"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1], metavar="N", help="seeds of all runs (default: 1)")
    parser.add_argument("--config-file", default="market1501/dev_split_vits14_equal_macs", metavar="FILE")
    parser.add_argument("--root", required=True, metavar="FOLDER", help="folder that holds the data sets")
    parser.add_argument("--save-dir", required=True, metavar="FOLDER", help="folder for the runs")
    parser.add_argument("--saving", type=float, default=0.3, help="share of the counted MACs to save (%(default)s)")
    parser.add_argument("--balance", type=float, default=0.3, help="share of it from heads (%(default)s)")
    parser.add_argument("--methods", type=names_out_of(METHODS), default=list(METHODS), metavar="NAMES",
                        help=f"comma-separated, out of {', '.join(METHODS)}; '' only makes the table")  # fmt: skip
    parser.add_argument("--steps", type=names_out_of((BEFORE, AFTER)), default=[BEFORE, AFTER], metavar="NAMES",
                        help="before (without fine-tuning), after (fine-tuning) or both")  # fmt: skip
    parser.add_argument("--output", metavar="PATH", help="without suffix; .json and .md are written")
    parser.add_argument("--notes", metavar="FILE", help="Markdown text to put below the table")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="key value", help="configuration keys for all runs")
    return parser.parse_args()


def names_out_of(allowed: Collection[str]) -> Callable[[str], list[str]]:
    """Reads a comma-separated list of names."""

    def parse(text: str) -> list[str]:
        names = [name for name in text.split(",") if name]
        if unknown := [name for name in names if name not in allowed]:
            raise argparse.ArgumentTypeError(f"'{unknown[0]}' is unknown; allowed are {', '.join(allowed)}")
        return names

    return parse


def place(args: argparse.Namespace, seed: int, method: str, name: str) -> Path:
    """The folder of one run."""
    return Path(args.save_dir) / f"seed{seed}" / method / name


def configuration(args: argparse.Namespace, seed: int, method: str, folder: Path) -> Any:
    """The configuration of one run."""
    keys = {"amg.target_macs_saving": args.saving, "amg.head_token_balance": args.balance, **METHODS[method][1]}
    if method == "dense":
        keys["amg.target_macs_saving"] = 0.0
    words = [word for key, value in keys.items() for word in (key, value)]
    words += ["data.root", args.root, "data.save_dir", str(folder), "train.seed", seed, *args.opts]
    return load_config(args.config_file, words, use_schedule=False)


def run_step(args: argparse.Namespace, seed: int, method: str, name: str, checkpoint: Checkpoint) -> None:
    """Carry out one step of a method, unless that was done before."""
    folder = place(args, seed, method, name)
    if (folder / report.FILE_NAME).is_file():
        return
    cfg, started = configuration(args, seed, method, folder), time.time()
    prepare(cfg)
    pruned = "amg.schedule" in METHODS[method][1]
    step = prune_once if pruned and name == BEFORE else {BEFORE: evaluate_checkpoint, AFTER: train}[name]
    if pruned and name == AFTER:
        checkpoint = read_checkpoint(place(args, seed, method, BEFORE) / LAST_CHECKPOINT)
    with logged(str(folder), name):
        finish(cfg, name, step(cfg, checkpoint), started)


def prune_once(cfg: CfgNode, checkpoint: Checkpoint) -> dict[str, Any]:
    """Carry out every cut at once and evaluate; as ``amg-reid prune``, without the dense evaluation and any epoch."""
    from amg_plugin.data.manager import build_datamanager
    from amg_plugin.engine import AMGPruningHook
    from amg_plugin.engine.calibration import build_calibration, scoring_mode

    checkpoint = fitted(checkpoint, cfg)
    pruning = AMGPruningHook.from_config(cfg)
    datamanager = build_datamanager(cfg)
    check_identities(checkpoint, datamanager.num_train_pids)
    model = checkpoint.build()
    apply_plan(model, current_plan(model).with_variant(cfg.amg.token_variant))
    pruning.check(model)
    engine = assemble(cfg, datamanager, model, [], 1)
    for cut in pruning.schedule.cuts:
        goal = pruning.goal(cut)
        with scoring_mode(model, cfg.amg.calibration.mode):
            plan = carry_out(model, cut, pruning.rules, build_calibration(engine, f"score {cut.target}"), goal)
        structure = {f"{target}_per_block": plan.left(target) for target in TARGETS}
        engine.history.append({"event": "cut", "epoch": 0, "target": cut.target, **structure})
    engine.write_checkpoint(Path(cfg.data.save_dir) / LAST_CHECKPOINT)
    scores = build_evaluator(cfg, model, datamanager.test_loader).evaluate()
    shape = report.structure(model, cfg.data.height, cfg.data.width)
    return {"pruned": report.section(scores, shape), "history": engine.history}


def collect(args: argparse.Namespace) -> dict[str, Any]:
    """What the finished runs say: per method and step, figures and conditions of every seed."""
    methods: dict[str, Any] = {}
    for method, (label, _) in METHODS.items():
        entry: dict[str, Any] = {"label": label, BEFORE: {}, AFTER: {}, "config": {}, "runs": {BEFORE: {}, AFTER: {}}}
        for name, seed in product((BEFORE, AFTER), args.seeds):
            path = place(args, seed, method, name) / report.FILE_NAME
            if path.is_file():
                run = read(path)
                entry[name][str(seed)] = next(run[key] for key in report.SECTIONS if key in run)
                entry["config"].setdefault(name, without_places(run["config"]))  # seeds differ in nothing else
                entry["runs"][name][str(seed)] = {key: run[key] for key in CONDITIONS}
        if entry[BEFORE] or entry[AFTER]:
            methods[method] = entry
    if not methods:
        raise InputError(f"'{args.save_dir}' holds no finished run of --seeds {' '.join(map(str, args.seeds))}.")
    return {"saving": args.saving, "balance": args.balance, "config_file": args.config_file, "methods": methods}


def markdown(result: dict[str, Any]) -> str:
    """The table, and what it was measured on."""
    methods = result["methods"]
    dense = macs_of(methods["dense"]) if "dense" in methods else None
    header = [
        "method",
        "counted MACs (G)",
        "saved",
        "without fine-tuning: Rank-1 / mAP %",
        "fine-tuned: Rank-1 / mAP %",
    ]
    rows = []
    for entry in methods.values():
        saved = f"{1 - macs_of(entry) / dense:.1%}" if dense else ""
        scores = [
            " / ".join(per_cent([run[key] for run in entry[name].values()]) for key in ("rank1", "mAP"))
            if entry[name]
            else "not run"
            for name in (BEFORE, AFTER)
        ]
        rows.append([entry["label"], f"{macs_of(entry) / 1e9:.3f}", saved, *scores])
    runs = [run for entry in methods.values() for step in entry["runs"].values() for run in step.values()]
    config = next(config for entry in methods.values() for config in entry["config"].values())
    images, epochs = config["train"]["batch_size"] * config["amg"]["batches_per_epoch"], config["train"]["max_epoch"]
    length = f"{images * epochs:,} images" if images else f"{epochs} epoch{'s' * (epochs != 1)}"
    several = " (mean ± standard deviation over them)" if len({run["seed"] for run in runs}) > 1 else ""
    return (
        f"{markdown_table(header, rows, left=range(len(header)))}\n\n"
        f"Fine-tuning: {length}, the same for all, no distillation. {measured_on(runs)}{several}. "
        f"Configuration `{result['config_file']}`."
    )


def macs_of(entry: dict[str, Any]) -> float:
    """Counted MACs of a method, mean over its seeds."""
    return mean(section["macs"] for section in (entry[AFTER] or entry[BEFORE]).values())


def main() -> int:
    """Run what is missing, then write the table."""
    args = parse_arguments()
    for seed in args.seeds if args.methods else ():
        checkpoint = read_checkpoint(args.weights.replace("{seed}", str(seed)))
        for name, method in product(args.steps, args.methods):
            run_step(args, seed, method, name, checkpoint)
    result = collect(args)
    write(args, result, markdown(result), f"{100 * args.saving:.0f} % fewer MACs by AMG and by others")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except AMGError as error:
        print(f"compare_reducers: error: {error}", file=sys.stderr)
        sys.exit(error.exit_status)
