"""Safe reading of published checkpoint files: tensors and numbers, never code."""

from __future__ import annotations

import logging
import numbers
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from amg_plugin.errors import CheckpointError
from amg_plugin.models.safe_reading import NUMPY_NUMBERS

logger = logging.getLogger(__name__)

#: Entries under which training programs keep the state dict.
WRAPPERS = ("state_dict", "model_state_dict", "model", "net")


def read_published(path: str | Path) -> dict[str, Tensor]:
    """Read the state dict of a published checkpoint, as data only.

    Pickles are read with ``weights_only=True`` and may hold tensors, parameters (also boolean ones), plain containers
    and numbers, numpy's included. Numbers beside the tensors are left out.

    Args:
        path: A ``.pth``/``.pt`` or ``.safetensors`` file.

    Returns:
        Tensors by name, on the CPU.

    Raises:
        CheckpointError: If the file is missing, holds anything else than data, or no state dict.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"The checkpoint '{path}' does not exist; give a local .pth or .safetensors file.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals(NUMPY_NUMBERS):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the readers raise many types for foreign files
        culprit = re.search(r"(?:GLOBAL|global:?) ([\w]+(?:\.[\w]+)+)", str(error))
        if culprit:
            raise CheckpointError(
                f"The checkpoint '{path}' is refused: it names '{culprit[1]}', and only tensors, numbers and plain "
                "containers are read, since anything else could run code."
            ) from error
        raise CheckpointError(
            f"The checkpoint '{path}' cannot be read as data ({type(error).__name__}); it is truncated, or of another "
            "format than .pth and .safetensors."
        ) from error
    return _state_dict_in(content, path)


def _state_dict_in(content: Any, path: Path) -> dict[str, Tensor]:
    for wrapper in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not any(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(f"The checkpoint '{path}' holds no state dict; a dictionary of named tensors is needed.")
    state = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    beside = {str(name): value for name, value in content.items() if not isinstance(value, Tensor)}
    for name, value in beside.items():
        if not isinstance(value, numbers.Number | np.generic):
            raise CheckpointError(
                f"The entry '{name}' of the checkpoint '{path}' is a {type(value).__name__}; "
                "only tensors and numbers are allowed in a state dict."
            )
    if beside:
        logger.info("%d numbers in %s are no tensors and are left out: %s", len(beside), path, ", ".join(beside))
    return state
