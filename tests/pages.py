"""Pages that are run as they are printed: their files are written, their shell lines run."""

import os
import re
import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]


def blocks(text: str) -> list[tuple[str, str, str]]:
    """Fenced blocks: name of the file in the line before, if any, language and text."""
    return re.findall(r"(?:^`(\S+)`\n\n)?^```(\w+)\n(.*?)^```$", text, flags=re.M | re.DOTALL)


def programs(folder: Path) -> dict[str, str]:
    """The environment in which ``python`` and ``amg-reid`` are those of the test; their scripts go to ``folder``."""
    for name, call in (("python", f'"{sys.executable}"'), ("amg-reid", f'"{sys.executable}" -m amg_plugin')):
        (folder / name).write_text(f'#!/bin/sh\nexec {call} "$@"\n', encoding="utf-8")
        (folder / name).chmod(0o755)
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": str(CHECKOUT)}


def run_shell(lines: str, folder: Path, environment: dict[str, str]) -> tuple[int, str]:
    """Exit status and output of shell lines, which end at the first that fails."""
    words = ["sh", "-e", "-c", lines]
    done = subprocess.run(
        words, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    return done.returncode, done.stdout
