"""What earlier passes found out about image files, so that an unchanged file is not decoded again.

The cache lies in the user's cache folder, since data roots are often read-only. Only files that were fine are kept:
a bad one is read again in every pass, and may have been repaired without a change of size and time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import sys
from pathlib import Path

import PIL

logger = logging.getLogger(__name__)

_FORMAT = "amg_plugin.checked_images"
_VERSION = 1


def cache_folder() -> Path:
    """The user's cache folder for this plugin: below ``XDG_CACHE_HOME`` if set, else the system's habit."""
    home = os.environ.get("XDG_CACHE_HOME")
    if not home and sys.platform == "win32":
        home = os.environ.get("LOCALAPPDATA")
    if home:
        return Path(home) / "amg_plugin"
    return Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "amg_plugin"


class CheckCache:
    """Files that were fine, by path, size and modification time; one cache file per data root.

    A cache file that is missing, damaged, of another version or of another Pillow counts as empty and is replaced.

    Args:
        root: Data root, which only names the cache file.
        folder: Where cache files lie; :func:`cache_folder` if omitted.
    """

    def __init__(self, root: str | Path, folder: Path | None = None) -> None:
        digest = hashlib.sha256(str(Path(root).expanduser().resolve()).encode()).hexdigest()[:16]
        self.path = (cache_folder() if folder is None else folder) / f"checked-images-{digest}.json"
        self._files = _read(self.path)
        self._changed = False

    def side_of(self, path: str, size: int, time: int) -> int | None:
        """Smaller side in pixels of a file that was fine with this size (bytes) and time (ns); None if unknown."""
        entry = self._files.get(path)
        return entry[2] if entry is not None and entry[0] == size and entry[1] == time else None

    def knows(self, path: str, size: int, time: int) -> bool:
        """Whether the file was fine with this size and time."""
        return self.side_of(path, size, time) is not None

    def add(self, path: str, size: int, time: int, side: int) -> None:
        """Remember that a file is fine."""
        self._files[path] = [size, time, side]
        self._changed = True

    def save(self) -> None:
        """Write the cache file, if anything is new; a folder that cannot be written leaves it as it is."""
        if not self._changed:
            return
        content = {"format": _FORMAT, "version": _VERSION, "pillow": PIL.__version__, "files": self._files}
        temporary = self.path.with_name(f"{self.path.name}.{os.getpid()}.part")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(content, separators=(",", ":")), encoding="utf-8")
            temporary.replace(self.path)
        except OSError as error:
            logger.info("the next run reads all images again: '%s' cannot be written (%s)", self.path, error.strerror)
            with contextlib.suppress(OSError):
                temporary.unlink()
            return
        self._changed = False


def _read(path: Path) -> dict[str, list[int]]:
    """Entries of a cache file; none if it cannot be used."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if (content["format"], content["version"], content["pillow"]) != (_FORMAT, _VERSION, PIL.__version__):
            return {}
        files = content["files"]
        # A damaged entry must not pass for a file that was fine.
        return {
            name: entry
            for name, entry in files.items()
            if isinstance(entry, list) and len(entry) == 3 and all(type(number) is int for number in entry)
        }
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        logger.debug("the cache '%s' is ignored: %s", path, error)
        return {}
