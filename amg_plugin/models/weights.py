"""Files of weights: read as data only, loaded strictly."""

from __future__ import annotations

import argparse
import logging
import numbers
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from amg_plugin.errors import CheckpointError, shown
from amg_plugin.models.foreign_weights import WRAPPERS, backbone_tensors, check_network, converted
from amg_plugin.utils.archives import check_archive
from amg_plugin.utils.files import kind_of

logger = logging.getLogger(__name__)

_KINDS = ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32",
          "float64")  # fmt: skip
# numpy's own constructor of numbers, whose module was renamed in numpy 2.
_scalar = np.float64(0).__reduce__()[0]
#: What training programs write next to the weights: numpy's numbers, under the old module name too, and arguments.
HARMLESS: list[Any] = [
    argparse.Namespace,
    *((_scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    np.dtype,
    *{type(np.dtype(kind)) for kind in _KINDS},
]


def check_weight_file(path: str | Path) -> Path:
    """Raise a CheckpointError if a weight file is not there."""
    path = Path(path)
    if kind_of(path) != "file":
        raise CheckpointError(f"The weight file '{path}' does not exist; give a local .pth or .safetensors file.")
    return path


def load_data(path: Path, mmap: bool = False) -> Any:
    """What ``torch.save`` wrote, on the CPU, as data only and of no larger size than the file.

    Args:
        path: The file.
        mmap: Read tensors of today's format only when they are used.

    Raises:
        CheckpointError: If the file would unpack to more than it holds.
        Exception: What torch raises for files that it cannot read.
    """
    with path.open("rb") as file:
        is_archive = file.read(2) == b"PK"
    if is_archive:
        check_archive(path)
    else:  # as torch wrote before 1.6: the sizes are in the pickle, and memory would be taken before it is filled
        with FakeTensorMode():
            storages = list(_storages(torch.load(path, map_location="cpu", weights_only=True)))
        if sum(storages) > path.stat().st_size:
            raise CheckpointError(f"'{path}' is refused: it holds less than the tensors that it describes.")
    return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap and is_archive)


def read_harmless(path: Path, mmap: bool = False) -> Any:
    """As :func:`load_data`; :data:`HARMLESS` classes may be in the file."""
    with torch.serialization.safe_globals(HARMLESS):
        return load_data(path, mmap)


def _storages(content: Any) -> Iterator[int]:
    """Bytes of the storages of all tensors in plain data, each once."""
    todo, seen = [content], set()
    while todo:
        value = todo.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Tensor):
            storage = value.untyped_storage()
            if storage._cdata not in seen:
                seen.add(storage._cdata)
                yield storage.nbytes()
        elif isinstance(value, Mapping):
            todo += [*value.keys(), *value.values()]
        elif isinstance(value, list | tuple | set):
            todo += value
        elif isinstance(value, argparse.Namespace):
            todo += vars(value).values()


