r"""Compare ways to save the same share of MACs on one dense checkpoint: without training, after fine-tuning, in time.

For every method and seed: take a dense checkpoint, remove what the method removes, evaluate (step 'before'); fine-tune
all methods in the same way, with distillation from the dense checkpoint if amg.distill is enabled, and evaluate again
(step 'after'). 'dense' is the dense model and, after the same fine-tuning, the control. With --latency the networks are
timed in ONNX Runtime and in the fast form, in turn. Each method's figures are in SAVE_DIR/seedN/METHOD/STEP; what is
there already is not run again, and fine-tuning goes on in the epoch it had reached. The table of what is there goes to
--output, with 95 % bootstrap intervals over the queries.

'torch_pruning' needs the package torch-pruning (tools/torch_pruning_heads.py says how to get it).

example: python tools/compare_methods.py --weights log/dense/last.pth --root DATA --steps before \
             --save-dir log/equal_macs --output docs/results/market1501_equal_macs
         python tools/compare_methods.py --weights log/dense{seed}/last.pth --seeds 1 2 3 --root DATA \
             --save-dir log/equal_macs --output docs/results/market1501_equal_macs --latency
         python tools/results.py seeds dense=log/equal_macs/seed1/dense/before/result.json \
             control=log/equal_macs/seed1/dense/after/result.json amg=log/equal_macs/seed1/amg/after/result.json \
             beyond=log/equal_macs/seed1/beyond/after/result.json tome=log/equal_macs/seed1/tome/after/result.json ... \
             --reference dense --title "Market-1501 dev split" --output docs/results/market1501_seeds
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

from results import CONDITIONS, measured_on, read, without_places, write
from torch import nn
from tqdm import tqdm
from yacs.config import CfgNode

from amg_plugin.bench import run as bench
from amg_plugin.bench.subject import Subject
from amg_plugin.bench.subjects import BACKBONES, from_backbone
from amg_plugin.checkpoint import LAST_CHECKPOINT, Checkpoint, read_checkpoint, save_checkpoint
from amg_plugin.cli.arguments import finish, logged
from amg_plugin.config import to_plain_dict
from amg_plugin.config.load import load_config
from amg_plugin.data.manager import build_datamanager
from amg_plugin.engine import AMGPruningHook
from amg_plugin.engine.calibration import build_calibration, scoring_mode
from amg_plugin.errors import AMGError, InputError
from amg_plugin.evaluation.intervals import bootstrap_interval
from amg_plugin.pruning import apply_plan, current_plan
from amg_plugin.registries import TARGETS, register_hook
from amg_plugin.runs import result as report
from amg_plugin.runs import resuming
from amg_plugin.runs.details import per_query, read_details, write_details
from amg_plugin.runs.setup import assemble, build_evaluator, check_identities, fitted, prepare
from amg_plugin.runs.train import train
from amg_plugin.utils.files import write_text
from amg_plugin.utils.preprocessing import Preprocessing
from amg_plugin.utils.tables import markdown_table, per_cent

BEFORE, AFTER = "before", "after"
LATENCY = "latency.json"
FORMS, BATCHES = ("onnx", "fast"), (1, 16)
HEADS, TOKENS, NEURONS = "heads", "tokens", "neurons"


@dataclass(frozen=True)
class Method:
    """A row of the table.

    Attributes:
        label: What it is called.
        cuts: What is cut, in this order; empty: nothing.
        keys: Configuration keys besides those of the configuration.
        neurons: Share of the saving that hidden units give; it is taken from that of the tokens.
        only_share: Cuts of heads alone save no more than their share.
        peer: Torch-Pruning cuts the heads.
    """

    label: str
    cuts: tuple[str, ...] = ()
    keys: Mapping[str, Any] = field(default_factory=dict)
    neurons: float = 0.0
    only_share: bool = False
    peer: bool = False

    def words(self, saving: float, balance: float) -> dict[str, Any]:
        """Configuration keys that decide what is removed, if heads give the share ``balance`` of the saving."""
        shares = {HEADS: balance, TOKENS: 1 - balance - self.neurons, NEURONS: self.neurons}
        if len(self.cuts) == 1:
            saving, shares = saving * balance if self.only_share else saving, {self.cuts[0]: 1.0}
        if not self.cuts and not self.keys:
            saving = 0.0
        schedule = [{"target": target} for target in self.cuts]
        return {"amg.target_macs_saving": saving, "amg.balance": shares, "amg.schedule": schedule, **self.keys}


REPAIR = {"amg.repair": "least_squares"}
TAYLOR = {"amg.head_scorer": "taylor"}
PER_IMAGE = {"amg.token_scorer": "amg_image", "amg.layer_decay": 0.0}
MERGE = {**PER_IMAGE, "amg.token_variant": "merge"}
METHODS: dict[str, Method] = {
    "dense": Method("dense"),
    "amg": Method("AMG", (HEADS, TOKENS)),
    "amg_heads": Method("AMG, heads only", (HEADS,), only_share=True),
    "amg_tokens": Method("AMG, tokens only", (TOKENS,)),
    "amg_repair": Method("AMG with repair", (HEADS, TOKENS), REPAIR),
    "taylor_heads": Method("beyond: Taylor heads only", (HEADS,), TAYLOR, only_share=True),
    "taylor_repair": Method("beyond: Taylor heads only, repair", (HEADS,), {**TAYLOR, **REPAIR}, only_share=True),
    "image_tokens": Method("beyond: tokens per image only", (TOKENS,), PER_IMAGE),
    "merge_tokens": Method("beyond: merging only", (TOKENS,), MERGE),
    "beyond_block": Method("beyond: Taylor heads, tokens per image, repair", (HEADS, TOKENS),
                           {**TAYLOR, **PER_IMAGE, **REPAIR}),
    "beyond": Method("beyond: Taylor heads, repair, merging", (HEADS, TOKENS), {**TAYLOR, **MERGE, **REPAIR}),
    "beyond_neurons": Method("beyond: Taylor heads and neurons, repair, merging", (HEADS, NEURONS, TOKENS),
                             {**TAYLOR, **MERGE, **REPAIR}, neurons=0.3),
    "tome": Method("ToMe", keys={"amg.reducer": "tome"}),
    "evit": Method("EViT", keys={"amg.reducer": "evit"}),
    "torch_pruning": Method("heads by Torch-Pruning, tokens by AMG", (HEADS, TOKENS), peer=True),
    "magnitude": Method("heads by weight magnitude, tokens by class attention", (HEADS, TOKENS),
                        {"amg.head_scorer": "magnitude", "amg.token_scorer": "cls_attention"}),
    "random": Method("random heads and tokens", (HEADS, TOKENS),
                     {"amg.head_scorer": "random", "amg.token_scorer": "random"}),
}  # fmt: skip


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--weights", required=True, metavar="CKPT", help="the dense checkpoint; {seed} stands for the seed")
    add("--seeds", type=int, nargs="+", default=[1], metavar="N", help="seeds of all runs (default: 1)")
    add("--config-file", default="market1501/dev_split_vits14_equal_macs", metavar="FILE")
    add("--root", required=True, metavar="FOLDER", help="folder that holds the data sets")
    add("--save-dir", required=True, metavar="FOLDER", help="folder for the runs")
    add("--saving", type=float, default=0.3, help="share of the counted MACs to save (%(default)s)")
    add("--balance", type=float, default=0.3, help="share of it from heads (%(default)s)")
    add("--methods", type=names_out_of(METHODS), default=list(METHODS), metavar="NAMES",
        help=f"comma-separated, out of {', '.join(METHODS)}; '' only makes the table")  # fmt: skip
    add("--steps", type=names_out_of((BEFORE, AFTER)), default=[BEFORE, AFTER], metavar="NAMES",
        help="before (without fine-tuning), after (fine-tuning) or both")  # fmt: skip
    add("--latency", action="store_true", help="time the networks of --methods and torchreid's light ones")
    add("--rounds", type=int, default=20, help="timed runs of each (%(default)s)")
    add("--output", metavar="PATH", help="without suffix; .json and .md are written")
    add("--title", help="heading of the Markdown file (default: the saving)")
    add("--notes", metavar="FILE", help="Markdown text to put below the table")
    add("opts", nargs=argparse.REMAINDER, metavar="key value", help="configuration keys for all runs")
    return parser.parse_args()


def names_out_of(allowed: Collection[str]) -> Callable[[str], list[str]]:
    """Reads a comma-separated list of names."""

    def parse(text: str) -> list[str]:
        names = [name for name in text.split(",") if name]
        if unknown := [name for name in names if name not in allowed]:
            raise argparse.ArgumentTypeError(f"'{unknown[0]}' is unknown; allowed are {', '.join(allowed)}")
        return names

    return parse


# Runs -----------------------------------------------------------------------------------------------------------------


def place(args: argparse.Namespace, seed: int, method: str, step: str) -> Path:
    """The folder of one run."""
    return Path(args.save_dir) / f"seed{seed}" / method / step


def configuration(args: argparse.Namespace, seed: int, method: str, step: str) -> CfgNode:
    """The configuration of one run."""
    keys = METHODS[method].words(args.saving, args.balance)
    words = [word for key, value in keys.items() for word in (key, value)]
    words += ["data.root", args.root, "data.save_dir", str(place(args, seed, method, step)), "train.seed", seed]
    cfg = load_config(args.config_file, [*words, *args.opts], use_schedule=False)
    if step == AFTER and cfg.amg.distill.enabled:
        words += ["amg.hooks", ["distillation"], "amg.distill.teacher", args.weights.replace("{seed}", str(seed))]
        cfg = load_config(args.config_file, [*words, *args.opts], use_schedule=False)
    return cfg


def run_step(args: argparse.Namespace, seed: int, method: str, step: str) -> None:
    """Carry out one step of a method, unless that was done before."""
    folder, before = (place(args, seed, method, one) for one in (step, BEFORE))
    if (folder / report.FILE_NAME).is_file():
        return
    cfg = configuration(args, seed, method, step)
    source = Path(args.weights.replace("{seed}", str(seed))) if step == BEFORE else before / LAST_CHECKPOINT
    start = None
    if step == AFTER:  # goes on where an interrupted run stopped
        start = resuming.begin(cfg, step, str(source), resume=True, anyway=False, overwrite=False)
    prepare(cfg)
    checkpoint = read_checkpoint(source)
    with logged(str(folder), step, start) as started:
        sections = train(cfg, checkpoint, start) if start else removed(cfg, checkpoint, METHODS[method], folder)
        finish(cfg, step, sections, started)


def removed(cfg: CfgNode, checkpoint: Checkpoint, method: Method, folder: Path) -> dict[str, Any]:
    """Remove what a method removes, without any training; save and evaluate."""
    checkpoint = fitted(checkpoint, cfg)
    model, history = checkpoint.build(), []
    if method.cuts:
        history = cut(cfg, checkpoint, model, method)
    save_checkpoint(
        folder / LAST_CHECKPOINT,
        model,
        config=to_plain_dict(cfg),
        history=history,
        preprocessing=Preprocessing.from_config(cfg.data),
    )
    name = "pruned" if method.cuts else "reduced" if model.spec.reducer else "dense"
    evaluator = build_evaluator(cfg, model)
    section = report.section(evaluator.evaluate(), report.structure(model, cfg.data.height, cfg.data.width))
    write_details(folder, {name: evaluator.queries})
    return {name: section, "history": history}


def cut(cfg: CfgNode, checkpoint: Checkpoint, model: nn.Module, method: Method) -> list[dict[str, Any]]:
    """Carry out every cut at once, as ``amg-reid prune`` does before its first epoch; gives the history."""
    pruning = AMGPruningHook.from_config(cfg)
    datamanager = build_datamanager(cfg)
    check_identities(checkpoint, datamanager)
    apply_plan(model, current_plan(model).with_variant(cfg.amg.token_variant))
    pruning.check(model)
    pruning.repair.check(model, pruning.schedule.targets, len(datamanager.train_loader) * cfg.train.batch_size)
    engine = assemble(cfg, datamanager, model, [], 1)
    for number, one in enumerate(pruning.schedule.cuts):
        if method.peer and number == 0:
            from torch_pruning_heads import cut_heads

            with scoring_mode(model, cfg.amg.calibration.mode):
                plan = cut_heads(model, build_calibration(engine, "score heads"), pruning.goal(one))
        else:
            plan = pruning.carry_out(engine, one)
        structure = {f"{target}_per_block": plan.left(target) for target in TARGETS}
        engine.history.append({"event": "cut", "epoch": 0, "target": one.target, **structure})
    return engine.history


def measure_latency(args: argparse.Namespace) -> None:
    """Time the networks of the first seed in turn, and torchreid's light networks at the same image size."""
    found = Path(args.save_dir) / LATENCY
    files = {name: place(args, args.seeds[0], name, BEFORE) / LAST_CHECKPOINT for name in args.methods}
    files = {name: file for name, file in files.items() if file.is_file()}
    if not files:
        raise InputError("--latency times networks that the step 'before' has made; there are none yet.")
    if found.is_file() and {entry["name"] for entry in read(found)["subjects"]} >= {*files, *BACKBONES}:
        return
    size = read_checkpoint(next(iter(files.values()))).spec.image_size
    subjects = [Subject(name, "checkpoint", size, path=str(file)) for name, file in files.items()]
    subjects += [from_backbone(name, size) for name in BACKBONES]
    settings = bench.Settings(FORMS, (1,), BATCHES, args.rounds, memory=False)
    settings.check()
    with tqdm(total=settings.total_rounds, disable=None, leave=False) as bar:
        result = bench.run(subjects, settings, lambda what, rounds: (bar.set_description(what), bar.update(rounds)))
    write_text(found, json.dumps(result, indent=1) + "\n")


