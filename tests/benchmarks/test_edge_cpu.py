"""The script behind docs/results/edge_cpu.md: what it writes, without measuring."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from amg_plugin.bench.subjects import from_structure
from amg_plugin.deploy.fast import fast
from amg_plugin.deploy.fast.layers import can_pack
from amg_plugin.errors import InputError
from amg_plugin.models import complexity

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "edge_cpu.py"
if not SCRIPT.exists():
    pytest.skip("the tests do not run from a checkout", allow_module_level=True)


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("edge_cpu", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def quick(script, monkeypatch):
    """Measuring replaced by figures: a pruned network takes 70 % of the dense one's time."""

    def run(subjects, settings, progress):
        described = [
            {**subject.to_dict(), "macs": 70 if subject.baseline else 100, "macs_fast": 60, "params": 1, "bytes": 4}
            for subject in subjects
        ]
        samples = {subject.name: [0.07 if subject.baseline else 0.1] * 3 for subject in subjects}
        cases = [
            {"form": form, "device": "cpu", "threads": threads, "batch": batch, "samples": samples}
            for form, threads in settings.processes
            for batch in settings.batches
        ]
        where = {"device": "cpu", "cores": 1, "system": "s", "rounds": settings.rounds, "versions": {"torch": "0"}}
        return {"subjects": described, "cases": cases, "environment": where}

    monkeypatch.setattr(script, "run", run)
    times = {"dense": dict.fromkeys(script.KINDS, 2.0), "pruned": dict.fromkeys(script.KINDS, 1.0)}
    counted = {script.MANY: 80, script.ONE: 10, script.ATTENTION: 10}
    macs = {"dense": counted, "pruned": {script.MANY: 60, script.ONE: 10}}
    monkeypatch.setattr(script, "profiled", lambda: {"cases": {"2": times}, "macs": macs, "environment": {}})
    return script


def test_sections_are_added_to_those_that_were_measured_before(quick, tmp_path):
    name = str(tmp_path / "edge")
    assert quick.main(["--sections", "small", "--output", name]) == 0
    assert quick.main(["--sections", "rates", "profile", "--output", name]) == 0
    written = json.loads((tmp_path / "edge.json").read_text(encoding="utf-8"))
    assert list(written["sections"]) == ["small", "rates", "profile"]
    text = (tmp_path / "edge.md").read_text(encoding="utf-8")
    assert (
        "python benchmarks/edge_cpu.py --sections small\npython benchmarks/edge_cpu.py --sections rates profile\n"
        in text
    )
    assert (
        "| vit_small_patch16_224 256x128 | fast | 2 | 16 | 100.0 | 70.0 | 30.0 % | 30.0 % (30.0 to 30.0) | **1.00** |"
        in text
    )
    assert text.count("| head60-token60 |") == 2
    assert "rounds: small 30 at batch 1, 7 at batch 16; rates 30 at batch 1." in text
    assert "| products with weights, many tokens | 2 | 2.00 | 1.00 | 50 % | 25 % |" in text
    assert "| layer norms | 2 | 2.00 | 1.00 | 50 % |  |" in text
    assert "| all | 2 | 12.00 | 6.00 | 50 % | 30 % |" in text


@pytest.fixture(scope="module")
def subject():
    return from_structure("vit_amg_tiny", ["head25-token25"], (64, 32))[1]


def test_counted_kinds_of_operations_add_up(script, subject, monkeypatch):
    monkeypatch.setattr(script, "SIZE", (64, 32))
    found = script.macs_by_kind(subject)
    assert sum(found.values()) == complexity.count(fast(subject.build(), pack=False), 64, 32)["macs"]
    patches = 8 * 192 * 3 * 16 * 16
    assert found[script.MANY] > patches
    assert found[script.ONE] < found[script.MANY]


@pytest.mark.skipif(not can_pack(), reason="this torch has no oneDNN")
def test_every_kind_of_operation_is_found_in_a_profile(script, subject):
    found = script.times_by_kind(fast(subject.build()), torch.randn(1, 3, 64, 32), 1)
    assert all(found[kind] > 0 for kind in script.KINDS)


@pytest.mark.parametrize("page", ["edge_cpu", "edge_cpu_xeon"])
def test_the_page_is_the_one_of_the_committed_figures(script, page):
    base = SCRIPT.parents[1] / "docs/results" / page
    results = json.loads(base.with_suffix(".json").read_text(encoding="utf-8"))
    assert script.document(results["sections"]) == base.with_suffix(".md").read_text(encoding="utf-8")


def test_a_file_of_another_kind_is_not_added_to(script, tmp_path):
    (tmp_path / "edge.json").write_text("no figures")
    with pytest.raises(InputError, match="holds no sections"):
        script.main(["--sections", "small", "--output", str(tmp_path / "edge")])


ROWS = {"ViT-S/16": "small", "ViT-B/16": "base", "ViT-B/16, stride 12": "base_stride12"}


def realised(section, form, threads, batch):
    results = json.loads((SCRIPT.parents[1] / "docs/results/edge_cpu.json").read_text(encoding="utf-8"))
    (row,) = (
        row
        for row in results["sections"][section]["rows"]
        if "realised" in row and (row["form"], row["threads"], row["batch"]) == (form, threads, batch)
    )
    return f"{row['realised']:.2f}"


@pytest.mark.parametrize("form", ["fast", "onnx"])
@pytest.mark.parametrize("network", ROWS)
def test_the_page_about_devices_says_what_was_measured(network, form):
    cases = [(form, threads, batch) for batch in (1, 16) for threads in (1, 2)]
    line = f"| {network}, `{form}` | {' | '.join(realised(ROWS[network], *case) for case in cases)} |"
    assert line in (SCRIPT.parents[1] / "docs/edge.md").read_text(encoding="utf-8")
