"""``amg-reid zoo`` on files of the published form, behind a stand-in for gdown."""

from __future__ import annotations

import json
import os
import sys
import types
from pathlib import Path

import pytest
import torch
from published_state import la_transformer_state, randomised

from amg_plugin.checkpoint import load_model, read_checkpoint
from amg_plugin.models.build import build_network
from amg_plugin.paper.tables import even_plan
from amg_plugin.paper.zoo import ENTRIES, LICENCE, find_entry
from amg_plugin.pruning import apply_plan

NAME = "la_tiny_duke_head67"


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A file of the published form and real size, and the network that it holds."""
    model = randomised(build_network(find_entry(NAME).spec))
    apply_plan(model, even_plan(model, "kv", 24, 0))
    path = tmp_path_factory.mktemp("drive") / "net_best.pth"
    torch.save({"state_dict": la_transformer_state(model)}, path)
    return types.SimpleNamespace(path=path, model=model)


@pytest.fixture
def drive(published, monkeypatch):
    """The stand-in; ``drive.file`` is what it gives for any id."""
    stand_in = types.SimpleNamespace(file=published.path, asked=[])

    def download(*, id, output, quiet):
        stand_in.asked.append(id)
        if stand_in.file is None:
            raise ConnectionError("no route to host")
        with Path(output).open("wb") as target:
            target.write(stand_in.file.read_bytes())

    monkeypatch.setitem(sys.modules, "gdown", types.SimpleNamespace(download=download))
    return stand_in


@pytest.fixture
def zoo(amg_reid, drive, tmp_path):
    return lambda *words: amg_reid("zoo", *words, "--cache", tmp_path / "cache")


def test_the_list_names_every_entry_with_its_licence(zoo):
    outcome = zoo("list")
    assert outcome.status == 0
    for entry in ENTRIES:
        (line,) = (line for line in outcome.out.splitlines() if line.split()[:1] == [entry.name])
        assert LICENCE in line
        assert line.endswith("-")
    assert "weights trained on Market-1501 are for research" in outcome.out


def test_the_list_shows_what_the_cache_holds(zoo, published):
    zoo("fetch", NAME)
    (line,) = (line for line in zoo("list").out.splitlines() if line.startswith(NAME))
    assert line.endswith(" MiB")
    (row,) = (row for row in json.loads(zoo("list", "--json").out) if row["size"])
    assert (row["name"], row["size"]) == (NAME, published.path.stat().st_size)


def test_a_fetched_model_is_imported_with_the_same_outputs(zoo, published, drive, tmp_path):
    outcome = zoo("fetch", NAME, "--out", tmp_path / "imported.pth")
    assert outcome.status == 0, outcome.err
    assert drive.asked == [find_entry(NAME).drive_id]
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        expected = published.model(images)
        assert torch.allclose(load_model(tmp_path / "imported.pth")(images), expected, atol=1e-6)
    assert read_checkpoint(tmp_path / "imported.pth").preprocessing.interpolation == "bicubic"
    assert "row la_tiny_head67 of the published tables" in outcome.out
    assert LICENCE in outcome.out


def test_the_second_fetch_needs_no_network(zoo, drive):
    first = zoo("fetch", NAME)
    drive.file = None
    again = zoo("fetch", NAME)
    assert again.status == 0, again.err
    assert "(recorded)" in first.out
    assert "(verified)" in again.out


def test_without_network_a_run_fails_with_one_sentence(zoo, drive, tmp_path):
    drive.file = None
    outcome = zoo("fetch", NAME, "--out", tmp_path / "out.pth")
    assert outcome.status == 1
    (line,) = outcome.err.splitlines()
    assert "no route to host" in line
    assert not (tmp_path / "out.pth").exists()


def test_a_copy_downloaded_by_hand_is_imported(zoo, drive, published):
    drive.file = None
    outcome = zoo("fetch", NAME, "--file", published.path)
    assert outcome.status == 0, outcome.err


def test_a_changed_file_in_the_cache_fails(zoo, tmp_path):
    zoo("fetch", NAME)
    with (tmp_path / "cache" / f"{NAME}.pth").open("r+b") as file:
        file.seek(1000)
        file.write(b"changed")
    outcome = zoo("fetch", NAME)
    assert outcome.status == 1
    assert "SHA-256" in outcome.err
    assert "--refresh" in outcome.err


class Code:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_code_in_a_fetched_file_is_refused_and_does_not_run(zoo, drive, tmp_path):
    drive.file = tmp_path / "evil.pth"
    torch.save({"state_dict": {"weight": torch.zeros(1)}, "hook": Code(tmp_path / "it ran")}, drive.file)
    outcome = zoo("fetch", NAME, "--out", tmp_path / "out.pth")
    assert outcome.status == 2
    assert "mkdir" in outcome.err
    assert not (tmp_path / "it ran").exists()
    assert not (tmp_path / "out.pth").exists()


def test_the_file_of_another_program_is_refused(zoo, published):
    outcome = zoo("fetch", "tr_base_market_dense", "--file", published.path)
    assert outcome.status == 2
    assert "one of LA-Transformer, not of TransReID" in outcome.err


def test_an_unknown_name_is_bad_input(zoo):
    outcome = zoo("fetch", "nobody")
    assert outcome.status == 2
    assert "The zoo has no 'nobody'" in outcome.err