# Table ----------------------------------------------------------------------------------------------------------------


def collect(args: argparse.Namespace) -> dict[str, Any]:
    """What the finished runs say: per method and step, figures and conditions of every seed."""
    methods: dict[str, Any] = {}
    for name, method in METHODS.items():
        entry: dict[str, Any] = {"label": method.label, BEFORE: {}, AFTER: {}, "config": {}}
        entry |= {"intervals": {BEFORE: {}, AFTER: {}}, "runs": {BEFORE: {}, AFTER: {}}}
        for step, seed in product((BEFORE, AFTER), args.seeds):
            folder = place(args, seed, name, step)
            if (folder / report.FILE_NAME).is_file():
                run = read(folder / report.FILE_NAME)
                entry[step][str(seed)] = next(run[key] for key in report.SECTIONS if key in run)
                entry["config"].setdefault(step, without_places(run["config"]))  # seeds differ in nothing else
                entry["runs"][step][str(seed)] = {key: run[key] for key in CONDITIONS}
                entry["intervals"][step][str(seed)] = intervals(folder, place(args, seed, "dense", BEFORE))
        if entry[BEFORE] or entry[AFTER]:
            methods[name] = entry
    if not methods:
        raise InputError(f"'{args.save_dir}' holds no finished run of --seeds {' '.join(map(str, args.seeds))}.")
    result = {"saving": args.saving, "balance": args.balance, "config_file": args.config_file, "methods": methods}
    timed = Path(args.save_dir) / LATENCY
    return {**result, **(latency(read(timed)) if timed.is_file() else {})}


