"""``tools/check_networks.py``: names of timm, pruned and in each form."""

from pathlib import Path

import pytest

TOOL = Path(__file__).resolve().parents[2] / "tools" / "check_networks.py"
pytestmark = pytest.mark.skipif(not TOOL.is_file(), reason="the tests do not run from a checkout")


def test_the_page_has_a_row_for_each_structure_and_each_reason_to_refuse(run_script, tmp_path):
    page = tmp_path / "networks.md"
    names = ["test_vit4", "deit3_small_patch16_*", "resnet18", "beit_base_patch16_224"]
    outcome = run_script(TOOL, "--names", *names, "--no-onnx", "--output", page)
    assert outcome.returncode == 0, outcome.stderr
    text = page.read_text(encoding="utf-8")
    assert "3 names of timm in 2 structures are accepted, 2 are refused, 0 fail" in text
    assert "| deit3_small_patch16_224 | 2 |" in text
    assert "dynamic_img_size" in text
    assert "| Beit is not a plain ViT | 1 |" in text


def test_a_pattern_without_names_is_refused(run_script):
    outcome = run_script(TOOL, "--names", "nosuch*")
    assert outcome.returncode == 2
    assert "nosuch" in outcome.stderr
