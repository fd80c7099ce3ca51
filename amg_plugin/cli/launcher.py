"""Run any torchreid script, unchanged, with the plugin's names registered.

torchreid's own ``scripts/main.py`` does not import plugins and does not know ``amg.*`` keys. The launcher registers,
puts the ``amg`` node of a file in force and then runs the script as ``python SCRIPT ARGS...`` would.
"""

from __future__ import annotations

import contextlib
import os
import runpy
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from amg_plugin.errors import InputError


def run_script(script: str, arguments: Sequence[str], amg_config: str | None = None) -> None:
    """Run ``script`` as ``python SCRIPT ARGS...`` would.

    ``sys.argv`` and the first entry of ``sys.path`` (the script's folder, so that it finds its neighbours) are set for
    the run and restored afterwards. What the script raises, ``SystemExit`` included, passes through.

    Args:
        script: The file.
        arguments: The script's own words.
        amg_config: File whose ``amg`` node the script's models are built by; stays in force afterwards.

    Raises:
        InputError: The script cannot be read, or the file is wrong.
        MissingDependencyError: torchreid is missing or broken.
    """
    _check(Path(script))
    from amg_plugin.plugin.registry import register

    register()
    if amg_config is not None:
        from amg_plugin.config.load import apply_amg_node
        from amg_plugin.plugin.active import set_active_amg_config

        set_active_amg_config(apply_amg_node(amg_config))
    with _as_if_started(Path(script), arguments):
        runpy.run_path(script, run_name="__main__")


def _check(script: Path) -> None:
    if script.is_dir():
        raise InputError(f"SCRIPT '{script}' is a folder; name a Python file in it, such as {script / 'main.py'}.")
    if not os.access(script, os.R_OK):
        raise InputError(f"SCRIPT '{script}' cannot be read; check its permissions.")


@contextlib.contextmanager
def _as_if_started(script: Path, arguments: Sequence[str]) -> Iterator[None]:
    argv, path = sys.argv, sys.path[:]
    sys.argv = [str(script), *arguments]
    if not getattr(sys.flags, "safe_path", False):  # python -P leaves the script's folder out too
        # Python put the folder of this program first, `python -m` the current one; the script would not see them.
        if sys.path and sys.path[0] in ("", str(Path.cwd()), str(Path(argv[0]).parent)):
            del sys.path[0]
        sys.path.insert(0, str(script.resolve().parent))
    # Worker processes get a copy of sys.path and must find the plugin, also where it runs from its checkout.
    home = str(Path(__file__).resolve().parents[2])
    if home not in sys.path:
        sys.path.append(home)
    try:
        yield
    finally:
        sys.argv, sys.path[:] = argv, path
