"""The parity check: passes on the published numbers, and names whatever does not agree."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from parity_file import PARITY, write

from amg_plugin.errors import CheckpointError
from amg_plugin.paper.parity import check_parity

CHECKOUT = Path(__file__).resolve().parents[2]
PUBLISHED = CHECKOUT.parent / "shared" / "golden"


@pytest.fixture(scope="module", params=sorted(PARITY))
def numbers(request):
    return PARITY[request.param]()


@pytest.fixture(scope="module")
def transreid_numbers():
    return PARITY["transreid"]()


@pytest.fixture(scope="module")
def la_numbers():
    return PARITY["la_vit"]()


def failures(folder, tensors, facts):
    return [comparison for comparison in check_parity(*write(folder, tensors, facts)) if not comparison.passed]


@pytest.mark.shared
@pytest.mark.parametrize(("name", "quantities"), [("transreid_amg", 20), ("la_amg", 20), ("tome", 2)])
def test_everything_that_the_published_programs_produced_is_reproduced(name, quantities):
    files = [PUBLISHED / f"{name}{suffix}" for suffix in (".safetensors", ".json")]
    if not all(file.is_file() for file in files):
        pytest.skip(f"the optional parity file {name} is not there")
    checked = check_parity(*files)
    assert [str(comparison) for comparison in checked if not comparison.passed] == []
    assert len(checked) >= quantities


def test_a_file_of_our_own_passes(numbers, tmp_path):
    assert failures(tmp_path, *numbers) == []


QUANTITIES = {
    "transreid": ["dense.features", "heads.logits.3", "heads_tokens.embeddings.1"],
    "la_vit": ["tokens.tokens", "tokens.part_features", "tokens.logits", "head_entropy", "token_score"],
}


@pytest.mark.parametrize(("family", "name"), [(family, name) for family in QUANTITIES for name in QUANTITIES[family]])
def test_a_number_that_differs_is_named(family, name, transreid_numbers, la_numbers, tmp_path):
    tensors, facts = transreid_numbers if family == "transreid" else la_numbers
    off = tensors[name].clone()
    off.flatten()[off.abs().argmax()] *= 1.001
    assert [found.quantity for found in failures(tmp_path, {**tensors, name: off}, facts)] == [name]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_fails(la_numbers, tmp_path, value):
    tensors, facts = la_numbers
    off = torch.full_like(tensors["dense.tokens"], value)
    assert [c.quantity for c in failures(tmp_path, {**tensors, "dense.tokens": off}, facts)] == ["dense.tokens"]


def test_another_shape_fails(la_numbers, tmp_path):
    tensors, facts = la_numbers
    changed = {**tensors, "dense.logits": tensors["dense.logits"][:, :3]}
    (found,) = failures(tmp_path, changed, facts)
    assert found.note == "shape (4, 5) instead of (4, 3)"


@pytest.mark.parametrize("name", ["head.kept", "token.kept"])
def test_another_choice_fails(la_numbers, tmp_path, name):
    tensors, facts = la_numbers
    kept = [facts[name][0][1:], *facts[name][1:]]
    found = [comparison.quantity for comparison in failures(tmp_path, tensors, {**facts, name: kept})]
    assert name in found


@pytest.mark.parametrize("place", [0, 1])
def test_the_published_accounting_must_agree_to_the_last_digit(la_numbers, tmp_path, place):
    tensors, facts = la_numbers
    flops = list(facts["flops.dense"])
    flops[place] += 1
    assert [c.quantity for c in failures(tmp_path, tensors, {**facts, "flops.dense": flops})] == ["flops.dense"]


def test_every_missing_fact_is_named(numbers, tmp_path):
    tensors, facts = numbers
    for name in set(facts) - {"embed_dim", "num_classes"}:
        fewer = {key: value for key, value in facts.items() if key != name}
        if name == "family":
            fewer["family"] = "resnet"
        with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
            check_parity(*write(tmp_path, tensors, fewer))


@pytest.mark.parametrize(
    "name",
    ["input.0", "input.1", "pid.1", "dense.logits.0", "head_entropy", "token_score", "heads.state.base.cls_token"],
)
def test_a_missing_tensor_is_named(transreid_numbers, tmp_path, name):
    tensors, facts = transreid_numbers
    fewer = {key: value for key, value in tensors.items() if key != name}
    with pytest.raises(CheckpointError, match=name.split("state.")[-1].replace(".", r"\.")):
        check_parity(*write(tmp_path, fewer, facts))


def test_a_missing_model_is_named(transreid_numbers, tmp_path):
    tensors, facts = transreid_numbers
    fewer = {key: value for key, value in tensors.items() if not key.startswith("heads.state.")}
    with pytest.raises(CheckpointError, match=r"heads\.state\."):
        check_parity(*write(tmp_path, fewer, facts))


@pytest.mark.parametrize(("number", "content"), [(0, b"no tensors"), (1, b"{no json"), (1, b"[]")])
def test_a_damaged_file_is_named(la_numbers, tmp_path, number, content):
    files = write(tmp_path, *la_numbers)
    files[number].write_bytes(content)
    with pytest.raises(CheckpointError, match=files[number].name):
        check_parity(*files)


class TestTheTool:
    """``tools/check_parity.py``."""

    @pytest.fixture
    def run(self, run_script):
        return lambda *files: run_script(CHECKOUT / "tools" / "check_parity.py", *files)

    def test_it_prints_a_line_per_quantity_and_succeeds(self, run, la_numbers, tmp_path):
        outcome = run(*write(tmp_path, *la_numbers))
        assert outcome.returncode == 0, outcome.stderr
        *lines, last = outcome.stdout.splitlines()
        assert len(lines) > 15
        assert all(line.startswith("ok  ") for line in lines)
        assert last == f"{len(lines)} quantities, 0 failed"

    def test_it_fails_with_1_if_a_quantity_differs(self, run, la_numbers, tmp_path):
        tensors, facts = la_numbers
        outcome = run(*write(tmp_path, {**tensors, "dense.logits": tensors["dense.logits"] + 1}, facts))
        assert outcome.returncode == 1
        assert [line.split(":")[0] for line in outcome.stdout.splitlines() if "FAIL" in line] == ["FAIL  dense.logits"]

    def test_it_names_a_missing_key_without_a_traceback(self, run, la_numbers, tmp_path):
        tensors, facts = la_numbers
        outcome = run(*write(tmp_path, tensors, {key: facts[key] for key in facts if key != "token.kept"}))
        assert outcome.returncode == 2
        assert "lacks the key 'token.kept'" in outcome.stderr
        assert "Traceback" not in outcome.stderr
