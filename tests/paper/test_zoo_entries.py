"""What the entries say reads files of the published form, at their real sizes."""

from __future__ import annotations

import pytest
import torch
from published_state import la_transformer_state, masks_of, transreid_state

from amg_plugin import compat
from amg_plugin.errors import CheckpointError, InputError
from amg_plugin.paper.tables import build
from amg_plugin.paper.zoo import ENTRIES, find_entry, import_entry, remarks
from amg_plugin.pruning import current_plan

DRIVE_IDS = {
    "tr_base_market_head25_token25": "1fdbMLlqd_fKxn1h2fDWvFX_VKKxA-mYO",
    "tr_base_duke_head25_token25": "1oEjFe9egQg9ToRJxWo-6cO0-PnQkgBvu",
    "tr_small_duke_head40_token40": "1tDnArM9PT7SDudrndu-udiKTnEUJNv2x",
    "la_base_market_token40": "1updZP0Y3Jjh0oQ8Zl1C78YvqKnAqgzyB",
    "la_base_market_head40": "1jRzkZW_k_hx3Mf5XefsGh8ZWn2qXqcny",
    "la_base_market_head25_token25": "1ihD52Mwfgc7HvKNLKW4Ou6eHez9gGHyO",
    "la_tiny_duke_token40": "1w1icUdf_qrrcQHBhiASZG4DQmRu-Ked0",
    "la_tiny_duke_head67": "1rVr2njy57enttUmyCRCeZoi9uNEFtA8u",
    "la_tiny_duke_head_token": "10lpPNstRfqhMh57fa8uwnCRNXixTTq9y",
    "tr_base_market_dense": "11p4RjmpCGGAS-876VEt7OoFrUeHTUlyO",
    "tr_base_duke_dense": "1VJg4rTA43TCHkR9hTIBu8S2Sy1KiTnSJ",
}
by_name = pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)


def test_every_published_file_is_there_once():
    assert {entry.name: entry.drive_id for entry in ENTRIES} == DRIVE_IDS
    assert len(ENTRIES) == len(DRIVE_IDS)
    assert all(len(drive_id) == 33 for drive_id in DRIVE_IDS.values())


@by_name
def test_entries_name_the_data_set_as_data_sources_does(entry):
    assert entry.data_set == ("market1501" if "market" in entry.name else "occluded_duke")
    assert entry.data_set in compat.image_dataset_factory()


@by_name
def test_entries_and_published_rows_agree(entry):
    assert len(entry.published) == len(entry.rows) >= 1
    for row in entry.published:
        assert row.spec == entry.spec
        side = row.spec.side_information
        assert entry.cameras == (side.cameras if side else 0)


def published_form(row):
    """The state dict that a program would have saved of a published row, without memory for its weights."""
    model, _, _ = build(row)
    moved = row.variant == "block"
    with torch.device("meta"):
        state = transreid_state(model) if moved else la_transformer_state(model)
    for number, mask in enumerate(masks_of(current_plan(model), moved=moved)):
        prefix = "base" if moved else "model"
        state[f"{prefix}.blocks.{number}.attn.token_index"] = mask
    for name in ("cls_token", "pos_embed"):  # copies, whose values cannot be compared without memory
        state.pop(name, None)
    if moved:
        last = f"base.blocks.{len(current_plan(model).heads) - 1}.attn.token_index"
        state["b1.0.attn.token_index"] = state["b2.0.attn.token_index"] = state[last]
    return state


@pytest.fixture
def imported(monkeypatch):
    def run(entry, state):
        monkeypatch.setattr("amg_plugin.paper.importing.read_state_dict", lambda path: state)
        with torch.device("meta"):
            return import_entry(entry, "file.pth")

    return run


@pytest.mark.parametrize(
    ("entry", "row"), [pytest.param(entry, row, id=row.key) for entry in ENTRIES for row in entry.published]
)
def test_files_of_the_published_form_are_read_at_their_real_size(entry, row, imported):
    model = imported(entry, published_form(row))
    expected, _, _ = build(row)
    assert current_plan(model).heads_per_block == current_plan(expected).heads_per_block
    assert current_plan(model).tokens == current_plan(expected).tokens
    found = remarks(entry, model)
    assert f"row {row.key} of the published tables" in found[0]
    assert not any("identities" in sentence for sentence in found)
    assert any("which heads" in sentence for sentence in found) == bool(row.heads)


@pytest.mark.parametrize(
    ("name", "other", "what"),
    [
        ("tr_base_duke_dense", "la_tiny_duke_head67", "LA-Transformer"),
        ("la_tiny_duke_head67", "tr_small_duke_head40_token40", "TransReID"),
        ("tr_base_market_dense", "tr_base_duke_dense", "base.sie_embed"),
        ("la_tiny_duke_head67", "la_base_market_token40", "768"),
    ],
)
def test_another_file_behind_an_id_is_refused(name, other, what, imported):
    state = published_form(find_entry(other).published[0])
    with pytest.raises((CheckpointError, InputError), match=what):
        imported(find_entry(name), state)


def test_what_differs_from_the_label_is_said(imported):
    entry = find_entry("la_tiny_duke_token40")
    state = published_form(find_entry("la_tiny_duke_head67").published[0])
    for number in range(14):
        for rest in ("weight", "bias"):
            name = f"classifier{number}.classifier.0.{rest}"
            name = name if name in state else f"classifier{number}.classifier.{rest}"
            state[name] = torch.empty(751, *state[name].shape[1:], device="meta")
    said = remarks(entry, imported(entry, state))
    assert "24 of 36 prunable heads and 0 of 2352" in said[0]
    assert "the label says tokens 40 %" in said[0]
    assert "751 identities, expected were 702" in said[-1]


def test_an_unknown_name_is_bad_input_and_the_names_are_listed():
    with pytest.raises(InputError, match=r"'resnet'.*tr_base_market_dense.*la_tiny_duke_head_token"):
        find_entry("resnet")
