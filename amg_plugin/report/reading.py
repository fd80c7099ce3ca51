"""What the files of a run say: ``result.json``, ``details.json`` where it is, a checkpoint and measured times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from amg_plugin.checkpoint import LAST_CHECKPOINT, Checkpoint, read_checkpoint
from amg_plugin.errors import InputError
from amg_plugin.models.build import build_network
from amg_plugin.models.vit import backbone_of
from amg_plugin.pruning import PruningPlan
from amg_plugin.runs import details
from amg_plugin.runs import result as results
from amg_plugin.runs.finished import folder_of, names_of, read_bench, read_finished, times_beside
from amg_plugin.utils.files import kind_of

#: What the sections of a result are called on a page.
NAMES = {
    "dense": "dense",
    "start": "at the start",
    "pruned": "after the last cut",
    "finetuned": "fine-tuned",
    "reduced": "with reducer",
    "exported": "exported file",
}


@dataclass(frozen=True)
class Structure:
    """Kept heads and positions.

    Attributes:
        plan: The plan of the network.
        grid: Rows and columns of patches.
        image_size: (height, width) in pixels.
    """

    plan: PruningPlan
    grid: tuple[int, int]
    image_size: tuple[int, int]

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Structure | None:
        """That of a checkpoint; None for a network that chooses its tokens image by image."""
        if checkpoint.spec.reducer is not None:
            return None
        checkpoint.check()
        with torch.device("meta"):
            network = build_network(replace(checkpoint.spec, drop_path=0.0))  # whose rates timm may read
        rows, columns = backbone_of(network).patch_embed.grid_size
        return cls(checkpoint.plan, (rows, columns), tuple(checkpoint.spec.image_size))


@dataclass(frozen=True)
class Run:
    """The files of one run.

    Attributes:
        name: What tells it from the others of a page.
        result: ``result.json``.
        queries: Per section and target what every query contributed, see ``details.json``.
        attention: Mean attention of its models, ``{}`` if it was not kept.
        structure: What the network of its last checkpoint keeps, None if that is not known.
        times: Rows of ``amg-reid bench``, each with the ``measured_on`` of its file.
    """

    name: str
    result: Mapping[str, Any]
    queries: Mapping[str, Any] = field(default_factory=dict)
    attention: Mapping[str, Any] = field(default_factory=dict)
    structure: Structure | None = None
    times: Sequence[Mapping[str, Any]] = ()

    @property
    def sections(self) -> list[str]:
        """Its sections, in order; none for asymmetric retrieval, which has tables of its own."""
        return [name for name in results.SECTIONS if name in self.result]

    @property
    def last(self) -> str:
        """The section of the network that it ended with."""
        return self.sections[-1]

    @property
    def target(self) -> str:
        """The target that comes first."""
        return next(iter(self.result[self.last]["targets"]))

    @property
    def history(self) -> Sequence[Mapping[str, Any]]:
        """Epochs, evaluations and cuts in order."""
        return self.result.get("history", [])


def read_runs(words: Sequence[str | Path], bench: Sequence[str | Path] = ()) -> list[Run]:
    """Read the runs of a page.

    Args:
        words: Folders of runs, or their ``result.json``.
        bench: JSON files of ``amg-reid bench --output``, which belong to the first run.

    Raises:
        InputError: If a file is missing, or something else.
    """
    folders = [folder_of(word) for word in words]
    if twice := next((folder for folder in folders if folders.count(folder) > 1), None):
        raise InputError(f"The run '{twice}' is given twice; give each run once.")
    names = names_of(folders)
    return [_read(*one, bench if number == 0 else ()) for number, one in enumerate(zip(folders, names, strict=True))]


def _read(folder: Path, name: str, bench: Sequence[str | Path]) -> Run:
    kept, last = details.read_details(folder), folder / LAST_CHECKPOINT
    structure = Structure.of(read_checkpoint(last)) if kind_of(last) == "file" else None
    times = [row for path in bench for row in read_bench(path)] + times_beside(folder)
    return Run(name, read_finished(folder), kept.get("queries", {}), kept.get("attention", {}), structure, times)
