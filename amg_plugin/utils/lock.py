"""One run per folder."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from amg_plugin.errors import InputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

logger = logging.getLogger(__name__)

#: Name of the file that stands for a run, while it lasts.
LOCK_FILE = ".amg-reid.lock"


@contextlib.contextmanager
def locked(folder: str | Path) -> Iterator[None]:
    """Hold a folder for this process, for the time of the ``with`` block.

    The system gives the lock back when the process ends, however it ends, so a process that is gone never stands in the
    way. Where there are no such locks (Windows, some network file systems), nothing is held.

    Raises:
        InputError: If another process holds it.
    """
    handle = _hold(Path(folder) / LOCK_FILE)
    try:
        yield
    finally:
        if handle is not None:
            with contextlib.suppress(OSError):
                (Path(folder) / LOCK_FILE).unlink()
            os.close(handle)


def _hold(path: Path) -> int | None:
    """A handle of the locked file; None where files cannot be locked."""
    while fcntl is not None:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_still(handle, path):
                os.ftruncate(handle, 0)
                os.write(handle, f"process {os.getpid()} on {socket.gethostname()}".encode())
                return handle
        except (BlockingIOError, PermissionError) as error:
            holder = _holder(handle)
            os.close(handle)
            raise InputError(
                f"'{path.parent}' is in use by {holder}; wait for it to end, or give another folder as data.save_dir."
            ) from error
        except OSError as error:
            os.close(handle)
            logger.warning("%s cannot be locked (%s): do not start two runs there", path.parent, error.strerror)
            return None
        os.close(handle)
    return None


def _holder(handle: int) -> str:
    """What the run that holds the lock says of itself; it may be about to."""
    for _ in range(20):
        if content := os.pread(handle, 200, 0):
            return content.decode(errors="replace")
        time.sleep(0.05)
    return "another process"


def _is_still(handle: int, path: Path) -> bool:
    """Whether the file that was locked has not been taken away by the run that held it."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False
