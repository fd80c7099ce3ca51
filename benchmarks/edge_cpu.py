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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm

from amg_plugin.bench import table
from amg_plugin.bench.run import FORMS, Settings, environment, run
from amg_plugin.bench.subjects import BACKBONES, Subject, from_backbone, from_structure
from amg_plugin.errors import AMGError
from amg_plugin.inference import fast

SIZE = (256, 128)
PLAN = "head25-token25"
RATES = (5, 10, 15, 20, 25, 30, 40, 50, 60)
#: What the share of the counted saving that is saved as time should come to.
TARGET = 0.9
ROUNDS = {1: 30, 16: 7}


def networks(section: str) -> list[Subject]:
    """What a section compares."""
    if section == "rates":
        return from_structure("vit_amg_small", [f"head{rate}-token{rate}" for rate in RATES], SIZE)
    if section == "backbones":
        return [*from_structure("vit_amg_small", [PLAN], SIZE), *(from_backbone(name, SIZE) for name in BACKBONES)]
    model, stride = TARGETS[section]
    return from_structure(model, [PLAN], SIZE, stride)


TARGETS = {"small": ("vit_amg_small", 0), "base": ("vit_amg", 0), "base_stride12": ("vit_amg", 12)}
SECTIONS = (*TARGETS, "rates", "backbones", "profile")


def settings_of(section: str, scale: float) -> list[Settings]:
    """How a section is measured."""
    if section == "rates":
        return [Settings(forms=("fast", "onnx"), rounds=_scaled(30, scale), memory=False)]
    return [
        Settings(
            forms=tuple(FORMS) if section == "small" else ("fast", "onnx"),
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


def profiled(passes: int = 20) -> dict[str, Any]:
    """Time per kind of operation in the fast form, dense and pruned, batch 1 on one thread."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    images, found = torch.randn(1, 3, *SIZE), []
    dense, pruned = (fast(subject.build()) for subject in from_structure("vit_amg_small", [PLAN], SIZE))
    with torch.no_grad():
        for network in (dense, pruned):
            for _ in range(3):
                network(images)
            with profile(activities=[ProfilerActivity.CPU]) as record:
                for _ in range(passes):
                    network(images)
            found.append({event.key: event.self_cpu_time_total / passes / 1e3 for event in record.key_averages()})
    return {"dense": found[0], "pruned": found[1], "environment": environment(Settings(), {"torch": torch.__version__})}


KINDS = {
    "products with weights": ("mkldnn::_linear_pointwise",),
    "attention": ("aten::_scaled_dot_product_flash_attention_for_cpu", "aten::scaled_dot_product_attention"),
    "layer norms": ("aten::native_layer_norm", "aten::layer_norm"),
    "gathers, copies, joins": ("aten::index_select", "aten::cat", "aten::copy_", "aten::clone", "aten::contiguous"),
}


def by_kind(times: dict[str, float]) -> dict[str, float]:
    """Milliseconds per kind; what is left is views, allocation and other bookkeeping of PyTorch."""
    kinds = {kind: sum(times.get(name, 0.0) for name in names) for kind, names in KINDS.items()}
    return {**kinds, "views, allocation, dispatch": sum(times.values()) - sum(kinds.values())}


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
    dense, pruned = by_kind(result["dense"]), by_kind(result["pruned"])
    lines = ["| kind of operation | dense ms | pruned ms | saved |", "| --- | ---: | ---: | ---: |"]
    for kind in dense:
        saved = 100 * (1 - pruned[kind] / dense[kind])
        lines.append(f"| {kind} | {dense[kind]:.2f} | {pruned[kind]:.2f} | {saved:.0f} % |")
    return lines


def _rounds(section: str, where: dict[str, Any]) -> str:
    return f"{section} " + ", ".join(f"{count} at batch {batch}" for batch, count in where["rounds"].items())


def document(results: dict[str, Any], command: str) -> str:
    """The whole page."""
    measured = [result["environment"] for name, result in results.items() if name != "profile"]
    where = measured[0] if measured else results["profile"]["environment"]
    versions = ", ".join(f"{name} {version}" for name, version in where["versions"].items())
    rounds = "; ".join(_rounds(name, result["environment"]) for name, result in results.items() if name != "profile")
    lines = [
        "# Time saved on a CPU",
        "",
        f"{where['device']}, {where['cores']} cores, {where['system']}; {versions}. Random weights, random images of "
        "256x128. A virtual machine that other work shared: only ratios of neighbouring runs mean something.",
        "",
        "```",
        command,
        "```",
        "",
        f"Networks run in turn; rounds: {rounds}. Time saved: median over the rounds of 1 - pruned / dense, quartiles "
        "beside it. Realised: time saved / MACs saved, as counted by `amg-reid inspect`. Dense and pruned networks "
        "are in the same form:",
        "",
        *(f"- {form}: {meaning}." for form, meaning in FORMS.items()),
        "",
        f"## {PLAN}, variant block",
        "",
        f"Bold: at least {TARGET:g}.",
        "",
        *lines_of_targets(results),
    ]
    if "rates" in results:
        lines += ["", "## Rates", "", "ViT-S/16, batch 1, one thread.", "", *lines_of_rates(results["rates"]["rows"])]
    if "backbones" in results:
        lines += ["", "## torchreid's light backbones", ""]
        for title, cells in table.tables(results["backbones"]["rows"]).items():
            rule = ["---", *["---:"] * (len(table.HEADER) - 1)]
            lines += [f"{title}:", "", *(f"| {' | '.join(line)} |" for line in (table.HEADER, rule, *cells)), ""]
        lines.pop()
    if "profile" in results:
        lines += ["", "## Where the time goes", ""]
        lines += [
            "Fast form, ViT-S/16, batch 1, one thread, by torch.profiler; its own cost is in the small operations."
        ]
        lines += ["", *lines_of_profile(results["profile"])]
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and write; 0 on success."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--rounds", type=float, default=1.0, metavar="FACTOR", help="more or fewer rounds (default: 1)")
    parser.add_argument("--output", default="docs/results/edge_cpu", metavar="NAME", help="NAME.json and NAME.md")
    options = parser.parse_args(argv)
    path = Path(f"{options.output}.json")
    results = json.loads(path.read_text(encoding="utf-8"))["sections"] if path.exists() else {}
    command = shlex.join(["python", "benchmarks/edge_cpu.py"])
    for section in options.sections:
        results[section] = profiled() if section == "profile" else measure(section, options.rounds)
        ordered = {name: results[name] for name in SECTIONS if name in results}
        table.write(path, json.dumps({"command": command, "sections": ordered}, indent=1) + "\n")
        table.write(path.with_suffix(".md"), document(ordered, command))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except AMGError as error:
        sys.exit(f"edge_cpu: error: {error}")
