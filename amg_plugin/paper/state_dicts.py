"""What the published programs' state dicts have in common: shapes, token masks, position embeddings.

The names of their tensors are timm's; a boolean ``token_index`` next to each ``qkv`` marks the tokens that take part,
class token first.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from amg_plugin.errors import CheckpointError, InputError
from amg_plugin.models.weights import check_fit
from amg_plugin.pruning import PruningPlan

logger = logging.getLogger(__name__)

MASK = "attn.token_index"
#: timm's name of the ViT that every published model is a departure from.
ARCH = "vit_base_patch16_224"


def clean(state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
    """Copy a state dict without DataParallel's prefix.

    Raises:
        CheckpointError: If it is empty or an entry is not a tensor.
    """
    if not isinstance(state_dict, Mapping) or not state_dict:
        raise CheckpointError("A state dict is needed: a dictionary of named tensors that is not empty.")
    for name, value in state_dict.items():
        if not isinstance(value, Tensor):
            raise CheckpointError(f"The entry '{name}' of the state dict is a {type(value).__name__}, not a tensor.")
    return {name.removeprefix("module."): value.detach() for name, value in state_dict.items()}


def family_of(state: Mapping[str, Tensor]) -> str:
    """``"TransReID"``, ``"LA-Transformer"`` or ``"LA ViT"``, by the names of the tensors.

    Raises:
        CheckpointError: If it is none of them.
    """
    for family, prefix in (("TransReID", "base."), ("LA-Transformer", "model."), ("LA ViT", "")):
        if any(name.startswith((f"{prefix}patch_embed.", f"{prefix}blocks.")) for name in state):
            return family
    raise CheckpointError(
        f"The state dict belongs to no known program (its first tensor is '{min(state)}'); TransReID's names start "
        "with 'base.', LA-Transformer's with 'model.', those of its bare ViT with 'patch_embed.' and 'blocks.'."
    )


def check_family(state: Mapping[str, Tensor], wanted: str) -> None:
    """Refuse the state dict of another program.

    Raises:
        CheckpointError: Naming what it is.
    """
    found = family_of(state)
    if found != wanted:
        raise CheckpointError(f"The state dict is one of {found}, not of {wanted}; use the loader of its own family.")


@dataclass(frozen=True)
class Layout:
    """Where a published file keeps the blocks of the ViT, and how its tokens are ordered.

    Attributes:
        prefix: In front of timm's names, for example ``"base."``.
        blocks: Name of each block in the file, without a trailing dot.
        moved: Whether kept tokens move to the front after every block.
    """

    prefix: str
    blocks: tuple[str, ...]
    moved: bool


@dataclass(frozen=True)
class Structure:
    """Sizes of a published network, read off its tensors.

    Attributes:
        embed_dim: Embedding width.
        hidden: Hidden width of the MLPs.
        qkv_bias: Whether queries, keys and values have a bias.
        heads: Heads left in each block; 0 where the published program emptied a block.
        masks: Token mask of each block as booleans, class token first; None if the file has none.
    """

    embed_dim: int
    hidden: int
    qkv_bias: bool
    heads: tuple[int, ...]
    masks: tuple[tuple[bool, ...], ...] | None

    def overrides(self, num_heads: int, patch_size: int) -> dict[str, Any]:
        """Arguments of timm's model, plain data."""
        return {
            "embed_dim": self.embed_dim,
            "depth": len(self.heads),
            "num_heads": num_heads,
            # timm rounds the product down
            "mlp_ratio": (self.hidden + 0.25) / self.embed_dim,
            "qkv_bias": self.qkv_bias,
            "patch_size": patch_size,
        }


def block_numbers(state: Mapping[str, Tensor], prefix: str) -> int:
    """Number of blocks under ``prefix``, at least 1.

    Raises:
        CheckpointError: If there is none.
    """
    pattern = re.compile(rf"{re.escape(prefix)}blocks\.(\d+)\.")
    numbers = {int(match[1]) for name in state if (match := pattern.match(name))}
    if not numbers:
        raise CheckpointError(f"The state dict has no blocks; '{prefix}blocks.0.norm1.weight' is missing.")
    return max(numbers) + 1