def check_held(weights: Mapping[str, Tensor], message: str) -> None:
    """Check that tensors are plain ones that a file held in full: views of a few numbers can have any shape.

    Tensors may share numbers; all together they may need twice what is there.

    Raises:
        CheckpointError: Beginning with ``message``, if a tensor is of another kind, or all need more.
    """
    held: dict[int, int] = {}
    for name, value in weights.items():
        if not isinstance(value, Tensor) or value.layout != torch.strided or value.device.type != "cpu":
            kind = "plain tensor" if isinstance(value, Tensor) else "tensor"
            raise CheckpointError(f"{message}: {shown(name)} is not a {kind}.")
        held[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
    needed = sum(value.numel() * value.element_size() for value in weights.values())
    if needed > 2 * sum(held.values()):
        raise CheckpointError(f"{message}: its tensors need {needed} bytes, and it holds {sum(held.values())}.")


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read the state dict of a file, as data only; training checkpoints of other programs too.

    Pickles are read with ``weights_only=True`` and may hold tensors, parameters (also boolean ones), plain containers,
    arguments of a program (``argparse.Namespace``) and numbers, numpy's included. Numbers next to the tensors are left
    out. Tensors are on the CPU.

    Raises:
        CheckpointError: If the file is missing, holds anything else than data, or no state dict.
    """
    path = check_weight_file(path)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = read_harmless(path)
    except CheckpointError:
        raise
    except Exception as error:  # the readers raise many types for foreign files
        culprit = re.search(r"(?:GLOBAL|global:?) ([\w]+(?:\.[\w]+)+)", str(error))
        if culprit:
            raise CheckpointError(
                f"The weight file '{path}' is refused: it names '{culprit[1]}', and only tensors, numbers and plain "
                "containers are read, since anything else could run code."
            ) from error
        raise CheckpointError(
            f"The weight file '{path}' cannot be read as tensors ({type(error).__name__}); it is truncated, or of "
            "another format than .pth and .safetensors."
        ) from error
    return _state_dict_in(content, path)


def _state_dict_in(content: Any, path: Path) -> dict[str, Tensor]:
    for wrapper in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not any(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(f"The weight file '{path}' holds no state dict; a dictionary of named tensors is needed.")
    others = {str(name): value for name, value in content.items() if not isinstance(value, Tensor)}
    for name, value in others.items():
        if not isinstance(value, numbers.Number | np.generic):
            raise CheckpointError(
                f"The entry '{name}' of the weight file '{path}' is a {type(value).__name__}; "
                "only tensors and numbers are allowed in a state dict."
            )
    if others:
        logger.info("%d entries of %s are numbers and are left out: %s", len(others), path, ", ".join(others))
    state = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    check_held(state, f"The weight file '{path}' is refused")
    return state


def check_fit(
    expected: Mapping[str, Tensor],
    given: Mapping[str, Tensor],
    message: str = "The weights do not fit the model",
    optional: Collection[str] = (),
) -> None:
    """Check that tensors are those of a state dict: all of them but optional ones, no others, of the same shapes.

    Raises:
        CheckpointError: Beginning with ``message``, naming tensors that are missing, unknown or of another shape.
    """
    if foreign := sorted(str(name) for name, value in given.items() if not isinstance(value, Tensor)):
        raise CheckpointError(f"{message}: {shown(foreign[0])} is not a tensor.")
    shapes = [
        f"{name} is {tuple(given[name].shape)} instead of {tuple(expected[name].shape)}"
        for name in sorted(set(expected) & set(given))
        if given[name].shape != expected[name].shape
    ]
    faults = {
        "missing": sorted(set(expected) - set(given) - set(optional)),
        "unknown": sorted(map(str, set(given) - set(expected))),
        "of another shape": shapes,
    }
    if any(faults.values()):
        found = [
            f"{len(names)} {kind} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
            for kind, names in faults.items()
            if names
        ]
        raise CheckpointError(f"{message}: tensors {'; '.join(found)}.")


def load_strictly(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    message: str = "The weights do not fit the model",
    optional: Collection[str] = (),
) -> None:
    """Load a state dict; every tensor must be there and fit, or the model stays as it is.

    Arguments and errors as :func:`check_fit`.
    """
    check_fit(model.state_dict(), weights, message, optional)
    model.load_state_dict(weights, strict=not optional)


def load_backbone_weights(model: VisionTransformer, path: str | Path, grid: Sequence[int] = ()) -> None:
    """Load a file of weights into a dense backbone; patches and position embedding are fitted.

    Names of timm's and those that timm understands are known, behind prefixes of training programs. Tensors of
    classifiers, of masks and beside the backbone are left out; every other tensor must have its place.

    Args:
        model: The backbone.
        path: The file.
        grid: Rows and columns of its position embedding; empty: deduced, see
            :func:`amg_plugin.models.foreign_weights.source_grid`.

    Raises:
        InputError: If the file cannot be read or does not fit the model.
    """
    state = {name: value.float() for name, value in read_state_dict(path).items()}
    state = backbone_tensors(state, path)
    check_network(model, state, path)
    state = converted(model, state, path, grid)
    if not isinstance(model, VisionTransformerDistilled):
        state.pop("dist_token", None)
    load_strictly(model, state, f"The weight file '{path}' does not fit the model; check amg.arch and amg.override")
    logger.info("loaded %d tensors from %s", len(state), path)