def intervals(run: Path, reference: Path) -> dict[str, list[float]]:
    """Intervals of mAP and Rank-1 of a run, and of the differences from the dense model, paired over the queries."""
    ours, theirs = first_target(run), first_target(reference) if read_details(reference) else None
    found = {}
    for score in ("mAP", "rank1"):
        values = per_query(ours, score)
        found[score] = bootstrap_interval(values)
        if theirs is not None:
            found[f"{score}_difference"] = bootstrap_interval(values - per_query(theirs, score))
    return found


def first_target(run: Path) -> dict[str, Any]:
    """What the queries of the first target contributed to the figures of a run, which has one section."""
    (targets,) = read_details(run)["queries"].values()
    return next(iter(targets.values()))


def latency(timed: dict[str, Any]) -> dict[str, Any]:
    """Median and quartiles in milliseconds: name -> form -> batch."""
    found: dict[str, Any] = {}
    for case in timed["cases"]:
        for name, samples in case["samples"].items():
            low, middle, high = (1000 * value for value in bench.quartiles(samples))
            cell = {"median": middle, "quartiles": [low, high]}
            found.setdefault(name, {}).setdefault(case["form"], {})[str(case["batch"])] = cell
    return {"latency": found, "latency_on": {**timed["environment"], "threads": 1}}