def tensor(state: Mapping[str, Tensor], name: str, dims: int) -> Tensor:
    """One tensor of the file.

    Raises:
        CheckpointError: If it is missing or has another number of dimensions.
    """
    if name not in state:
        raise CheckpointError(f"The state dict lacks the tensor '{name}'.")
    if state[name].ndim != dims:
        raise CheckpointError(f"The tensor '{name}' has {state[name].ndim} dimensions instead of {dims}.")
    return state[name]


def read_structure(state: Mapping[str, Tensor], layout: Layout, num_heads: int, head_dim: int) -> Structure:
    """Read sizes, heads and token masks off the tensors.

    Args:
        state: The file's tensors.
        layout: Where they are.
        num_heads: Heads of a dense block.
        head_dim: Width of a head.

    Raises:
        CheckpointError: If a tensor is missing, or shapes or masks contradict each other.
        InputError: If the heads do not fill the embedding.
    """
    width = tensor(state, f"{layout.prefix}cls_token", 3).shape[-1]
    if num_heads < 1 or num_heads * head_dim != width:
        raise InputError(
            f"num_heads {num_heads} times head_dim {head_dim} is not the embedding width {width} of the checkpoint."
        )
    heads = tuple(_heads(state, block, num_heads, head_dim) for block in layout.blocks)
    biases = [f"{block}.attn.qkv.bias" in state for block in layout.blocks]
    if any(biases) and not all(biases):
        raise CheckpointError(f"The state dict lacks '{layout.blocks[biases.index(False)]}.attn.qkv.bias'.")
    return Structure(
        embed_dim=width,
        hidden=tensor(state, f"{layout.blocks[0]}.mlp.fc1.weight", 2).shape[0],
        qkv_bias=all(biases),
        heads=heads,
        masks=_masks(state, layout),
    )


def _heads(state: Mapping[str, Tensor], block: str, num_heads: int, head_dim: int) -> int:
    rows = tensor(state, f"{block}.attn.qkv.weight", 2).shape[0]
    columns = tensor(state, f"{block}.attn.proj.weight", 2).shape[1]
    if rows != 3 * columns or columns % head_dim or columns > num_heads * head_dim:
        raise CheckpointError(
            f"'{block}.attn' has {rows} rows in qkv and {columns} columns in proj, which is not a whole number of "
            f"heads of {head_dim}, at most {num_heads}."
        )
    return columns // head_dim


def _masks(state: Mapping[str, Tensor], layout: Layout) -> tuple[tuple[bool, ...], ...] | None:
    names = [f"{block}.{MASK}" for block in layout.blocks]
    present = [name for name in names if name in state]
    if not present:
        return None
    length = tensor(state, f"{layout.prefix}pos_embed", 3).shape[1]
    masks = []
    for name in names:
        mask = tensor(state, name, 1)
        if mask.dtype != torch.bool and not torch.isin(mask, torch.tensor([0, 1], dtype=mask.dtype)).all():
            raise CheckpointError(f"The token mask '{name}' is not boolean.")
        if len(mask) != length:
            raise CheckpointError(
                f"The token mask '{name}' has {len(mask)} entries, the position embedding has {length}."
            )
        masks.append(tuple(bool(value) for value in mask.tolist()))
        if not masks[-1][0]:
            raise CheckpointError(f"The token mask '{name}' removes the class token, which is never pruned.")
        if sum(masks[-1]) == 1:
            raise CheckpointError(f"The token mask '{name}' removes every patch token; at least one must be kept.")
    return tuple(masks)


def kept_positions(masks: Sequence[Sequence[bool]], *, moved: bool) -> list[list[int]]:
    """Patch positions that each block keeps, from 0, ascending.

    Args:
        masks: Per block, which of the tokens take part, class token first, in the order in which they arrive.
        moved: Whether they arrive in moved order: after every block the kept tokens come first, then the others.
    """
    order = list(range(len(masks[0])))
    positions = []
    for mask in masks:
        kept = [token for token, keep in zip(order, mask, strict=True) if keep]
        others = [token for token, keep in zip(order, mask, strict=True) if not keep]
        positions.append(sorted(token - 1 for token in kept if token))
        if moved:
            order = kept + others
    return positions


