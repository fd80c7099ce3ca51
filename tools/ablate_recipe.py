r"""What each part of the training recipe brings: the recipe, the recipe without one part, and what stood there before.

Trains the dense model of --config-file for --epochs in every variant and with every seed; each run's figures are in
SAVE_DIR/VARIANT/seedN. What is there already is not run again, and an interrupted run goes on. The table of what is
there goes to --output; differences are taken from the recipe under the same seeds.

example: python tools/ablate_recipe.py --root reid-data-dev --weights WEIGHTS --seeds 1 2 3 \
             --save-dir log/ablation --output docs/results/recipe_ablation
"""

import argparse
import sys
from pathlib import Path
from statistics import mean
from typing import Any

from results import CONDITIONS, measured_on, read, without_places, write

from amg_plugin.cli.arguments import finish, logged
from amg_plugin.config.load import load_config
from amg_plugin.errors import AMGError, InputError
from amg_plugin.runs import result as report
from amg_plugin.runs import resuming
from amg_plugin.runs.setup import prepare
from amg_plugin.runs.train import train
from amg_plugin.utils.tables import markdown_table, per_cent

FLIP, BICUBIC, PAD, CROP, ERASE = ("random_flip", "bicubic", "pad_crop", "random_crop", "random_erase")
EVEN, UNEVEN = {"amg.even_batches": True}, {"amg.even_batches": False}
NO_WARMUP = {"amg.warmup_epochs": 0}
ONCE = {"amg.lr_per_step": False}
#: What the configurations said before the recipe, random erasing apart, which the longer training had.
BEFORE = {"train.optim": "adam", **NO_WARMUP, **ONCE, **UNEVEN}


def transforms(*names: str) -> dict[str, list[str]]:
    """Training augmentations besides the flip, and the bicubic resize."""
    return {"data.transforms": [FLIP, *names, BICUBIC]}


#: Variant -> label, keys besides those of the configuration.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "recipe": ("the recipe", {}),
    "adam": ("Adam with L2 in place of AdamW", {"train.optim": "adam"}),
    "no_warmup": ("no warm-up", NO_WARMUP),
    "per_epoch": ("rate set once an epoch", ONCE),
    "no_erasing": ("no erasing", transforms(PAD)),
    "no_crop": ("no crop", transforms(ERASE)),
    "random_crop": ("torchreid's random_crop in place of pad + crop", transforms(CROP, ERASE)),
    "uneven": ("torchreid's sampler without even batches", UNEVEN),
    "before": ("before: Adam, once an epoch, no warm-up, random_crop", {**BEFORE, **transforms(CROP, ERASE)}),
    "before_pad_crop": ("before, with pad + crop", {**BEFORE, **transforms(PAD, ERASE)}),
    "before_even": ("before, with even batches", {**BEFORE, **transforms(CROP, ERASE), **EVEN}),
    "before_warmup": ("before, with warm-up and rates per step",
                      {"train.optim": "adam", **UNEVEN, **transforms(CROP, ERASE)}),
}  # fmt: skip


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, metavar="FOLDER", help="folder that holds the data sets")
    parser.add_argument("--weights", default="", metavar="FILE", help="pretrained weights, for amg.weights")
    parser.add_argument("--config-file", default="market1501/dev_split_vits14_long", metavar="FILE")
    parser.add_argument("--epochs", type=int, default=20, help="epochs of every run, a tenth warm-up (%(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1], metavar="N", help="default: 1")
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS), choices=list(VARIANTS), metavar="NAME",
                        help=f"out of {', '.join(VARIANTS)}; none only makes the table")  # fmt: skip
    parser.add_argument("--save-dir", required=True, metavar="FOLDER", help="folder for the runs")
    parser.add_argument("--output", metavar="PATH", help="without suffix; .json and .md are written")
    parser.add_argument("--notes", metavar="FILE", help="Markdown text to put below the table")
    parser.add_argument("--keys", nargs="*", default=[], metavar="KEY VALUE", help="configuration keys for all runs")
    return parser.parse_args()


def place(args: argparse.Namespace, variant: str, seed: int) -> Path:
    """The folder of one run."""
    return Path(args.save_dir) / variant / f"seed{seed}"


def run(args: argparse.Namespace, variant: str, seed: int) -> None:
    """Train one variant, unless that was done before."""
    folder = place(args, variant, seed)
    if (folder / report.FILE_NAME).is_file():
        return
    keys = {"train.max_epoch": args.epochs, "amg.warmup_epochs": args.epochs / 10, **VARIANTS[variant][1]}
    keys |= {"data.root": args.root, "data.save_dir": str(folder), "train.seed": seed}
    keys |= {"amg.weights": args.weights} if args.weights else {}
    words = [word for pair in keys.items() for word in pair]
    cfg = load_config(args.config_file, [*words, *args.keys], use_schedule=False)
    start = resuming.begin(cfg, "train", None, resume=True, anyway=False, overwrite=False)
    prepare(cfg)
    with logged(str(folder), "train", start) as started:
        finish(cfg, "train", train(cfg, start=start), started)


def collect(args: argparse.Namespace) -> dict[str, Any]:
    """What the finished runs say: per variant, figures and conditions of every seed."""
    variants: dict[str, Any] = {}
    for variant, (label, keys) in VARIANTS.items():
        runs = {}
        for seed in args.seeds:
            path = place(args, variant, seed) / report.FILE_NAME
            if path.is_file():
                found = read(path)
                scores = {key: found["dense"][key] for key in ("rank1", "mAP")}
                runs[str(seed)] = {**scores, **{key: found[key] for key in CONDITIONS}}
                config = without_places(found["config"])  # seeds differ in nothing else
        if runs:
            variants[variant] = {"label": label, "keys": keys, "runs": runs, "config": config}
    if not variants:
        raise InputError(f"'{args.save_dir}' holds no finished run of --seeds {' '.join(map(str, args.seeds))}.")
    return {"config_file": args.config_file, "epochs": args.epochs, "variants": variants}


def markdown(result: dict[str, Any]) -> str:
    """The table, and what it was measured on."""
    base = result["variants"].get("recipe", {"runs": {}})["runs"]
    rows = []
    for entry in result["variants"].values():
        runs, shared = entry["runs"], [seed for seed in entry["runs"] if seed in base]
        cells = [per_cent([run[key] for run in runs.values()]) for key in ("rank1", "mAP")]
        change = 100 * mean(runs[seed]["mAP"] - base[seed]["mAP"] for seed in shared) if shared else None
        rows.append([entry["label"], *cells, "" if change is None else f"{change:+.1f}", ", ".join(runs)])
    every = [run for entry in result["variants"].values() for run in entry["runs"].values()]
    table = markdown_table(["variant", "Rank-1 %", "mAP %", "mAP - recipe's", "seeds"], rows, left=(0,))
    return f"{table}\n\n{result['epochs']} epochs, configuration `{result['config_file']}`. {measured_on(every)}."


def main() -> int:
    """Run what is missing, then write the table."""
    args = parse_arguments()
    for seed in args.seeds:
        for variant in args.variants:
            run(args, variant, seed)
    result = collect(args)
    write(args, result, markdown(result), "What each part of the training recipe brings")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except AMGError as error:
        print(f"ablate_recipe: error: {error}", file=sys.stderr)
        sys.exit(error.exit_status)
