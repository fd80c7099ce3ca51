"""Programs of others that ``amg-reid export --for`` writes files for: what they do to images, and what they read.

What is said of a program was read in the source or the manual of the version named here. Light: only the standard
library and what is equally light is imported.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from amg_plugin.errors import InputError
from amg_plugin.registries.formats import PRECISIONS

if TYPE_CHECKING:
    from amg_plugin.deploy.exported_file import ExportInfo


@dataclass(frozen=True, kw_only=True)
class Client:
    """A program that gives images to exported files, any number at once.

    Attributes:
        program: Its name and version.
        input: What it does to images, one of :data:`~amg_plugin.utils.preprocessing.INPUTS`.
        suffixes: How the names of files end that it takes, by format.
        precisions: Those of :data:`~amg_plugin.registries.formats.PRECISIONS` that it takes.
        words: Words in a file's name by which it chooses something else -> what it chooses.
        ending: How the name of what it reads beside the file ends; the file's name stands before it.
        text: ``text(info, name)`` gives what it reads there.
    """

    program: str
    input: str
    suffixes: Mapping[str, str]
    precisions: tuple[str, ...] = PRECISIONS
    words: Mapping[str, str] = field(default_factory=dict)
    ending: str
    text: Callable[[ExportInfo, str], str]

    def beside(self, output: Path) -> Path:
        """The file that it reads beside ``output``."""
        return output.with_name(f"{output.name}{self.ending}")

    def check(self, file_format: str, precision: str, output: Path, given: str | None) -> None:
        """Check that it would take a file as what it is.

        Args:
            file_format: The file's format.
            precision: The file's precision.
            output: The file.
            given: What ``--input`` says, None if nothing.

        Raises:
            InputError: If it would not.
        """
        if given not in (None, self.input):
            raise InputError(f"--input {given} is not what {self.program} does; leave --input out.")
        if self.suffixes.get(file_format) != output.suffix.lower():
            allowed = ", ".join(f"{name} ({suffix})" for name, suffix in self.suffixes.items())
            raise InputError(
                f"--output '{output}' is not a file of {file_format} that {self.program} takes; it takes {allowed}."
            )
        if precision not in self.precisions:
            raise InputError(f"--{precision} is not for {self.program}; leave it out.")
        for word, choice in self.words.items():
            if word in output.name.lower():
                raise InputError(
                    f"--output '{output.name}' has '{word}' in its name, by which {self.program} or an older release "
                    f"chooses {choice}; choose another name."
                )


def _boxmot_metadata(info: ExportInfo, name: str) -> str:
    """What BoxMOT reads for the size of images, before it looks at the file's name."""
    values = {
        "schema_version": 1,
        "model_name": info.spec["arch"],
        "model_kwargs_schema_version": 1,
        "model_kwargs": {"img_size": list(info.image_size)},
        "preprocess": "resize",
    }
    return json.dumps(values, indent=1) + "\n"


def _tracker_section(info: ExportInfo, name: str) -> str:
    """The section ``ReID`` of a tracker's configuration; images are scaled to 0 to 1, and nothing is subtracted."""
    height, width = info.image_size
    return f"""# The section ReID of a Gst-nvtracker configuration (NvDCF, NvDeepSORT), for {name}.
# Give paths from the root, unless your release looks for them beside the configuration (9.2 does).
ReID:
  reidType: 2  # re-association; 1: NvDeepSORT; 3: both
  batchSize: 100
  workspaceSize: 1000
  reidFeatureSize: {info.feature_dim}
  reidHistorySize: 100
  inferDims: [3, {height}, {width}]
  networkMode: 0  # float32; 1: half precision
  inputOrder: 0  # [B, 3, height, width]
  colorFormat: 0  # RGB
  offsets: [0.0, 0.0, 0.0]
  netScaleFactor: {1 / 255!r}
  keepAspc: 0  # stretched to the size, as in training
  addFeatureNormalization: {int(not info.l2_normalize)}
  onnxFile: {json.dumps(name)}
  modelEngineFile: {json.dumps(f"{name}_b100_gpu0_fp32.engine")}
"""


#: By the word in ``--for``.
CLIENTS: dict[str, Client] = {
    "boxmot": Client(
        program="BoxMOT 25.0.0",
        input="imagenet",
        suffixes={"onnx": ".onnx", "openvino": ".xml", "torchscript": ".torchscript"},
        words={
            "vehicleid": "256x256 pixels",
            "veri": "256x256 pixels",
            "hacnn": "160x64 pixels",
            "lmbn": "384x128 pixels",
            "hi_afa": "384x128 pixels",
            "csl_tinyvit": "384x128 pixels",
            "mobilenetv4": "384x128 pixels",
            "clip": "a mean and std of 0.5",
        },
        ending=".metadata.json",
        text=_boxmot_metadata,
    ),
    "deepstream": Client(
        program="DeepStream 7",
        input="unit",
        suffixes={"onnx": ".onnx"},
        precisions=("fp32",),
        ending=".deepstream.yml",
        text=_tracker_section,
    ),
}