def markdown(result: dict[str, Any]) -> str:
    """The table, and what it was measured on."""
    methods = result["methods"]
    dense = macs_of(methods["dense"]) if "dense" in methods else None
    scored = [f"{step}: Rank-1 / mAP %" for step in ("without fine-tuning", "fine-tuned")]
    header = ["method", "counted MACs (G)", "saved", *(title for one in scored for title in (one, "mAP minus dense"))]
    times = [(form, str(batch)) for form, batch in product(FORMS, BATCHES)] if "latency" in result else []
    header += [f"ms, {form}, batch {batch}" for form, batch in times]
    rows = []
    for name, entry in methods.items():
        cells = [entry["label"], f"{macs_of(entry) / 1e9:.3f}", f"{1 - macs_of(entry) / dense:.1%}" if dense else ""]
        for step in (BEFORE, AFTER):
            cells += [scores(entry, step), difference(methods, name, step)]
        timed = result.get("latency", {}).get(name, {})
        cells += [f"{timed[form][batch]['median']:.1f}" if timed else "" for form, batch in times]
        rows.append(cells)
    for name, timed in result.get("latency", {}).items():
        if name not in METHODS:  # a light network
            rows.append([name, *[""] * 6, *(f"{timed[form][batch]['median']:.1f}" for form, batch in times)])
    return f"{markdown_table(header, rows, left=range(len(header)))}\n\n{conditions(result)}"


