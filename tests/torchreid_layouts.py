"""Both layouts of torchreid, for tests that start a fresh interpreter.

PyPI's release keeps everything under ``torchreid.reid``, the git master directly under ``torchreid``. The second is
made from the first: the same code, one level up.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import amg_plugin

PACKAGE_HOME = Path(amg_plugin.__file__).resolve().parent.parent

_BLOCKER = '''\
"""Makes the packages named in BLOCKED_PACKAGES look as if they were not installed."""
import os
import sys


class _Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in os.environ.get("BLOCKED_PACKAGES", "").split(","):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, _Blocker())
'''


def installed_torchreid() -> Path | None:
    """Folder of the installed torchreid, without importing it."""
    spec = importlib.util.find_spec("torchreid")
    return Path(spec.origin).parent if spec and spec.origin else None


def make_git_layout(installed: Path, destination: Path) -> Path:
    """Write the git layout of ``installed`` (a PyPI layout) into ``destination``; returns what to put on the path."""
    package = destination / "torchreid"
    shutil.copytree(installed / "reid", package, ignore=shutil.ignore_patterns("__pycache__"))
    for file in package.rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        moved = re.sub(r"\btorchreid\.reid\b", "torchreid", text)
        if moved != text:
            file.write_text(moved, encoding="utf-8")
    return destination


@dataclass(frozen=True)
class Layout:
    """One torchreid, and how to start Python with it.

    Attributes:
        name: ``"pypi"`` or ``"git"``.
        search_path: Folders that go in front of the installed packages.
        blocker: Folder with the ``sitecustomize`` that hides packages.
    """

    name: str
    search_path: tuple[Path, ...]
    blocker: Path

    def run(
        self, *words: object, cwd: Path, hide: Sequence[str] = (), timeout: float = 300
    ) -> subprocess.CompletedProcess[str]:
        """Run ``python WORDS...`` with this torchreid, the packages in ``hide`` looking absent."""
        env = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(str, (self.blocker, *self.search_path, PACKAGE_HOME))),
            "PYTHONWARNINGS": "ignore",
            "OMP_NUM_THREADS": "1",
            "BLOCKED_PACKAGES": ",".join(hide),
        }
        return subprocess.run(
            [sys.executable, *map(str, words)],
            cwd=cwd,
            env=env,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )


def make_layout(name: str, folder: Path) -> Layout | None:
    """Return the layout called ``name``, or ``None`` if the installed torchreid cannot give it."""
    installed = installed_torchreid()
    if installed is None:
        return None
    blocker = folder / "blocker"
    blocker.mkdir(parents=True)
    (blocker / "sitecustomize.py").write_text(_BLOCKER, encoding="utf-8")
    is_pypi = (installed / "reid").is_dir()
    if name == "git" and is_pypi:
        return Layout(name, (make_git_layout(installed, folder / "git"),), blocker)
    if is_pypi == (name == "pypi"):
        return Layout(name, (), blocker)
    return None
