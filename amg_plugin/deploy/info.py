"""What an exported file says about itself: one JSON text inside the file."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from amg_plugin.errors import CheckpointError

FORMAT = "amg_plugin.export"
VERSION = 1
#: Under which name the text lies in the file.
KEY = "amg_plugin"
#: Under which name an OpenVINO file (.xml) keeps the SHA-256 of the weights (.bin) that belong to it.
WEIGHTS_KEY = "amg_plugin_weights"
#: Name of the same text among the extra files of TorchScript and ExportedProgram archives.
EXTRA_FILE = "amg_plugin.json"

FORMATS = ("onnx", "torchscript", "exported_program", "openvino")
PRECISIONS = ("fp32", "fp16", "int8")
INTERPOLATIONS = ("bilinear", "bicubic")
_LABELS = ("camids", "viewids")
_PREPROCESSING = ("height", "width", "mean", "std", "interpolation")


@dataclass(frozen=True)
class ExportInfo:
    """Everything a user of the file has to know.

    Attributes:
        file_format: One of :data:`FORMATS`.
        precision: One of :data:`PRECISIONS`; inputs and outputs are float32 in each.
        batch: Images per call, None for any number.
        inputs: Names in order: ``images`` ``[B, 3, height, width]``, then ``camids`` and ``viewids`` ``[B]`` int64 if
            the network uses them (from 0; negative for unseen ones).
        normalize_input: Images are RGB from 0 to 1 and the graph normalises them; otherwise they come normalised.
        l2_normalize: Features have length 1.
        feature_dim: D of the features ``[B, D]``.
        preprocessing: ``height``, ``width``, ``mean``, ``std``, ``interpolation``.
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
    preprocessing: dict[str, Any]
    spec: dict[str, Any] = field(default_factory=dict)
    plan: dict[str, Any] = field(default_factory=dict)
    source: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {"format": FORMAT, "version": VERSION, **asdict(self), "inputs": list(self.inputs)}

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
            info = cls(**{**data, "inputs": tuple(data["inputs"])})
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"The description in '{path}' is incomplete or damaged: {error}.") from error
        info._check(path)
        return info

    def _check(self, path: str | Path) -> None:
        whole = {name: getattr(self, name) for name in ("spec", "plan", "source", "config", "versions")}
        inner = {
            "spec.side_information": (self.spec if isinstance(self.spec, dict) else {}).get("side_information") or {},
            "config.data": (self.config if isinstance(self.config, dict) else {}).get("data", {}),
        }
        for name, value in {**whole, **inner}.items():
            if not isinstance(value, dict):
                raise _damaged(path, name, value, "an object")
        labels = [
            name
            for name, key in zip(_LABELS, ("cameras", "views"), strict=True)
            if inner["spec.side_information"].get(key)
        ]
        checks = {
            "file_format": (self.file_format in FORMATS, f"one of {', '.join(FORMATS)}"),
            "precision": (self.precision in PRECISIONS, f"one of {', '.join(PRECISIONS)}"),
            "batch": (self.batch is None or _is_size(self.batch), "null or a whole number from 1"),
            "inputs": (self.inputs == ("images", *labels), f"{', '.join(['images', *labels])} for its network"),
            "normalize_input": (isinstance(self.normalize_input, bool), "true or false"),
            "l2_normalize": (isinstance(self.l2_normalize, bool), "true or false"),
            "feature_dim": (_is_size(self.feature_dim), "a whole number from 1"),
        }
        for name, (fine, allowed) in checks.items():
            if not fine:
                raise _damaged(path, name, getattr(self, name), allowed)
        check_preprocessing(self.preprocessing, path)

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.preprocessing["height"], self.preprocessing["width"]

    @property
    def label_inputs(self) -> tuple[str, ...]:
        """Inputs after the images."""
        return tuple(name for name in self.inputs if name != "images")


def _is_size(value: Any) -> bool:
    return type(value) is int and value > 0


def _are_three(values: Any, least: float) -> bool:
    return (
        isinstance(values, list | tuple)
        and len(values) == 3
        and all(type(value) in (int, float) and math.isfinite(value) and value > least for value in values)
    )


def _damaged(path: str | Path, name: str, value: Any, allowed: str) -> CheckpointError:
    return CheckpointError(f"The description in '{path}' has {name} {value!r}, which must be {allowed}.")


def foreign(path: str | Path) -> CheckpointError:
    """The error for a file of another program."""
    return CheckpointError(
        f"'{path}' was not written by 'amg-reid export': it does not say how images are prepared for it."
    )


def check_preprocessing(values: Mapping[str, Any], path: str | Path) -> None:
    """Check that the preparation of images is recorded completely.

    Raises:
        CheckpointError: If something is missing or impossible.
    """
    if not isinstance(values, Mapping):
        raise _damaged(path, "preprocessing", values, "an object")
    if missing := [name for name in _PREPROCESSING if name not in values]:
        raise CheckpointError(
            f"'{path}' does not record how images are prepared ({', '.join(missing)}); "
            "save it with amg_plugin.checkpoint.save_checkpoint(..., preprocessing=...)."
        )
    checks = {
        "height": (_is_size(values["height"]), "a whole number from 1"),
        "width": (_is_size(values["width"]), "a whole number from 1"),
        "mean": (_are_three(values["mean"], -math.inf), "three numbers"),
        "std": (_are_three(values["std"], 0), "three numbers above 0"),
    }
    for name, (fine, allowed) in checks.items():
        if not fine:
            raise _damaged(path, name, values[name], allowed)
    if values["interpolation"] not in INTERPOLATIONS:
        raise CheckpointError(
            f"'{path}' asks for the interpolation {values['interpolation']!r}; allowed are {', '.join(INTERPOLATIONS)}."
        )


def file_size(path: str | Path) -> int:
    """Bytes of an exported file, with the weights that OpenVINO keeps beside it."""
    path = Path(path)
    weights = path.with_suffix(".bin")
    beside = weights.stat().st_size if path.suffix.lower() == ".xml" and weights.exists() else 0
    return path.stat().st_size + beside
