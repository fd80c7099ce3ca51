"""Sizes inside the zip archives of torch, checked before anything is read."""

from __future__ import annotations

import zipfile
from pathlib import Path

from amg_plugin.errors import CheckpointError, shown

#: Most bytes that the compressed entries of an archive may unpack to.
LARGEST_UNPACKED = 1 << 28


def check_archive(path: str | Path, *, deflated: bool = False) -> None:
    """Check that what is read from an archive takes no more memory than the file takes on the disk.

    torch stores tensors as they are. Only TorchScript compresses entries, those of code.

    Args:
        path: The file.
        deflated: Whether compressed entries may be there; their sizes then are bounded.

    Raises:
        CheckpointError: If the archive is damaged, holds compressed entries that it may not hold, or unpacks to more.
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
        size = path.stat().st_size
    except Exception as error:  # zipfile raises many types for damaged files
        raise CheckpointError(f"'{path}' cannot be read: it is truncated or damaged ({error!r}).") from error
    packed = [entry for entry in entries if entry.compress_type != zipfile.ZIP_STORED]
    if packed and not deflated:
        raise CheckpointError(
            f"'{path}' is refused: its entry {shown(packed[0].filename)} is compressed, unlike those of torch "
            "and numpy.savez, and may unpack to any size."
        )
    unpacked = sum(entry.file_size for entry in packed)
    if unpacked > LARGEST_UNPACKED:
        raise CheckpointError(
            f"'{path}' is refused: its compressed entries unpack to {unpacked >> 20} MiB; at most "
            f"{LARGEST_UNPACKED >> 20} MiB are allowed."
        )
    stored = sum(entry.file_size for entry in entries) - unpacked
    if stored > size:
        raise CheckpointError(f"'{path}' is refused: its entries overlap and unpack to {stored} of {size} bytes.")
