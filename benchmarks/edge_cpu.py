"""Tables of docs/results/edge_cpu.md: what head and token pruning saves in time on a CPU.

Sections can be measured one at a time; what was measured before stays in the JSON file.

  python benchmarks/edge_cpu.py
  python benchmarks/edge_cpu.py --sections rates profile --output docs/results/edge_cpu
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm

from amg_plugin.bench import table
from amg_plugin.bench.run import Settings, environment, run
from amg_plugin.bench.subject import Subject
from amg_plugin.bench.subjects import BACKBONES, from_backbone, from_structure
from amg_plugin.deploy.fast import fast
from amg_plugin.deploy.fast.layers import FastLinear
from amg_plugin.errors import AMGError, InputError
from amg_plugin.models import complexity
from amg_plugin.registries.formats import forms
from amg_plugin.utils.files import write_text

SIZE = (256, 128)
PLAN = "head25-token25"
RATES = (5, 10, 15, 20, 25, 30, 40, 50, 60)
#: What the share of the counted saving that is saved as time should come to.
TARGET = 0.9
ROUNDS = {1: 30, 16: 7}
OUTPUT = "docs/results/edge_cpu"


def networks(section: str) -> list[Subject]:
    """What a section compares."""
    if section == "rates":
        return from_structure("vit_amg_small", [f"head{rate}-token{rate}" for rate in RATES], SIZE)
    if section == "backbones":
        return [*from_structure("vit_amg_small", [PLAN], SIZE), *(from_backbone(name, SIZE) for name in BACKBONES)]
    if section == "reducers":
        return from_structure("vit_amg_small", [PLAN], SIZE, reducers=("tome", "evit"))
    model, stride = TARGETS[section]
    return from_structure(model, [PLAN], SIZE, stride)


TARGETS = {"small": ("vit_amg_small", 0), "base": ("vit_amg", 0), "base_stride12": ("vit_amg", 12)}
SECTIONS = (*TARGETS, "rates", "reducers", "backbones", "profile")
#: Sections with the tables of ``amg-reid bench`` -> their headings.
TABLES = {"reducers": "ToMe and EViT at the same MACs", "backbones": "torchreid's light backbones"}


def settings_of(section: str, scale: float) -> list[Settings]:
    """How a section is measured."""
    if section == "rates":
        return [Settings(forms=("fast", "onnx"), rounds=_scaled(30, scale), memory=False)]
    return [
        Settings(
            forms=("eager", "fast", "onnx") if section == "small" else ("fast", "onnx"),
            threads=(1, 2),
            batches=(batch,),
            rounds=_scaled(rounds, scale),
            warmup=2 if batch == 1 else 1,
            memory=section == "backbones" and batch == 1,
        )
        for batch, rounds in ROUNDS.items()
    ]


def _scaled(rounds: int, scale: float) -> int:
    return max(2, round(rounds * scale))


def measure(section: str, scale: float) -> dict[str, Any]:
    """Rows and samples of a section."""
    subjects, cases, where = networks(section), [], {}
    for settings in settings_of(section, scale):
        with tqdm(total=settings.total_rounds, desc=section, disable=None, leave=False) as bar:
            result = run(subjects, settings, lambda what, finished, bar=bar: bar.update(finished))
        cases += result["cases"]
        where = {
            **result["environment"],
            "rounds": {**where.get("rounds", {}), str(settings.batches[0]): settings.rounds},
        }
    rows = table.rows({"subjects": result["subjects"], "cases": cases})
    samples = [{**case, "samples": _short(case["samples"])} for case in cases]
    return {"rows": rows, "cases": samples, "environment": where, "warnings": table.warnings(rows)}


def _short(samples: dict[str, list[float]]) -> dict[str, list[float]]:
    return {name: [round(value, 6) for value in values] for name, values in samples.items()}


def profiled(passes: int = 10, turns: int = 6) -> dict[str, Any]:
    """Time and MACs per kind of operation in the fast form, dense and pruned, batch 1.

    Returns:
        ``macs`` (network -> kind -> MACs), ``cases`` (threads -> network -> kind -> milliseconds, medians over turns in
        which the networks alternate), ``cached`` (threads -> network -> milliseconds of the products alone, with
        weights that are in the cache already) and ``environment``.
    """
    torch.manual_seed(0)
    images = torch.randn(1, 3, *SIZE)
    subjects = dict(zip(("dense", "pruned"), from_structure("vit_amg_small", [PLAN], SIZE), strict=True))
    networks = {name: fast(subject.build()) for name, subject in subjects.items()}
    cases: dict[str, Any] = {}
    cached: dict[str, Any] = {}
    for threads in (1, 2):
        torch.set_num_threads(threads)
        turned: dict[str, list[dict[str, float]]] = {name: [] for name in networks}
        again: dict[str, list[float]] = {name: [] for name in networks}
        for _ in tqdm(range(turns), desc=f"profile, {threads} threads", disable=None, leave=False):
            for name, network in networks.items():
                turned[name].append(times_by_kind(network, images, passes))
                again[name].append(_products_in_cache(network, images, passes))
        cached[str(threads)] = {name: median(found) for name, found in again.items()}
        cases[str(threads)] = {
            name: {kind: median(turn[kind] for turn in found) for kind in KINDS} for name, found in turned.items()
        }
    macs = {name: macs_by_kind(subject) for name, subject in subjects.items()}
    return {
        "macs": macs,
        "cases": cases,
        "cached": cached,
        "environment": environment(Settings(), {"torch": torch.__version__}),
    }


MANY, ONE = "products with weights, many tokens", "products with weights, one token"
ATTENTION, NORMS, COPIES, REST = "attention", "layer norms", "gathers, copies, joins", "views, allocation, dispatch"
CACHED = "for comparison: all products alone, weights in the cache"
KINDS = (MANY, ONE, ATTENTION, NORMS, COPIES, REST)
_KIND_OF = {
    "aten::_scaled_dot_product_flash_attention_for_cpu": ATTENTION,
    "aten::scaled_dot_product_attention": ATTENTION,
    "aten::native_layer_norm": NORMS,
    "aten::layer_norm": NORMS,
    **dict.fromkeys(("aten::index_select", "aten::cat", "aten::copy_", "aten::clone", "aten::contiguous"), COPIES),
}


def times_by_kind(network: torch.nn.Module, images: torch.Tensor, passes: int) -> dict[str, float]:
    """Milliseconds per pass; what is left is views, allocation and other bookkeeping of PyTorch."""
    found = dict.fromkeys(KINDS, 0.0)
    with torch.no_grad():
        for _ in range(2):
            network(images)
        with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as record:
            for _ in range(passes):
                network(images)
    for event in record.key_averages(group_by_input_shape=True):
        kind = _KIND_OF.get(event.key, REST)
        if event.key == "mkldnn::_linear_pointwise":
            kind = ONE if event.input_shapes[0][0] == 1 else MANY
        found[kind] += event.self_cpu_time_total / passes / 1e3
    return found


def _products_in_cache(network: torch.nn.Module, images: torch.Tensor, passes: int) -> float:
    """Milliseconds of all products with weights of a pass, each run several times in a row before the next."""
    calls: list[tuple[torch.nn.Module, tuple[torch.Tensor, ...]]] = []
    layers = [module for module in network.modules() if isinstance(module, FastLinear)]
    hooks = [layer.register_forward_pre_hook(lambda layer, given: calls.append((layer, given))) for layer in layers]
    seconds = 0.0
    with torch.no_grad():
        network(images)
        for hook in hooks:
            hook.remove()
        for layer, given in calls:
            layer(*given)
            started = time.perf_counter()
            for _ in range(passes):
                layer(*given)
            seconds += (time.perf_counter() - started) / passes
    return 1e3 * seconds


def macs_by_kind(subject: Subject) -> dict[str, int]:
    """Counted MACs of the fast form by kind of operation."""
    network = fast(subject.build(), pack=False)
    found = dict.fromkeys((MANY, ONE, ATTENTION), 0)
    for block in network.blocks:
        width, hidden, inner = block.fc2.weight.shape[0], block.fc1.weight.shape[0], block.proj.weight.shape[1]
        found[ATTENTION] += 2 * block.num_heads * block.head_dim * block.queries * block.keys
        asking = block.queries * width * (inner + 2 * hidden)
        if block.fused:
            found[MANY] += block.keys * width * 3 * inner
        else:
            found[MANY] += block.keys * width * 2 * inner
            asking += block.queries * width * inner
        found[ONE if block.queries == 1 else MANY] += asking
    found[MANY] += complexity.count(network, *SIZE)["macs"] - sum(found.values())  # the patch embedding
    return found


def lines_of_targets(results: dict[str, Any]) -> list[str]:
    """Markdown of the target's table."""
    lines = [
        "| network | form | threads | batch | dense ms | pruned ms | MACs saved | time saved (quartiles) | realised |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for section in TARGETS:
        rows = results.get(section, {}).get("rows", [])
        for row in rows:
            if "time_saved" not in row:
                continue
            where = ("form", "threads", "batch")
            dense = next(
                other
                for other in rows
                if other["network"] == row["baseline"] and all(other[key] == row[key] for key in where)
            )
            low, high = row["time_saved_quartiles"]
            mark = "**" if row["realised"] >= TARGET else ""
            lines.append(
                f"| {row['baseline'].removeprefix('dense ')} | {row['form']} | {row['threads']} | {row['batch']} | "
                f"{dense['milliseconds']:.1f} | {row['milliseconds']:.1f} | {100 * row['macs_saved']:.1f} % | "
                f"{100 * row['time_saved']:.1f} % ({100 * low:.1f} to {100 * high:.1f}) | "
                f"{mark}{row['realised']:.2f}{mark} |"
            )
    return lines


def lines_of_rates(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Markdown of the grid of rates."""
    lines = [
        "| rates | form | ms | MACs saved | time saved (quartiles) | realised |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        if "time_saved" in row:
            low, high = row["time_saved_quartiles"]
            lines.append(
                f"| {row['network'].split()[0]} | {row['form']} | {row['milliseconds']:.1f} | "
                f"{100 * row['macs_saved']:.1f} % | {100 * row['time_saved']:.1f} % "
                f"({100 * low:.1f} to {100 * high:.1f}) | {row['realised']:.2f} |"
            )
    return lines


def lines_of_profile(result: dict[str, Any]) -> list[str]:
    """Markdown of the profile."""
    macs = result["macs"]
    lines = [
        "| kind of operation | threads | dense ms | pruned ms | time saved | MACs saved |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for threads, case in result["cases"].items():
        for kind in (*KINDS, "all"):
            dense, pruned = (
                sum(case[name].values()) if kind == "all" else case[name][kind] for name in ("dense", "pruned")
            )
            counted = [sum(macs[name].values()) if kind == "all" else macs[name].get(kind, 0) for name in macs]
            share = f"{100 * (1 - counted[1] / counted[0]):.0f} %" if counted[0] else ""
            lines.append(
                f"| {kind} | {threads} | {dense:.2f} | {pruned:.2f} | {100 * (1 - pruned / dense):.0f} % | {share} |"
            )
        if "cached" in result:
            dense, pruned = (result["cached"][threads][name] for name in ("dense", "pruned"))
            lines.append(
                f"| {CACHED} | {threads} | {dense:.2f} | {pruned:.2f} | {100 * (1 - pruned / dense):.0f} % | |"
            )
    return lines


def _rounds(section: str, where: dict[str, Any]) -> str:
    return f"{section} " + ", ".join(f"{count} at batch {batch}" for batch, count in where["rounds"].items())


def document(results: dict[str, Any]) -> str:
    """The whole page."""
    measured = [result["environment"] for name, result in results.items() if name != "profile"]
    where = measured[0] if measured else results["profile"]["environment"]
    versions = ", ".join(f"{name} {version}" for name, version in where["versions"].items())
    rounds = "; ".join(_rounds(name, result["environment"]) for name, result in results.items() if name != "profile")
    lines = [
        "# Time saved on a CPU",
        "",
        f"{where['device']}, {where['cores']} cores, {where['system']}; {versions}. Random weights, random images of "
        "256x128. Other work may have shared the machine: only ratios of neighbouring runs mean something.",
        "",
        "```",
        *dict.fromkeys(result["command"] for result in results.values()),
        "```",
        "",
        f"Networks run in turn; rounds: {rounds}. Time saved: median over the rounds of 1 - pruned / dense, quartiles "
        "beside it. Realised: time saved / MACs saved, as counted by `amg-reid inspect`. Dense and pruned networks "
        "are in the same form:",
        "",
        *(f"- {form}: {forms()[form]}." for form in ("eager", "fast", "onnx")),
        "",
        f"## {PLAN}, variant block",
        "",
        f"Bold: at least {TARGET:g}.",
        "",
        *lines_of_targets(results),
    ]
    if "rates" in results:
        lines += ["", "## Rates", "", "ViT-S/16, batch 1, one thread.", "", *lines_of_rates(results["rates"]["rows"])]
    for name in [name for name in TABLES if name in results]:
        lines += ["", f"## {TABLES[name]}", ""]
        for title, cells in table.tables(results[name]["rows"]).items():
            rule = ["---", *["---:"] * (len(table.HEADER) - 1)]
            lines += [f"{title}:", "", *(f"| {' | '.join(line)} |" for line in (table.HEADER, rule, *cells)), ""]
        lines.pop()
    if "profile" in results:
        lines += ["", "## Where the time goes", ""]
        lines += [
            "Fast form, ViT-S/16, batch 1, by torch.profiler, whose own cost is in the small operations. MACs are "
            "those of the fast form."
        ]
        lines += ["", *lines_of_profile(results["profile"])]
    return "\n".join(lines) + "\n"


def before(path: Path) -> dict[str, Any]:
    """Sections that were measured before."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))["sections"] if path.exists() else {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"'{path}' holds no sections of this script ({error}); choose another --output.") from error


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and write; 0 on success."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--rounds", type=float, default=1.0, metavar="FACTOR", help="more or fewer rounds (default: 1)")
    parser.add_argument("--output", default=OUTPUT, metavar="NAME", help="NAME.json and NAME.md")
    options = parser.parse_args(argv)
    path = Path(f"{options.output}.json")
    results = before(path)
    command = ["python", "benchmarks/edge_cpu.py"]
    command += ["--sections", *options.sections] if options.sections != list(SECTIONS) else []
    command += ["--rounds", f"{options.rounds:g}"] if options.rounds != 1 else []
    if options.output != OUTPUT and not path.is_absolute():  # whose folders are nobody else's
        command += ["--output", options.output]
    for section in options.sections:
        found = profiled() if section == "profile" else measure(section, options.rounds)
        results[section] = {"command": shlex.join(command), **found}
        ordered = {name: results[name] for name in SECTIONS if name in results}
        write_text(path, json.dumps({"sections": ordered}, indent=1) + "\n")
        write_text(path.with_suffix(".md"), document(ordered))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except AMGError as error:
        print(f"edge_cpu: error: {error}", file=sys.stderr)
        sys.exit(error.exit_status)
