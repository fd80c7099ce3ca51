"""``details.json``: what a run keeps beside its ``result.json`` for reports, too long for people to read there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from amg_plugin.errors import InputError
from amg_plugin.utils.files import kind_of, read_json, write_text
from amg_plugin.utils.processes import main_only

FILE_NAME = "details.json"
VERSION = 1


@main_only
def write_details(folder: str | Path, queries: Mapping[str, Any], attention: Mapping[str, Any] | None = None) -> Path:
    """Write the file; an old one is replaced.

    Args:
        folder: Where ``result.json`` is.
        queries: Per section and target what :func:`amg_plugin.evaluation.evaluator.query_section` gives.
        attention: What :func:`amg_plugin.report.attention.mean_maps` gives.

    Raises:
        RunError: If it cannot be written.
    """
    content = {"version": VERSION, "queries": dict(queries), **({"attention": dict(attention)} if attention else {})}
    return write_text(Path(folder) / FILE_NAME, json.dumps(content, separators=(",", ":")) + "\n")


def read_details(folder: str | Path) -> dict[str, Any]:
    """Read the file of a run; ``{}`` where there is none, as of runs of earlier releases.

    Raises:
        InputError: If it is something else.
    """
    path = Path(folder) / FILE_NAME
    if not kind_of(path):
        return {}
    content = read_json(path)
    if not isinstance(content, Mapping) or content.get("version") != VERSION:
        raise InputError(f"'{path}' does not hold the details of a run in version {VERSION}.")
    return dict(content)


def per_query(kept: Mapping[str, Any], score: str) -> np.ndarray:
    """What each query of a target contributed to ``"mAP"`` or ``"rank1"``, ``[n]``; ``kept`` is the target's entry."""
    return np.array(kept["AP"], dtype=float) if score == "mAP" else (np.array(kept["first"]) == 1).astype(float)