def read_plan(structure: Structure, layout: Layout, num_heads: int, num_patches: int, variant: str) -> PruningPlan:
    """The plan of a published network; which heads it kept is not known, only how many.

    Raises:
        CheckpointError: If tokens are pruned on another grid than the model's.
    """
    depth = len(structure.heads)
    tokens = [range(num_patches)] * depth
    if structure.masks is not None and not all(map(all, structure.masks)):
        if len(structure.masks[0]) != num_patches + 1:
            raise CheckpointError(
                f"The token masks are for {len(structure.masks[0]) - 1} patches, the image size and stride give "
                f"{num_patches}; a model with pruned tokens cannot change its size."
            )
        tokens = kept_positions(structure.masks, moved=layout.moved)
    if 0 in structure.heads:
        logger.warning("blocks without any head get one with zero weights, which computes the same")
    return PruningPlan(
        variant=variant,
        num_heads=(num_heads,) * depth,
        num_patches=num_patches,
        heads=tuple(tuple(range(max(count, 1))) for count in structure.heads),
        tokens=tuple(tuple(kept) for kept in tokens),
        heads_known=all(count == num_heads for count in structure.heads),
    )


def stand_in_heads(
    state: Mapping[str, Tensor], structure: Structure, layout: Layout, head_dim: int
) -> dict[str, Tensor]:
    """Zero weights of one head for every block that has none, by their name in the file."""
    made = {}
    for block, count in zip(layout.blocks, structure.heads, strict=True):
        if not count:
            made[f"{block}.attn.qkv.weight"] = torch.zeros(3 * head_dim, structure.embed_dim)
            made[f"{block}.attn.proj.weight"] = torch.zeros(structure.embed_dim, head_dim)
            if structure.qkv_bias:
                made[f"{block}.attn.qkv.bias"] = torch.zeros(3 * head_dim)
    return made


def fitted_position_embedding(embedding: Tensor, grid: tuple[int, int]) -> Tensor:
    """Resample a position embedding ``[1, 1 + patches, D]`` to a grid of (rows, columns), as timm does.

    The grid it was made for is taken as square, or else as the one whose shape is nearest to the new one's.
    """
    count = embedding.shape[1] - 1
    if count == grid[0] * grid[1]:
        return embedding
    side = math.isqrt(count)
    if side * side == count:
        old = (side, side)
    else:
        shape = grid[0] / grid[1]
        pairs = [(rows, count // rows) for rows in range(1, count + 1) if count % rows == 0]
        old = min(pairs, key=lambda pair: abs(math.log(pair[0] / pair[1] / shape)))
    logger.info("position embedding of %dx%d patches resampled to %dx%d", *old, *grid)
    return resample_abs_pos_embed(embedding.float(), list(grid), list(old), num_prefix_tokens=1)


def fill(
    model: nn.Module,
    state: Mapping[str, Tensor],
    *,
    file_name: Callable[[str], str],
    unused: str,
    replaced: Mapping[str, Tensor],
) -> None:
    """Load a file's tensors into a network; every tensor must have its place.

    Args:
        model: The network, already of the file's structure.
        state: The file's tensors.
        file_name: The file's name of a tensor of the network.
        unused: Regular expression of the names that the published program never uses.
        replaced: Values that count instead of the file's, by the file's name.

    Raises:
        CheckpointError: Naming what is missing, unknown or of another shape.
    """
    source = {name: file_name(name) for name in model.state_dict()}
    expected = {source[name]: value for name, value in model.state_dict().items()}
    given = {name: value for name, value in state.items() if name in expected or not re.fullmatch(unused, name)}
    given |= {name: value for name, value in replaced.items() if name in state}
    check_fit(expected, given, "The state dict does not fit")
    model.load_state_dict({name: given[place].to(expected[place].dtype) for name, place in source.items()})
