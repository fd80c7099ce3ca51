"""Files and folders that appear under their name only once they are complete."""

import errno
import hashlib
import os
from pathlib import Path

import pytest

from amg_plugin.errors import InputError, RunError
from amg_plugin.utils.files import check_writable, expanded, new_folder, replacing, sha256, write_text

FAILURES = [ValueError, KeyboardInterrupt, SystemExit]


def names(folder):
    return sorted(entry.name for entry in folder.iterdir())


@pytest.fixture
def umask():
    """Sets the umask, for the time of a test."""
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


@pytest.fixture
def file(tmp_path):
    """A file with a text."""
    path = tmp_path / "table.md"
    path.write_text("before", encoding="utf-8")
    return path


# --- A file ---------------------------------------------------------------------------------------------------


def test_a_file_has_its_old_content_until_the_new_one_is_complete(file):
    with replacing(file) as draft:
        draft.write_text("half", encoding="utf-8")
        assert file.read_text(encoding="utf-8") == "before"
        draft.write_text("after", encoding="utf-8")
    assert file.read_text(encoding="utf-8") == "after"
    assert names(file.parent) == ["table.md"]


@pytest.mark.parametrize("failure", FAILURES)
def test_a_file_stays_as_it_was_and_alone_if_writing_ends_in_any_way(file, failure):
    with pytest.raises(failure), replacing(file) as draft:
        draft.write_text("half", encoding="utf-8")
        raise failure
    assert file.read_text(encoding="utf-8") == "before"
    assert names(file.parent) == ["table.md"]


def test_a_full_disk_is_said_to_be_one_and_the_old_file_stays(file, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(RunError, match=rf"The disk is full .*'table\.md' in '{file.parent}'"):
        write_text(file, "after")
    assert file.read_text(encoding="utf-8") == "before"
    assert names(file.parent) == ["table.md"]


def test_a_link_is_replaced_and_what_it_leads_to_stays(file):
    link = file.with_name("link.md")
    link.symlink_to(file)
    write_text(link, "after")
    assert not link.is_symlink() and link.read_text(encoding="utf-8") == "after"
    assert file.read_text(encoding="utf-8") == "before"


@pytest.mark.parametrize("failure", FAILURES)
def test_a_new_file_does_not_appear_if_writing_ends_in_any_way(tmp_path, failure):
    with pytest.raises(failure), replacing(tmp_path / "new.md") as draft:
        draft.write_text("half", encoding="utf-8")
        raise failure
    assert names(tmp_path) == []


def test_a_draft_that_its_writer_removed_is_one_sentence_and_leaves_the_file(file):
    message = r"The table '.*table\.md' cannot be written: No such file"
    with pytest.raises(RunError, match=message), replacing(file, "table") as draft:
        draft.unlink()
    assert file.read_text(encoding="utf-8") == "before"


def test_missing_folders_are_made(tmp_path):
    path = write_text(tmp_path / "a" / "b" / "new.md", "text")
    assert path.read_text(encoding="utf-8") == "text"


def test_a_folder_in_the_place_of_the_file_is_refused_and_left_alone(tmp_path):
    (tmp_path / "table.md").mkdir()
    with pytest.raises(RunError, match="cannot be written"):
        write_text(tmp_path / "table.md", "text")
    assert (tmp_path / "table.md").is_dir()
    assert names(tmp_path) == ["table.md"]


def test_a_file_in_the_place_of_a_folder_is_refused_and_left_alone(file):
    with pytest.raises(RunError, match="cannot be written"):
        write_text(file / "new.md", "text")
    assert file.read_text(encoding="utf-8") == "before"


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_permissions_of_a_file_follow_the_umask(tmp_path, umask, mask):
    umask(mask)
    path = write_text(tmp_path / "new.md", "text")
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask


def test_the_draft_keeps_the_suffix_by_which_writers_choose_a_format(tmp_path):
    with replacing(tmp_path / "figure.png") as draft:
        assert draft.suffix == ".png"
        assert draft.parent == tmp_path


def test_two_writers_of_one_file_do_not_share_a_draft(file):
    with replacing(file) as first, replacing(file) as second:
        assert first != second
        first.write_text("first", encoding="utf-8")
        second.write_text("second", encoding="utf-8")
    assert file.read_text(encoding="utf-8") == "first"


def test_a_link_is_replaced_and_what_it_led_to_is_left_alone(tmp_path, file):
    link = tmp_path / "link.md"
    link.symlink_to(file)
    write_text(link, "after")
    assert not link.is_symlink()
    assert link.read_text(encoding="utf-8") == "after"
    assert file.read_text(encoding="utf-8") == "before"


def test_text_is_written_in_utf_8(tmp_path):
    assert write_text(tmp_path / "new.md", "± 1").read_bytes() == "± 1".encode()


# --- A folder -------------------------------------------------------------------------------------------------


def test_a_folder_appears_once_it_is_complete(tmp_path):
    target = tmp_path / "a" / "data"
    with new_folder(target) as work:
        (work / "image.png").write_bytes(b"1")
        assert not target.exists()
    assert names(target) == ["image.png"]
    assert names(target.parent) == ["data"]


@pytest.mark.parametrize("failure", FAILURES)
def test_nothing_remains_of_a_folder_whose_making_ends_in_any_way(tmp_path, failure):
    with pytest.raises(failure), new_folder(tmp_path / "data") as work:
        (work / "image.png").write_bytes(b"1")
        raise failure
    assert names(tmp_path) == []


def test_a_folder_that_holds_something_by_then_is_not_replaced(tmp_path):
    target = tmp_path / "data"
    with pytest.raises(OSError, match="not empty"), new_folder(target) as work:
        (work / "new.png").write_bytes(b"1")
        target.mkdir()
        (target / "old.png").write_bytes(b"2")
    assert names(target) == ["old.png"]
    assert names(tmp_path) == ["data"]


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_permissions_of_a_folder_follow_the_umask(tmp_path, umask, mask):
    umask(mask)
    with new_folder(tmp_path / "data"):
        pass
    assert (tmp_path / "data").stat().st_mode & 0o777 == 0o777 & ~mask


# --- The rest -------------------------------------------------------------------------------------------------


def test_a_folder_to_write_into_is_made_and_left_empty(tmp_path):
    folder = check_writable(tmp_path / "a" / "log")
    assert names(folder) == []


def test_a_file_in_the_place_of_a_folder_to_write_into_is_one_sentence(file):
    with pytest.raises(InputError, match=r"--output '.*table\.md' is not writable .*; choose another folder\."):
        check_writable(file, "--output")


def test_digest_is_that_of_the_whole_file(tmp_path):
    content = bytes(range(256)) * 5000  # more than is read at once
    (tmp_path / "file").write_bytes(content)
    assert sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_the_home_folder_of_nobody_is_refused():
    with pytest.raises(InputError, match="'~nosuchuser/data' cannot be used"):
        expanded("~nosuchuser/data")
    assert expanded("~") == Path.home()
