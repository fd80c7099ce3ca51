"""The published tables: totals, figures that must come out, forms."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
import torch
from published_state import la_transformer, transreid
from torch import nn

from amg_plugin.complexity import published_accounting
from amg_plugin.errors import InputError
from amg_plugin.published_rows import ROWS
from amg_plugin.published_tables import build_table, even_plan, render


@pytest.fixture(scope="module")
def entries():
    return build_table()


def of(entries, key):
    return next(entry for entry in entries if entry.key == key)


FITTING = ["tr_base_market_dense", "tr_base_market_head15_token25", "tr_base_duke_dense", "tr_base_duke_head25_token25",
           "tr_small_duke_head40_token40", "la_base_token40", "la_base_head33", "la_base_head25_token25",
           "la_tiny_token40", "la_tiny_head67", "la_tiny_head67_token40"]  # fmt: skip


@pytest.mark.parametrize("key", FITTING)
def test_published_macs_come_out_within_one_and_a_half_per_cent(entries, key):
    assert abs(of(entries, key).formula_difference) < 1.5


def test_rows_that_do_not_agree_with_themselves_say_so(entries):
    off = [entry for entry in entries if abs(entry.formula_difference or 0) > 1.5]
    assert {entry.key for entry in off} == {
        "tr_base_market_head25_token25", "la_base_head40", "la_tiny_head15_token25"
    }  # fmt: skip
    assert all(entry.note for entry in off)


@pytest.mark.parametrize("key", ["la_base_dense", "la_base_head40", "la_base_head25_token25", "la_tiny_head67"])
def test_published_attention_parameters_come_out(entries, key):
    assert abs(of(entries, key).msa_difference) < 1


def test_totals_follow_from_the_rates(entries):
    assert of(entries, "tr_base_duke_head25_token25").heads == "33/132"
    assert of(entries, "tr_small_duke_head40_token40").tokens == "677/1694"
    assert of(entries, "la_base_head33").heads == "48/144"


def test_every_row_is_there_once(entries):
    assert [entry.key for entry in entries] == [row.key for row in ROWS]


def test_the_printed_table_in_docs_is_the_current_one(entries):
    file = Path(__file__).resolve().parent.parent / "docs" / "paper_tables.md"
    assert file.read_text(encoding="utf-8") == render(entries, "markdown")


def test_csv_and_json_hold_the_same_rows(entries):
    rows = list(csv.DictReader(io.StringIO(render(entries, "csv"))))
    data = json.loads(render(entries, "json"))
    assert [row["key"] for row in rows] == [row["key"] for row in data] == [entry.key for entry in entries]
    assert float(rows[0]["formula_macs"]) == data[0]["formula_macs"]


def test_measured_results_stand_beside_the_papers(tmp_path, monkeypatch):
    monkeypatch.setattr("amg_plugin.published_tables.ROWS", ROWS[:1])
    section = {"mAP": 0.5, "rank1": 0.75, "macs": 2e9, "params": 3e6, "targets": {"market1501": {}}}
    result = {"dense": section, "config": {"model": {"name": "vit_amg"}}, "device": "cpu", "seed": 1}
    file = tmp_path / "result.json"
    file.write_text(json.dumps(result))
    first, other = build_table([f"{ROWS[0].key}={file}", str(file)])
    assert (first.measured_map, first.measured_rank1, first.paper_map) == (50, 75, 89.0)
    assert (other.measured_map, other.counted_macs, other.paper_map) == (50, 2, None)


@pytest.mark.parametrize("argument", ["nobody=result.json", "missing.json"])
def test_results_that_cannot_be_used_are_refused(argument, monkeypatch):
    monkeypatch.setattr("amg_plugin.published_tables.ROWS", ROWS[:1])
    with pytest.raises(InputError, match=r"no row|no result"):
        build_table([argument])


def test_even_plans_take_the_totals_from_prunable_blocks_only():
    plan = even_plan(transreid(), "block", 4, 10)
    assert plan.heads_per_block == [2, 3, 3, 4]
    assert plan.tokens_per_block == [17, 18, 18, 21]


class TestAccounting:
    """MACs by hand, on small networks."""

    @pytest.mark.parametrize(("variant", "mlp_tokens"), [("block", 9), ("kv", 17)])
    def test_the_variant_chooses_the_formula(self, variant, mlp_tokens):
        model = la_transformer()
        plan = even_plan(model, variant, 0, 4 * 8)
        from amg_plugin.pruning import apply_plan

        found = published_accounting(apply_plan(model, plan))
        attention = 4 * (4 * 9 * 32 * 32 + 2 * 9 * 9 * 32 + 4 * 9 * 9)
        assert found["attention_macs"] == attention
        assert found["macs"] == attention + 4 * 2 * mlp_tokens * 32 * 128

    def test_heads_shrink_the_attention_and_its_parameters(self):
        found = published_accounting(la_transformer(heads=[[0, 1]] * 4))
        assert found["attention_macs"] == 4 * (4 * 17 * 16 * 32 + 2 * 17 * 17 * 16 + 2 * 17 * 17)
        assert found["msa_params"] == 4 * (32 * 48 + 48 + 16 * 32 + 32 + 17)

    def test_the_second_branch_of_the_jigsaw_module_does_not_count(self):
        assert published_accounting(transreid()) == published_accounting(transreid(jigsaw=False))

    def test_wrapped_networks_are_understood(self):
        model = la_transformer()
        assert published_accounting(nn.DataParallel(model)) == published_accounting(model.backbone)


def test_structure_needs_no_memory():
    from amg_plugin.published_tables import build

    model, heads, tokens = build(ROWS[-1])
    assert {value.device for value in model.parameters()} == {torch.device("meta")}
    assert (heads, tokens) == (24, 940)
