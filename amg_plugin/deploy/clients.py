"""Programs of others that ``amg-reid export --for`` writes files for: what they do to images, and what they read.

What is said of a program was read in the source or the manual of the version named here. Light: only the standard
library is imported.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from amg_plugin.errors import InputError

if TYPE_CHECKING:
    from amg_plugin.deploy.exported_file import ExportInfo


@dataclass(frozen=True, kw_only=True)
class Client:
    """A program that gives images to exported files, any number at once.

    Attributes:
        program: Its name and version.
        input: What it does to images, one of :data:`~amg_plugin.utils.preprocessing.INPUTS`.
        suffixes: How the names of files end that it takes, by format.
        words: Words in a file's name by which it chooses something else -> what it chooses.
        ending: How the name of what it reads beside the file ends; the file's name stands before it.
        text: ``text(info, name)`` gives what it reads there.
    """

    program: str
    input: str
    suffixes: Mapping[str, str]
    words: Mapping[str, str] = field(default_factory=dict)
    ending: str
    text: Callable[[ExportInfo, str], str]

    def beside(self, output: Path) -> Path:
        """The file that it reads beside ``output``."""
        return output.with_name(f"{output.name}{self.ending}")

    def check(self, file_format: str, output: Path, given: str | None) -> None:
        """Check that it would take a file as what it is.

        Args:
            file_format: The file's format.
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
}
