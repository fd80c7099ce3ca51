"""Reading text and JSON of any origin; files and folders that appear under their name only once they are complete."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from amg_plugin.errors import AMGError, InputError, RunError

#: Most bytes of a text that is read.
LARGEST_TEXT = 1 << 26
#: What the system says where there is no room left, for anybody or for this user.
_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))


def kind_of(path: str | Path) -> str:
    """What a path leads to: ``"file"``, ``"folder"``, or nothing, which an impossible name leads to, too."""
    try:
        mode = Path(path).stat().st_mode
    except (OSError, ValueError):  # too long a name; a NUL or half a character in it
        return ""
    return "file" if stat.S_ISREG(mode) else "folder" if stat.S_ISDIR(mode) else ""


def read_text(
    path: str | Path, what: str = "file", error: type[AMGError] = InputError, limit: int = LARGEST_TEXT
) -> str:
    """Read a text file in UTF-8.

    Args:
        path: The file.
        what: What it is, for the message.
        error: The class of the error.
        limit: Most bytes.

    Raises:
        AMGError: ``error``, if the file is missing, larger or no text.
    """
    try:
        with Path(path).open("rb") as file:
            content = file.read(limit + 1)
        if len(content) > limit:
            raise ValueError(f"it is larger than {limit >> 20} MiB")
        return content.decode("utf-8-sig")
    except (OSError, ValueError) as reason:  # ValueError: undecodable, or a NUL or half a character in the path
        said = getattr(reason, "strerror", None) or reason
        raise error(f"The {what} '{path}' cannot be read: {said}.") from reason


def parse_json(text: str | bytes, where: str, error: type[AMGError] = InputError) -> Any:
    """What a JSON text says, of any origin: nested too deeply or with numbers of any length, too.

    Raises:
        AMGError: ``error``, beginning with ``where``, if it is not JSON.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as reason:
        raise error(f"{where} cannot be read as JSON: {reason}.") from reason


def read_json(path: str | Path, what: str = "file", error: type[AMGError] = InputError) -> Any:
    """Read a JSON file; arguments and errors as :func:`read_text`."""
    return parse_json(read_text(path, what, error), f"The {what} '{path}'", error)


#: Temporary files that are being written.
_drafts: set[Path] = set()


@contextlib.contextmanager
def replacing(path: str | Path, what: str = "file", previous: Path | None = None) -> Iterator[Path]:
    """Give a temporary path next to ``path`` that takes its place at the end of the ``with`` block.

    What was written is on the disk before it gets its name. If the block fails or is interrupted, the temporary file is
    removed and an older ``path`` stays as it was. A link under that name is replaced, not followed. Missing folders are
    made.

    Args:
        path: The file to write.
        what: What it is, for the message.
        previous: The name that an older ``path`` gets; without one it goes.

    Raises:
        RunError: If it cannot be written.

    Example:
        >>> with replacing("result.json") as draft:
        ...     draft.write_text("{}")
    """
    path = Path(path)
    draft = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
        os.close(handle)
        draft = Path(name)
        _drafts.add(draft)
        yield draft
        draft.chmod(0o666 & ~_umask())  # mkstemp makes it private
        _flush(draft, os.O_RDWR)
        if previous is not None and path.exists():
            path.replace(previous)
        draft.replace(path)
        with contextlib.suppress(OSError):  # folders cannot be flushed everywhere
            _flush(path.parent, os.O_RDONLY)
    except OSError as error:
        if error.errno in _FULL:
            raise full_disk(path, what) from error
        raise RunError(f"The {what} '{path}' cannot be written: {error.strerror or error}.") from error
    finally:
        if draft is not None:
            with contextlib.suppress(OSError):
                draft.unlink(missing_ok=True)
            _drafts.discard(draft)


def discard_drafts() -> None:
    """Remove what is being written, for a process that ends at once."""
    for draft in list(_drafts):
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)


def remove_stale_drafts(folder: str | Path, *names: str) -> None:
    """Remove what processes that were killed have left of files that they were writing.

    Args:
        folder: A folder that nobody else writes to.
        *names: The files that were to be written.
    """
    for name in names:
        for draft in Path(folder).glob(f".{name}.????????{Path(name).suffix}"):
            with contextlib.suppress(OSError):
                draft.unlink()


def full_disk(path: str | Path, what: str = "file") -> RunError:
    """The error for a file that there is no room for."""
    path = Path(path)
    said = os.strerror(errno.ENOSPC)
    return RunError(f"The disk is full ({said}): there is no room for the {what} '{path.name}' in '{path.parent}'.")


def _flush(path: Path, flags: int) -> None:
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: str | Path, text: str, what: str = "file") -> Path:
    """Write a text file in UTF-8, as :func:`replacing` does.

    Raises:
        RunError: If it cannot be written.
    """
    with replacing(path, what) as draft:
        draft.write_text(text, encoding="utf-8")
    return Path(path)


@contextlib.contextmanager
def new_folder(target: str | Path) -> Iterator[Path]:
    """Give a temporary folder next to ``target`` that gets its name at the end of the ``with`` block.

    If the block fails, the folder is removed, and ``target`` does not exist.

    Args:
        target: The folder to make; its parents are made, too.

    Raises:
        OSError: If a folder cannot be made or renamed.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        yield work
        work.chmod(0o777 & ~_umask())  # mkdtemp makes it private
        work.rename(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def expanded(path: str | Path) -> Path:
    """A path with the home folder that ``~`` or ``~name`` stands for.

    Raises:
        InputError: If there is no such user here.
    """
    try:
        return Path(path).expanduser()
    except (RuntimeError, ValueError) as error:  # ValueError: a NUL or half a character in the name
        raise InputError(f"'{path}' cannot be used: {str(error).rstrip('.')}; write the folder out.") from error


def check_output(path: str | Path, option: str = "--output") -> Path:
    """Check that a file can be written at the end of a command, before its work is done; nothing is made.

    Raises:
        InputError: If it is a folder, or its own folder is not writable.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{option} '{path}' is a folder; give the name of a file.")
    check_writable(next(folder for folder in path.absolute().parents if folder.exists()), f"The folder of {option},")
    return path


def check_writable(folder: str | Path, what: str = "data.save_dir") -> Path:
    """Make ``folder`` and check that files can be written into it.

    Args:
        folder: The folder.
        what: Where it was given, for the message.

    Raises:
        InputError: If they cannot.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"{what} '{folder}' is not writable ({error.strerror}); choose another folder.") from error
    return folder


def sha256(path: str | Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
