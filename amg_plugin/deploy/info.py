"""What an exported file says about itself: one JSON text inside the file."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from amg_plugin.errors import CheckpointError
from amg_plugin.registries.formats import FORMATS, PRECISIONS
from amg_plugin.registries.imports import stored_imports
from amg_plugin.utils.preprocessing import Preprocessing, damaged, is_size

FORMAT = "amg_plugin.export"
VERSION = 1
#: Under which name the text is in the file.
KEY = "amg_plugin"
#: Under which name an OpenVINO file (.xml) keeps the SHA-256 of the weights (.bin) that belong to it.
WEIGHTS_KEY = "amg_plugin_weights"
#: Name of the same text among the extra files of TorchScript and ExportedProgram archives.
EXTRA_FILE = "amg_plugin.json"

_LABELS = ("camids", "viewids")


@dataclass(frozen=True)
class ExportInfo:
    """Everything a user of the file has to know.

    Attributes:
        file_format: One of :data:`~amg_plugin.registries.formats.FORMATS`.
        precision: One of :data:`~amg_plugin.registries.formats.PRECISIONS`; inputs and outputs are float32 in each.
        batch: Images per call, None for any number.
        inputs: Names in order: ``images`` ``[B, 3, height, width]``, then ``camids`` and ``viewids`` ``[B]`` int64 if
            the network uses them (from 0; negative for unseen ones).
        normalize_input: Images are RGB from 0 to 1 and the graph normalises them; otherwise they come normalised.
        l2_normalize: Features have length 1.
        feature_dim: D of the features ``[B, D]``.
        preprocessing: How images become inputs.
        spec: The dense network, as in the checkpoint.
        plan: What is pruned, as in the checkpoint.
        source: ``name`` and ``sha256`` of the checkpoint.
        config: The checkpoint's configuration without its folders.
        versions: Packages that wrote the file.
    """

    file_format: str
    precision: str
    batch: int | None
    inputs: tuple[str, ...]
    normalize_input: bool
    l2_normalize: bool
    feature_dim: int
    preprocessing: Preprocessing
    spec: dict[str, Any] = field(default_factory=dict)
    plan: dict[str, Any] = field(default_factory=dict)
    source: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        values = {**asdict(self), "inputs": list(self.inputs), "preprocessing": self.preprocessing.to_dict()}
        return {"format": FORMAT, "version": VERSION, **values}

    def to_json(self) -> str:
        """The text that goes into the file."""
        return json.dumps(self.to_dict(), sort_keys=True)

    @classmethod
    def from_json(cls, text: str, path: str | Path) -> ExportInfo:
        """Inverse of :meth:`to_json`.

        Args:
            text: What was found in the file.
            path: The file, for messages.

        Raises:
            CheckpointError: If it is not a text of ours.
        """
        try:
            data = json.loads(text)
        except ValueError as error:
            raise CheckpointError(f"The description in '{path}' cannot be read: {error}.") from error
        if not isinstance(data, dict) or data.pop("format", None) != FORMAT:
            raise foreign(path)
        if (version := data.pop("version", None)) != VERSION:
            raise CheckpointError(f"'{path}' has export version {version!r}; this release reads version {VERSION}.")
        try:
            preprocessing = Preprocessing.from_dict(data["preprocessing"], path)
            info = cls(**{**data, "inputs": tuple(data["inputs"]), "preprocessing": preprocessing})
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"The description in '{path}' is incomplete or damaged: {error}.") from error
        info._check(path)
        stored_imports(info.config, f"'{path}'")
        return info

    def _check(self, path: str | Path) -> None:
        whole = {name: getattr(self, name) for name in ("spec", "plan", "source", "config", "versions")}
        inner = {
            "spec.side_information": (self.spec if isinstance(self.spec, dict) else {}).get("side_information") or {},
            "config.data": (self.config if isinstance(self.config, dict) else {}).get("data", {}),
        }
        for name, value in {**whole, **inner}.items():
            if not isinstance(value, dict):
                raise damaged(path, name, value, "an object")
        labels = [
            name
            for name, key in zip(_LABELS, ("cameras", "views"), strict=True)
            if inner["spec.side_information"].get(key)
        ]
        checks = {
            "file_format": (self.file_format in FORMATS, f"one of {', '.join(FORMATS)}"),
            "precision": (self.precision in PRECISIONS, f"one of {', '.join(PRECISIONS)}"),
            "batch": (self.batch is None or is_size(self.batch), "null or a whole number from 1"),
            "inputs": (self.inputs == ("images", *labels), f"{', '.join(['images', *labels])} for its network"),
            "normalize_input": (isinstance(self.normalize_input, bool), "true or false"),
            "l2_normalize": (isinstance(self.l2_normalize, bool), "true or false"),
            "feature_dim": (is_size(self.feature_dim), "a whole number from 1"),
        }
        for name, (fine, allowed) in checks.items():
            if not fine:
                raise damaged(path, name, getattr(self, name), allowed)

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.preprocessing.image_size

    @property
    def label_inputs(self) -> tuple[str, ...]:
        """Inputs after the images."""
        return tuple(name for name in self.inputs if name != "images")

    def labels_in_turn(self, start: int, count: int) -> dict[str, np.ndarray]:
        """Labels int64 ``[count]`` per label input that take every value in turn, unseen (-1) included."""
        side = self.spec.get("side_information") or {}
        totals = {"camids": side.get("cameras", 0), "viewids": side.get("views", 0)}
        return {name: (start + np.arange(count)) % (totals[name] + 1) - 1 for name in self.label_inputs}


def foreign(path: str | Path) -> CheckpointError:
    """The error for a file of another program."""
    return CheckpointError(
        f"'{path}' was not written by 'amg-reid export': it does not say how images are prepared for it."
    )
