"""Local weight files for the backbone."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import torch
from safetensors.torch import load_file
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor

from amg_plugin.errors import InputError
from amg_plugin.models.safe_reading import NUMPY_NUMBERS

logger = logging.getLogger(__name__)

_WRAPPERS = ("state_dict", "model", "teacher")
_PREFIXES = ("module.", "backbone.", "base.")
_CLASSIFIERS = ("head.", "head_dist.", "fc.", "mask_token", "pre_logits.")


def check_weight_file(path: str | Path) -> Path:
    """Check that a weight file is there.

    Raises:
        InputError: If it is not.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(
            f"The weight file '{path}' (amg.weights) does not exist; give a local .pth or .safetensors file."
        )
    return path


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read a ``.pth`` or ``.safetensors`` file of tensors, as data only; checkpoints of torchreid's engines too.

    Raises:
        InputError: If the file is missing, cannot be read safely or holds no state dict.
    """
    path = check_weight_file(path)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # torchreid writes Rank-1 as a numpy number beside the weights.
        with torch.serialization.safe_globals(NUMPY_NUMBERS):
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the readers raise many types for foreign files
        raise InputError(
            f"The weight file '{path}' cannot be read as tensors ({type(error).__name__}); "
            "give a .pth or .safetensors file that holds a state dict."
        ) from error
    for wrapper in _WRAPPERS:
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()) or not state:
        raise InputError(f"The weight file '{path}' holds no state dict; a dictionary of named tensors is needed.")
    return state


def load_backbone_weights(model: VisionTransformer, path: str | Path) -> None:
    """Load a timm-style state dict into a dense backbone; patch and position embedding are fitted by timm.

    Classifier tensors of the file are left out; every other tensor must have its place.

    A file does not say which grid its position embedding is for. timm takes the grid of its own pretrained model where
    the number of patches agrees, and otherwise refits only another number, from a square. Where square and model's grid
    have equally many patches (14x14 and 28x7), a warning says what became of the embedding.

    Raises:
        InputError: If the file cannot be read or does not fit the model.
    """
    state = {name: value.float() for name, value in read_state_dict(path).items()}
    for prefix in _PREFIXES:
        if any(name.startswith(prefix) for name in state):
            state = {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}
    embedding = state.get("pos_embed")
    try:
        state = checkpoint_filter_fn(state, model, adapt_layer_scale=True)
    except Exception as error:  # timm's conversions fail in many ways on tensors of another network
        raise InputError(
            f"The weight file '{path}' does not fit the model: timm cannot convert it ({type(error).__name__}); "
            "check amg.arch, amg.stride and the image size, position embeddings of square grids are fitted."
        ) from error
    if not isinstance(model, VisionTransformerDistilled):
        state.pop("dist_token", None)
    state = {name: value for name, value in state.items() if not name.startswith(_CLASSIFIERS)}
    expected = model.state_dict()
    missing = sorted(set(expected) - set(state))
    extra = sorted(set(state) - set(expected))
    wrong = sorted(name for name in set(state) & set(expected) if state[name].shape != expected[name].shape)
    if missing or extra or wrong:
        example = (wrong or missing or extra)[0]
        raise InputError(
            f"The weight file '{path}' does not fit the model: {len(missing)} tensors missing, {len(extra)} unknown, "
            f"{len(wrong)} of another shape (for example '{example}'); check amg.arch and amg.override."
        )
    model.load_state_dict(state)
    if embedding is not None:
        _warn_of_ambiguous_grid(model, embedding, path)
    logger.info("loaded %d tensors from %s", len(state), path)


def _warn_of_ambiguous_grid(model: VisionTransformer, embedding: Tensor, path: str | Path) -> None:
    """Say which grid the position embedding of a file was taken for, where it could be the model's or a square one."""
    rows, columns = model.patch_embed.grid_size
    side = math.isqrt(rows * columns)
    if rows == columns or side**2 != rows * columns or embedding.shape != model.pos_embed.shape:
        return
    kept = torch.equal(embedding, model.pos_embed.detach().cpu())
    taken = f"{rows}x{columns} and kept" if kept else f"{side}x{side} and refitted to {rows}x{columns}"
    logger.warning(
        "the position embedding of %s fits %dx%d and %dx%d patches alike; it was taken for %s",
        *(path, rows, columns, side, side, taken),
    )