def scores(entry: dict[str, Any], step: str) -> str:
    """Rank-1 and mAP of a step."""
    found = entry[step].values()
    return " / ".join(per_cent([run[key] for run in found]) for key in ("rank1", "mAP")) if found else "not run"


def difference(methods: dict[str, Any], name: str, step: str) -> str:
    """mAP minus that of the dense model without fine-tuning, seed by seed; the interval if there is one seed."""
    dense, found = methods.get("dense", {}).get(BEFORE, {}), methods[name][step]
    if not found or not set(found) <= set(dense) or (name, step) == ("dense", BEFORE):
        return ""
    pairs = [run["mAP"] - dense[seed]["mAP"] for seed, run in found.items()]
    text = per_cent(pairs, "+")
    if len(found) > 1:
        return text
    low, high = next(iter(methods[name]["intervals"][step].values()))["mAP_difference"]
    return f"{text} [{100 * low:+.1f}, {100 * high:+.1f}]"


def conditions(result: dict[str, Any]) -> str:
    """What the figures were measured on."""
    entries = result["methods"].values()
    runs = [run for entry in entries for step in (BEFORE, AFTER) for run in entry["runs"][step].values()]
    trained = [entry["config"][AFTER] for entry in entries if AFTER in entry["config"]]
    lines = []
    if trained:
        epochs, distill = trained[0]["train"]["max_epoch"], trained[0]["amg"]["distill"]
        images = trained[0]["train"]["batch_size"] * trained[0]["amg"]["batches_per_epoch"]
        length = f"{images * epochs:,} images" if images else f"{epochs} epoch{'s' * (epochs != 1)}"
        numbers = f"alpha {distill['alpha']:g}, tau {distill['tau']:g}, features {distill['features']:g}"
        taught = f"distillation from the dense model ({numbers})" if distill["enabled"] else "no distillation"
        lines.append(f"Fine-tuning: {length}, the same for all, {taught}.")
    several = len({run["seed"] for run in runs}) > 1
    spread = " (mean ± standard deviation over them; differences are taken seed by seed)"
    brackets = " In brackets: 95 % percentile bootstrap interval over the queries, paired."
    lines.append(f"{measured_on(runs)}{spread if several else ''}.{'' if several else brackets}")
    if "latency_on" in result:
        on = result["latency_on"]
        lines.append(f"Milliseconds per pass: medians of {on['rounds']} on {on['device']}, 1 thread.")
    return " ".join([*lines, f"Configuration `{result['config_file']}`."])


def macs_of(entry: dict[str, Any]) -> float:
    """Counted MACs of a method, mean over its seeds."""
    return mean(section["macs"] for section in (entry[AFTER] or entry[BEFORE]).values())


def main() -> int:
    """Run what is missing, then write the table."""
    args = parse_arguments()
    register_hook("distillation", "amg_plugin.engine.distillation:DistillationHook")
    for seed, step, method in product(args.seeds, args.steps, args.methods):
        run_step(args, seed, method, step)
    if args.latency:
        measure_latency(args)
    result = collect(args)
    title = args.title or f"{100 * args.saving:.0f} % fewer MACs by AMG and by others"
    write(args, result, markdown(result), title)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except AMGError as error:
        print(f"compare_methods: error: {error}", file=sys.stderr)
        sys.exit(error.exit_status)
