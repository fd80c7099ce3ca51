"""Sizes inside archives are checked before anything is unpacked."""

import struct
import zipfile

import pytest

from amg_plugin.errors import CheckpointError
from amg_plugin.utils import archives
from amg_plugin.utils.archives import check_archive


def archive(path, method, *contents):
    with zipfile.ZipFile(path, "w") as written:
        for number, content in enumerate(contents):
            written.writestr(f"m/{number}", content, compress_type=method)
    return path


def test_entries_as_torch_writes_them_are_fine(tmp_path):
    check_archive(archive(tmp_path / "m.pth", zipfile.ZIP_STORED, b"one", b"two" * 100))


def test_compressed_entries_are_refused_but_for_torchscript(tmp_path):
    path = archive(tmp_path / "m.pth", zipfile.ZIP_DEFLATED, bytes(10_000))
    with pytest.raises(CheckpointError, match="'m/0' is compressed"):
        check_archive(path)
    check_archive(path, deflated=True)


def test_compressed_entries_have_a_bound_in_sum(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "LARGEST_UNPACKED", 1 << 20)
    path = archive(tmp_path / "m.pt", zipfile.ZIP_DEFLATED, *[bytes(1 << 19)] * 3)
    assert path.stat().st_size < 10_000
    with pytest.raises(CheckpointError, match="unpack to 1 MiB; at most 1 MiB"):
        check_archive(path, deflated=True)


def test_entries_that_share_their_bytes_are_refused(tmp_path):
    path = archive(tmp_path / "m.pth", zipfile.ZIP_STORED, bytes(1000))
    content = bytearray(path.read_bytes())
    start = content.index(b"PK\x01\x02")
    end = content.index(b"PK\x05\x06")
    entry, tail = content[start:end], content[end:]
    struct.pack_into("<HH", tail, 8, 50, 50)  # fifty entries, all of them the one
    struct.pack_into("<I", tail, 12, 50 * len(entry))
    path.write_bytes(content[:start] + entry * 50 + tail)
    with pytest.raises(CheckpointError, match="overlap"):
        check_archive(path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"PK\x05\x06" + bytes(10)])
def test_a_damaged_archive_is_said_to_be_one(tmp_path, content):
    (tmp_path / "m.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"m\.pth' cannot be read"):
        check_archive(tmp_path / "m.pth")
