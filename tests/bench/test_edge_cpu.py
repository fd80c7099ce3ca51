"""The script behind docs/results/edge_cpu.md: what it writes, without measuring."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

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
            {"form": form, "threads": threads, "batch": batch, "samples": samples}
            for form, threads in settings.processes
            for batch in settings.batches
        ]
        where = {"device": "cpu", "cores": 1, "system": "s", "rounds": settings.rounds, "versions": {"torch": "0"}}
        return {"subjects": described, "cases": cases, "environment": where}

    monkeypatch.setattr(script, "run", run)
    monkeypatch.setattr(
        script, "profiled", lambda: {"dense": {"aten::copy_": 2.0, "x": 1.0}, "pruned": {"x": 1.0}, "environment": {}}
    )
    monkeypatch.setattr(script, "by_kind", lambda times: {"all": sum(times.values())})
    return script


def test_sections_are_added_to_those_that_were_measured_before(quick, tmp_path):
    name = str(tmp_path / "edge")
    assert quick.main(["--sections", "small", "--output", name]) == 0
    assert quick.main(["--sections", "rates", "profile", "--output", name]) == 0
    written = json.loads((tmp_path / "edge.json").read_text(encoding="utf-8"))
    assert list(written["sections"]) == ["small", "rates", "profile"]
    text = (tmp_path / "edge.md").read_text(encoding="utf-8")
    assert (
        "| vit_small_patch16_224 256x128 | fast | 2 | 16 | 100.0 | 70.0 | 30.0 % | 30.0 % (30.0 to 30.0) | **1.00** |"
        in text
    )
    assert text.count("| head60-token60 |") == 2
    assert "rounds: small 30 at batch 1, 7 at batch 16; rates 30 at batch 1." in text
    assert "| all | 3.00 | 1.00 | 67 % |" in text


def test_kinds_of_operations_add_up(script):
    kinds = script.by_kind({"mkldnn::_linear_pointwise": 5.0, "aten::view": 1.0, "aten::cat": 0.5, "aten::copy_": 0.5})
    assert sum(kinds.values()) == pytest.approx(7.0)
    assert kinds["products with weights"] == 5.0
    assert kinds["gathers, copies, joins"] == 1.0
