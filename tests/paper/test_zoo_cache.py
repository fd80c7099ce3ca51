"""Fetching: downloaded once, recorded, verified ever after; every failure says what to do."""

from __future__ import annotations

import hashlib
import json
import sys
import types
from pathlib import Path

import pytest

from amg_plugin.errors import InputError, MissingDependencyError, RunError
from amg_plugin.paper.zoo import ENTRIES, cache_folder, fetch, recorded

ENTRY = ENTRIES[0]
CONTENT = b"PK a published file" * 100


class Drive:
    """A stand-in for Google Drive."""

    def __init__(self, content=CONTENT):
        self.content = content
        self.asked = []

    def __call__(self, drive_id, target):
        self.asked.append(drive_id)
        if isinstance(self.content, BaseException):
            raise self.content
        if self.content is not None:
            target.write_bytes(self.content)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache" / "zoo"


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_first_fetch_downloads_and_records_size_and_checksum(folder):
    drive = Drive()
    fetched = fetch(ENTRY, folder, download=drive)
    assert fetched.is_new
    assert drive.asked == [ENTRY.drive_id]
    assert fetched.path.read_bytes() == CONTENT
    record = json.loads((folder / f"{ENTRY.name}.json").read_text(encoding="utf-8"))
    assert record["size"] == len(CONTENT)
    assert record["sha256"] == hashlib.sha256(CONTENT).hexdigest()
    assert record["drive_id"] == ENTRY.drive_id
    assert names(folder) == [f"{ENTRY.name}.json", f"{ENTRY.name}.pth"]


def test_the_second_fetch_verifies_and_downloads_nothing(folder):
    fetch(ENTRY, folder, download=Drive())
    drive = Drive(AssertionError("downloaded again"))
    fetched = fetch(ENTRY, folder, download=drive)
    assert not fetched.is_new
    assert drive.asked == []


@pytest.mark.parametrize("damage", [CONTENT[:-1], CONTENT[:-1] + b"x"], ids=["size", "checksum"])
def test_a_file_that_differs_from_its_record_is_an_error_that_says_what_to_do(folder, damage):
    path = fetch(ENTRY, folder, download=Drive()).path
    path.write_bytes(damage)
    with pytest.raises(RunError, match=r"in the cache.*were recorded.*--refresh"):
        fetch(ENTRY, folder, download=Drive())


def test_a_file_that_was_replaced_on_the_drive_is_an_error_and_is_not_kept(folder):
    fetch(ENTRY, folder, download=Drive()).path.unlink()
    with pytest.raises(RunError, match=r"on Google Drive.*were recorded"):
        fetch(ENTRY, folder, download=Drive(CONTENT + b"more"))
    assert names(folder) == [f"{ENTRY.name}.json"]


def test_refreshing_records_the_new_file(folder):
    fetch(ENTRY, folder, download=Drive())
    fetched = fetch(ENTRY, folder, refresh=True, download=Drive(b"another"))
    assert fetched.is_new
    assert fetched.path.read_bytes() == b"another"
    assert recorded(ENTRY, folder).size == len(b"another")


@pytest.mark.parametrize("content", [OSError("no network"), KeyboardInterrupt()])
def test_a_failed_refresh_leaves_the_old_file(folder, content):
    before = fetch(ENTRY, folder, download=Drive())
    with pytest.raises((RunError, KeyboardInterrupt)):
        fetch(ENTRY, folder, refresh=True, download=Drive(content))
    assert fetch(ENTRY, folder, download=Drive(AssertionError())) == type(before)(before.path, before.record, False)


def test_a_file_without_a_record_is_fetched_again(folder):
    folder.mkdir(parents=True)
    (folder / f"{ENTRY.name}.pth").write_bytes(b"from an interrupted program")
    assert fetch(ENTRY, folder, download=Drive()).path.read_bytes() == CONTENT


class Partial(Drive):
    """Fails in the middle of the file."""

    def __call__(self, drive_id, target):
        target.write_bytes(CONTENT[:10])
        raise ConnectionResetError("in the middle")


def test_half_a_download_leaves_nothing_behind(folder):
    with pytest.raises(RunError, match="in the middle"):
        fetch(ENTRY, folder, download=Partial())
    assert names(folder) == []


@pytest.mark.parametrize("content", [ConnectionError("Failed to resolve\n 'drive'"), ValueError("quota"), None, b""])
def test_what_cannot_be_downloaded_is_one_clear_sentence(folder, content):
    with pytest.raises(RunError, match="cannot be downloaded from Google Drive") as raised:
        fetch(ENTRY, folder, download=Drive(content))
    assert "\n" not in str(raised.value)
    assert ENTRY.url in str(raised.value)
    assert f"zoo fetch {ENTRY.name} --file FILE" in str(raised.value)
    assert raised.value.exit_status == 1
    assert names(folder) == []


