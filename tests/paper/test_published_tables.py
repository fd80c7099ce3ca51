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

from amg_plugin.cli.main import main
from amg_plugin.errors import InputError
from amg_plugin.paper.accounting import published_accounting
from amg_plugin.paper.rows import ROWS
from amg_plugin.paper.tables import HEADINGS, build, build_table, even_plan, render


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
    file = Path(__file__).resolve().parents[2] / "docs" / "paper_tables.md"
    assert file.read_text(encoding="utf-8") == render(entries, "markdown")


def test_csv_and_json_hold_the_same_rows(entries):
    rows = list(csv.DictReader(io.StringIO(render(entries, "csv"))))
    data = json.loads(render(entries, "json"))
    assert [row["key"] for row in rows] == [row["key"] for row in data] == [entry.key for entry in entries]
    assert float(rows[0]["formula_macs"]) == data[0]["formula_macs"]


DENSE, PRUNED = (next(row for row in ROWS if row.key == f"la_tiny_{name}") for name in ("dense", "token40"))


class TestMeasuredResults:
    """``--results``: own figures beside the paper's, never in their columns."""

    @pytest.fixture(autouse=True)
    def two_rows(self, monkeypatch):
        monkeypatch.setattr("amg_plugin.paper.tables.ROWS", (DENSE, PRUNED))

    @staticmethod
    def section(row, scores, **changes):
        from amg_plugin.runs.result import structure

        model, _, _ = build(row)
        targets = {name: {"mAP": value, "rank1": value + 0.1, "cmc": {}} for name, value in scores.items()}
        first = next(iter(targets.values()))
        return {
            "mAP": first["mAP"],
            "rank1": first["rank1"],
            "targets": targets,
            **structure(model, 224, 224),
            **changes,
        }

    @staticmethod
    def write(folder, name="result.json", **sections):
        content = {**sections, "config": {"model": {"name": "vit_amg_tiny"}}, "device": "cpu (x)", "seed": 3}
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
        return str(folder / name)

    def run(self, folder, **changes):
        scores = {"market1501": 0.2, "occluded_duke": 0.4}
        return self.write(
            folder,
            dense=self.section(DENSE, scores, **changes),
            pruned=self.section(PRUNED, {"occluded_duke": 0.1}),
            finetuned=self.section(PRUNED, {"occluded_duke": 0.3}),
        )

    def test_go_to_the_row_of_their_data_set_and_structure(self, tmp_path):
        dense, pruned, *_ = build_table([self.run(tmp_path)])
        assert (dense.measured_map, dense.measured_rank1) == (pytest.approx(40), pytest.approx(50))
        assert (pruned.measured_map, pruned.paper_map) == (pytest.approx(30), 86.91)
        assert "measured: finetuned, cpu (x), seed 3" in pruned.note

    def test_of_other_sections_and_targets_follow_as_rows_of_their_own(self, tmp_path):
        market, cut = build_table([self.run(tmp_path)])[2:]
        assert (market.model, market.data) == ("measured here: vit_amg_tiny, dense", "market1501")
        assert (cut.model, cut.data) == ("measured here: vit_amg_tiny, pruned", "occluded_duke")
        assert cut.measured_map == pytest.approx(10)
        assert cut.paper_map is cut.published_macs is None
        assert "cpu (x), seed 3" in cut.note

    @pytest.mark.parametrize("change", [{"params": 1}, {"heads_per_block": [1]}, {"tokens_per_block": [1]}])
    def test_of_another_structure_are_not_taken_for_the_published_one(self, tmp_path, change):
        dense = build_table([self.run(tmp_path, **change)])[0]
        assert dense.measured_map is None

    def test_of_a_token_reducer_are_not_taken_for_the_dense_network(self, tmp_path):
        dense, _, reduced = build_table([self.write(tmp_path, reduced=self.section(DENSE, {"occluded_duke": 0.2}))])
        assert dense.measured_map is None
        assert reduced.model == "measured here: vit_amg_tiny, reduced"

    def test_a_second_one_of_the_same_row_follows(self, tmp_path):
        again = self.write(tmp_path, "again.json", dense=self.section(DENSE, {"occluded_duke": 0.9}))
        table = build_table([self.run(tmp_path), again])
        assert table[0].measured_map == pytest.approx(40)
        assert [entry.measured_map for entry in table if entry.key.startswith(again)] == [pytest.approx(90)]

    def test_can_be_put_into_a_row_on_demand_which_says_what_differs(self, tmp_path):
        file = self.write(tmp_path, dense=self.section(DENSE, {"market1501": 0.2}, params=1_500_000))
        dense = build_table([f"{DENSE.key}={file}"])[0]
        assert dense.measured_map == pytest.approx(20)
        assert "on market1501" in dense.note
        assert "1.50 M parameters left" in dense.note

    def test_must_have_figures_of_the_kind_of_their_row(self, tmp_path):
        file = self.write(tmp_path, dense=self.section(DENSE, {"occluded_duke": 0.2}))
        with pytest.raises(InputError, match=r"no section finetuned or pruned or start, .*it has dense"):
            build_table([f"{PRUNED.key}={file}"])

    @pytest.mark.parametrize("form", ["markdown", "csv"])
    def test_are_marked_as_measured_in_print(self, tmp_path, form):
        header, row = (
            (HEADINGS["measured_map"], "| 86.91 | 94.61 | 30.00 | 40.00 |")
            if form == "markdown"
            else ("measured_map", "86.91,94.61,30.0,40.0")
        )
        text = render(build_table([self.run(tmp_path)]), form)
        assert header in text
        assert row in text

    @pytest.mark.parametrize("argument", ["nobody=result.json", "missing.json"])
    def test_that_cannot_be_used_are_refused(self, argument):
        with pytest.raises(InputError, match=r"not a row|not a result"):
            build_table([argument])

    def test_are_taken_by_the_command(self, tmp_path, capsys):
        assert main(["tables", "--results", self.run(tmp_path), "--output", str(tmp_path / "new" / "table.md")]) == 0
        assert capsys.readouterr().out == f"{tmp_path / 'new' / 'table.md'}\n"
        assert "| 30.00 | 40.00 |" in (tmp_path / "new" / "table.md").read_text(encoding="utf-8")

    def test_that_cannot_be_written_are_refused_before_the_work(self, tmp_path, capsys):
        assert main(["tables", "--output", str(tmp_path)]) == 2
        assert "is a folder" in capsys.readouterr().err

    @pytest.mark.parametrize("content", ["", "[]", "{}", '{"dense": {"targets": {"a": {}}}}', '{"dense": 1}'])
    def test_of_another_form_are_refused(self, tmp_path, content):
        (tmp_path / "result.json").write_text(content, encoding="utf-8")
        with pytest.raises(InputError, match=r"is not a result\.json of amg-reid"):
            build_table([str(tmp_path / "result.json")])


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
    model, heads, tokens = build(ROWS[-1])
    assert {value.device for value in model.parameters()} == {torch.device("meta")}
    assert (heads, tokens) == (24, 940)
