"""Images of DukeMTMC-reID as users have them: an unpacked folder, or the archive as it was published.

An archive is data from outside. Nothing is unpacked by the names that it holds: images are looked up by folder and
plain file name and written under names that the caller has checked. Archives that try to lead elsewhere, or to be
larger than they say, are refused.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from amg_plugin.data.layout import FolderLayout, first_of
from amg_plugin.errors import DataError

SPLITS = ("bounding_box_train", "query", "bounding_box_test")
"""Folders of DukeMTMC-reID."""
MAX_ARCHIVE_ENTRIES = 1_000_000
"""Most entries of an archive; DukeMTMC-reID has 36,411 images."""

_LAYOUT = FolderLayout(
    "DukeMTMC-reID",
    (".", "dukemtmc-reid", "DukeMTMC-reID"),
    {split: (split,) for split in SPLITS},
    "give the published zip archive or its unpacked folder",
)
_DRIVE = re.compile(r"[A-Za-z]:")
_ENCRYPTED = 0x1
# zipfile unpacks other methods by whole blocks, whatever size an entry declares: 1 KiB of bzip2 can become 1 GiB.
_BOUNDED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


class ImageSource(ABC):
    """Images by split and name.

    Attributes:
        place: What the user gave, for messages.
        sizes: Split -> name -> size in bytes, as far as the source tells.
    """

    def __init__(self, place: Path) -> None:
        self.place = place
        self.sizes: dict[str, dict[str, int]] = {split: {} for split in SPLITS}

    @abstractmethod
    def copy(self, split: str, name: str, target: Path, link: bool = False) -> None:
        """Writes an image.

        Args:
            split: One of :data:`SPLITS`.
            name: A name in ``sizes[split]``.
            target: File to write; must not exist.
            link: Make a hard link instead of a copy.

        Raises:
            DataError: The source is damaged or says something untrue about the image.
            OSError: The target cannot be written.
        """


class FolderSource(ImageSource):
    """An unpacked DukeMTMC-reID.

    Args:
        folder: The folder, or one above it.

    Raises:
        DataError: The folders of DukeMTMC-reID are not there.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.folder = _LAYOUT.locate(folder)
        for split in SPLITS:
            try:
                with os.scandir(self.folder / split) as entries:
                    self.sizes[split] = {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}
            except OSError as error:
                raise DataError(f"{self.folder / split} cannot be read: {error}.") from error

    def copy(self, split: str, name: str, target: Path, link: bool = False) -> None:
        """See :meth:`ImageSource.copy`."""
        source = self.folder / split / name
        if link:
            os.link(source, target)
        else:
            shutil.copyfile(source, target)


class ZipSource(ImageSource):
    """The published archive.

    Args:
        path: The archive.
        archive: The same, opened.

    Raises:
        DataError: The archive lacks the folders of DukeMTMC-reID, or holds absolute names, names with ``..``, links, an
            image twice, or too many entries.
    """

    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        super().__init__(path)
        self._archive = archive
        self._members = _find_members(path, archive)
        self.sizes = {
            split: {name: info.file_size for name, info in members.items()} for split, members in self._members.items()
        }

    def copy(self, split: str, name: str, target: Path, link: bool = False) -> None:
        """See :meth:`ImageSource.copy`."""
        if link:
            raise DataError(f"{self.place} is an archive, which files cannot be linked out of; leave --link out.")
        info = self._members[split][name]
        if info.flag_bits & _ENCRYPTED:
            raise DataError(f"{info.filename} in {self.place} is encrypted; unpack the archive and give the folder.")
        if info.compress_type not in _BOUNDED:
            raise DataError(
                f"{info.filename} in {self.place} is neither stored nor deflated, so its size is not known before "
                "it is unpacked; unpack the archive and give the folder."
            )
        try:
            with self._archive.open(info) as stream:
                # zipfile stops at the size that the archive declares, and the checksum then tells a lie about it.
                content = stream.read(info.file_size + 1)
                ended = not stream.read(1)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError, OSError) as error:
            raise DataError(f"{info.filename} in {self.place} cannot be unpacked: {error}.") from error
        if len(content) != info.file_size or not ended:
            raise DataError(f"{info.filename} in {self.place} is not of the size that the archive says; refused.")
        with target.open("xb") as file:
            file.write(content)


@contextmanager
def open_source(path: str | Path) -> Iterator[ImageSource]:
    """Opens a folder or an archive.

    Args:
        path: DukeMTMC-reID as a folder or a zip archive.

    Raises:
        DataError: There is nothing of the kind, see :class:`FolderSource` and :class:`ZipSource`.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        yield FolderSource(path)
        return
    if not path.is_file():
        raise DataError(f"The source {path} does not exist; give DukeMTMC-reID.zip or the unpacked folder.")
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError) as error:
        raise DataError(
            f"The source {path} is neither a folder nor a readable zip archive ({error}); give the published "
            "archive or the folder it was unpacked into."
        ) from error
    with archive:
        yield ZipSource(path, archive)


def _find_members(path: Path, archive: zipfile.ZipFile) -> dict[str, dict[str, zipfile.ZipInfo]]:
    """Split -> name -> entry, of the one folder of the archive that holds the three splits."""
    entries = archive.infolist()
    if len(entries) > MAX_ARCHIVE_ENTRIES:
        raise DataError(f"{path} has {len(entries):,} entries, more than {MAX_ARCHIVE_ENTRIES:,}; refused.")
    found: dict[tuple[str, ...], dict[str, dict[str, zipfile.ZipInfo]]] = {}
    top: dict[str, None] = {}
    for info in entries:
        parts = _checked_parts(path, info)
        if not parts or parts[0] == "__MACOSX":
            continue
        top.setdefault(parts[0] + ("/" if len(parts) > 1 or info.is_dir() else ""))
        if info.is_dir():
            if parts[-1] in SPLITS:
                found.setdefault(parts[:-1], {}).setdefault(parts[-1], {})
            continue
        if len(parts) < 2 or parts[-2] not in SPLITS:
            continue
        members = found.setdefault(parts[:-2], {}).setdefault(parts[-2], {})
        if parts[-1] in members:
            raise DataError(f"{path} holds {info.filename} twice; refused, since either could be meant.")
        members[parts[-1]] = info
    complete = [prefix for prefix, splits in found.items() if len(splits) == len(SPLITS)]
    if not complete:
        raise DataError(
            f"{path} has no folder with {', '.join(SPLITS)}, as DukeMTMC-reID.zip has; found at its top: "
            f"{first_of(list(top)) or 'nothing'}."
        )
    if len(complete) > 1:
        names = ", ".join("/".join(prefix) or "the top" for prefix in complete)
        raise DataError(f"{path} holds DukeMTMC-reID more than once ({names}); unpack it and give one folder.")
    return found[complete[0]]


def _checked_parts(path: Path, info: zipfile.ZipInfo) -> tuple[str, ...]:
    """Folders and name of an entry; refuses what has no place in an honest archive."""
    name = info.filename.replace("\\", "/")  # some programs on Windows write these
    parts = tuple(part for part in name.split("/") if part not in ("", "."))
    if name.startswith("/") or ".." in parts or _DRIVE.match(name):
        raise DataError(f"{path} holds the name {info.filename!r}, which leads outside the archive; refused.")
    if stat.S_ISLNK(info.external_attr >> 16):
        raise DataError(f"{path} holds the link {info.filename!r}; refused, since it could lead anywhere.")
    return parts