@pytest.mark.parametrize("page", [b"<!DOCTYPE html><html>quota</html>", b"\n<HTML><body>sign in"])
def test_a_web_page_is_not_taken_for_a_checkpoint(folder, page):
    with pytest.raises(RunError, match="web page"):
        fetch(ENTRY, folder, download=Drive(page))
    assert names(folder) == []


def test_a_copy_downloaded_by_hand_is_taken_and_recorded(folder, tmp_path):
    (tmp_path / "by_hand.pth").write_bytes(CONTENT)
    fetched = fetch(ENTRY, folder, local_file=tmp_path / "by_hand.pth", download=Drive(AssertionError()))
    assert fetched.is_new
    assert fetched.path.read_bytes() == CONTENT


def test_a_copy_downloaded_by_hand_must_fit_the_record(folder, tmp_path):
    fetch(ENTRY, folder, download=Drive())
    (tmp_path / "by_hand.pth").write_bytes(b"another")
    with pytest.raises(RunError, match=r"The file given .*were recorded"):
        fetch(ENTRY, folder, local_file=tmp_path / "by_hand.pth")


def test_a_missing_copy_is_bad_input(folder, tmp_path):
    with pytest.raises(InputError, match=r"--file.*does not exist"):
        fetch(ENTRY, folder, local_file=tmp_path / "none.pth")


@pytest.mark.parametrize("content", ["", "{}", '{"drive_id": "a", "size": "b", "sha256": "c", "recorded": "d"}'])
def test_a_damaged_record_counts_as_absent(folder, content, caplog):
    before = fetch(ENTRY, folder, download=Drive())
    (folder / f"{ENTRY.name}.json").write_text(content, encoding="utf-8")
    after = fetch(ENTRY, folder, download=Drive())
    assert after.is_new
    assert (after.record.size, after.record.sha256) == (before.record.size, before.record.sha256)
    assert "counts as absent" in caplog.text


def test_a_folder_that_cannot_be_written_is_bad_input(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(InputError, match=r"--cache.*not writable"):
        fetch(ENTRY, tmp_path / "file" / "zoo", download=Drive())


class TestGdown:
    """Without a stand-in for the download, gdown is asked."""

    def test_it_gets_the_id_and_the_place(self, folder, monkeypatch):
        calls = []

        def download(*, id, output, quiet):
            calls.append((id, quiet))
            with Path(output).open("wb") as file:
                file.write(CONTENT)

        monkeypatch.setitem(sys.modules, "gdown", types.SimpleNamespace(download=download))
        assert fetch(ENTRY, folder).path.read_bytes() == CONTENT
        assert calls == [(ENTRY.drive_id, True)]

    def test_it_may_be_missing_until_it_is_needed(self, folder, monkeypatch):
        fetch(ENTRY, folder, download=Drive())
        monkeypatch.setitem(sys.modules, "gdown", None)
        fetch(ENTRY, folder)
        with pytest.raises(MissingDependencyError, match="pip install gdown"):
            fetch(ENTRIES[1], folder)

    def test_the_real_one_without_network_is_a_clear_error(self, folder, monkeypatch):
        pytest.importorskip("gdown")
        for name in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"):
            monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody listens there
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        with pytest.raises(RunError, match="cannot be downloaded from Google Drive"):
            fetch(ENTRY, folder)
        assert names(folder) == []


class TestTheCacheFolder:
    """An option, then an environment variable, then the user's cache folder."""

    @pytest.fixture(autouse=True)
    def environment(self, monkeypatch, tmp_path):
        monkeypatch.delenv("AMG_REID_CACHE", raising=False)
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("USERPROFILE", str(tmp_path))

    def test_by_default_lies_in_the_users_cache(self, tmp_path):
        assert cache_folder() == tmp_path / ".cache" / "amg_plugin" / "zoo"

    def test_follows_the_xdg_variable(self, tmp_path, monkeypatch):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
        assert cache_folder() == tmp_path / "xdg" / "amg_plugin" / "zoo"

    def test_ignores_a_relative_xdg_variable(self, tmp_path, monkeypatch):
        monkeypatch.setenv("XDG_CACHE_HOME", "xdg")
        assert cache_folder() == tmp_path / ".cache" / "amg_plugin" / "zoo"

    def test_can_be_named(self, tmp_path, monkeypatch):
        monkeypatch.setenv("AMG_REID_CACHE", "~/named")
        assert cache_folder() == tmp_path / "named"
        assert cache_folder("~/given") == tmp_path / "given"
