"""Fetched files on disk: downloaded once, recorded with size and SHA-256, verified ever after.

The authors publish no checksums, so the first fetch decides: what it finds is recorded next to the file. A file
that later differs from its record, in the cache or downloaded again, is an error.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from amg_plugin.errors import InputError, MissingDependencyError, RunError
from amg_plugin.paper.zoo.entries import ZooEntry
from amg_plugin.utils.files import sha256, write_text

logger = logging.getLogger(__name__)

#: Environment variable that names the cache folder.
CACHE_VARIABLE = "AMG_REID_CACHE"

#: Writes the file of a Google Drive id to a path.
Download = Callable[[str, Path], None]


@dataclass(frozen=True)
class Record:
    """What the first fetch found.

    Attributes:
        drive_id: The id on Google Drive.
        size: Bytes.
        sha256: Checksum, hexadecimal.
        recorded: When, UTC.
    """

    drive_id: str
    size: int
    sha256: str
    recorded: str


@dataclass(frozen=True)
class Fetched:
    """A verified file.

    Attributes:
        path: Where it is.
        record: Its size and checksum.
        is_new: Whether this call recorded them, rather than verified them.
    """

    path: Path
    record: Record
    is_new: bool


def cache_folder(given: str | Path | None = None) -> Path:
    """The folder of fetched files: ``given``, ``$AMG_REID_CACHE``, or ``amg_plugin/zoo`` in the user's cache folder.

    The user's cache folder is ``$XDG_CACHE_HOME``, or else ``~/.cache``.
    """
    if given:
        return Path(given).expanduser()
    if named := os.environ.get(CACHE_VARIABLE):
        return Path(named).expanduser()
    home = os.environ.get("XDG_CACHE_HOME")
    # A relative one is to be ignored, says the XDG specification.
    base = Path(home) if home and Path(home).is_absolute() else Path.home() / ".cache"
    return base / "amg_plugin" / "zoo"


def path_of(entry: ZooEntry, folder: Path) -> Path:
    """Where the file of an entry is kept."""
    return folder / f"{entry.name}.pth"


def recorded(entry: ZooEntry, folder: Path) -> Record | None:
    """What the first fetch recorded; None before it.

    Raises:
        RunError: If the record is damaged.
    """
    path = _record_path(entry, folder)
    if not path.is_file():
        return None
    try:
        record = Record(**json.loads(path.read_text(encoding="utf-8")))
        if not (isinstance(record.size, int) and isinstance(record.sha256, str) and len(record.sha256) == 64):
            raise ValueError("size or sha256 is none")
    except (OSError, ValueError, TypeError) as error:
        raise RunError(
            f"The record '{path}' is damaged ({error}), so '{entry.name}' cannot be verified; run "
            f"'amg-reid zoo fetch {entry.name} --refresh' to fetch and record it again."
        ) from error
    return record


def fetch(
    entry: ZooEntry,
    folder: Path,
    *,
    local_file: str | Path | None = None,
    refresh: bool = False,
    download: Download | None = None,
) -> Fetched:
    """Give the file of an entry: from the cache, or else from Google Drive or a copy that the user downloaded.

    Args:
        entry: Which one.
        folder: The cache folder; made if needed.
        local_file: A copy downloaded by hand, which takes the place of the download.
        refresh: Forget the file and its record first.
        download: Stands in for gdown.

    Raises:
        InputError: If ``local_file`` does not exist, or the folder cannot be written.
        MissingDependencyError: If gdown is needed and missing.
        RunError: If the download fails, or the file differs from its record.
    """
    if local_file is not None and not Path(local_file).is_file():
        raise InputError(f"--file '{local_file}' does not exist; give the file downloaded from {entry.url}.")
    record = None if refresh else recorded(entry, folder)
    path = path_of(entry, folder)
    if record and path.is_file() and local_file is None:
        _verify(entry, path, record, "The file in the cache")
        return Fetched(path, record, is_new=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        workplace = Path(tempfile.mkdtemp(dir=folder, prefix=f".{entry.name}."))
    except OSError as error:
        raise InputError(
            f"The cache folder '{folder}' is not writable ({error.strerror}); choose another with --cache or "
            f"{CACHE_VARIABLE}."
        ) from error
    try:
        return _fetch_into(entry, path, workplace, record, local_file, download or _download_with_gdown)
    except OSError as error:
        raise RunError(f"'{entry.name}' cannot be kept in '{folder}': {error}.") from error
    finally:
        shutil.rmtree(workplace, ignore_errors=True)


def _fetch_into(
    entry: ZooEntry,
    path: Path,
    workplace: Path,
    record: Record | None,
    local_file: str | Path | None,
    download: Download,
) -> Fetched:
    arrived = workplace / path.name
    if local_file is not None:
        shutil.copyfile(local_file, arrived)
    else:
        _download(entry, arrived, download)
    _refuse_web_page(entry, arrived)
    if record:
        _verify(entry, arrived, record, "The file given" if local_file else "The file on Google Drive")
    else:
        size, digest = arrived.stat().st_size, sha256(arrived)
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        # The record first: a file without one would never be verified.
        new = Record(entry.drive_id, size, digest, now)
        write_text(_record_path(entry, path.parent), json.dumps(asdict(new), indent=1) + "\n")
    arrived.replace(path)
    return Fetched(path, record or new, is_new=record is None)


def _download(entry: ZooEntry, target: Path, download: Download) -> None:
    by_hand = (
        f"download it from {entry.url} with a browser and run 'amg-reid zoo fetch {entry.name} --file FILE', or try "
        "again later"
    )
    try:
        download(entry.drive_id, target)
    except (MissingDependencyError, KeyboardInterrupt):
        raise
    except Exception as error:  # gdown and requests raise many types: no network, quota, no permission
        reason = " ".join(str(error).split())
        reason = f"{type(error).__name__}: {reason[:200]}{'...' if len(reason) > 200 else ''}"
        raise RunError(f"'{entry.name}' cannot be downloaded from Google Drive ({reason}); {by_hand}.") from error
    if not target.is_file() or not target.stat().st_size:  # older releases of gdown print and return
        raise RunError(
            f"'{entry.name}' cannot be downloaded from Google Drive: nothing arrived, which means no network, a "
            f"download quota that is used up, or a file that was taken down; {by_hand}."
        )


def _download_with_gdown(drive_id: str, target: Path) -> None:
    try:
        import gdown
    except ImportError as error:
        raise MissingDependencyError("Fetching needs the package gdown: pip install gdown") from error
    gdown.download(id=drive_id, output=str(target), quiet=not sys.stderr.isatty())


def _refuse_web_page(entry: ZooEntry, file: Path) -> None:
    with file.open("rb") as stream:
        start = stream.read(512).lstrip().lower()
    if start.startswith((b"<!doctype", b"<html")):
        raise RunError(
            f"What arrived for '{entry.name}' is a web page, not a checkpoint: Google Drive's quota is used up or the "
            f"file is gone; see {entry.url}."
        )


def _verify(entry: ZooEntry, file: Path, record: Record, what: str) -> None:
    size = file.stat().st_size
    if size == record.size and (digest := sha256(file)) == record.sha256:
        logger.info("%s verified: %d bytes, SHA-256 %s", entry.name, size, digest)
        return
    found = f"{size} bytes" if size != record.size else f"SHA-256 {digest}"
    wanted = f"{record.size} bytes" if size != record.size else f"SHA-256 {record.sha256}"
    raise RunError(
        f"{what} for '{entry.name}' has {found}, but {wanted} were recorded when it was first fetched "
        f"({record.recorded}); it is damaged or was replaced. If you trust the new one, run "
        f"'amg-reid zoo fetch {entry.name} --refresh', which fetches and records it again."
    )


def _record_path(entry: ZooEntry, folder: Path) -> Path:
    return folder / f"{entry.name}.json"
