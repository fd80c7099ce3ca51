"""What the published programs' state dicts have in common: shapes, token masks, position embeddings.

The names of their tensors are timm's; a boolean ``token_index`` next to each ``qkv`` marks the tokens that take part,
class token first.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from amg_plugin.errors import CheckpointError, InputError
from amg_plugin.models.vit import backbone_of
from amg_plugin.models.weights import check_fit
from amg_plugin.pruning import PruningPlan, apply_plan

logger = logging.getLogger(__name__)

Network = TypeVar("Network", bound=nn.Module)
MASK = "attn.token_index"
#: Program -> what its files put in front of timm's names, and what a removed token loses there.
FAMILIES = {"TransReID": ("base.", "block"), "LA-Transformer": ("model.", "kv"), "LA ViT": ("", "kv")}


def clean(state_dict: Mapping[str, Any], wanted: str) -> dict[str, Tensor]:
    """Copy the state dict of a program without DataParallel's prefix.

    Args:
        state_dict: The published tensors.
        wanted: The program, one of :data:`FAMILIES`.

    Raises:
        CheckpointError: If it is empty, an entry is not a tensor, or it is of another program.
    """
    if not isinstance(state_dict, Mapping) or not state_dict:
        raise CheckpointError("A state dict is needed: a dictionary of named tensors that is not empty.")
    for name, value in state_dict.items():
        if not isinstance(value, Tensor):
            raise CheckpointError(f"The entry '{name}' of the state dict is a {type(value).__name__}, not a tensor.")
    state = {name.removeprefix("module."): value.detach() for name, value in state_dict.items()}
    families = (
        family
        for family, (prefix, _) in FAMILIES.items()
        if any(name.startswith((f"{prefix}patch_embed.", f"{prefix}blocks.")) for name in state)
    )
    if (found := next(families, None)) is None:
        raise CheckpointError(
            f"The state dict belongs to no known program (its first tensor is '{min(state)}'); TransReID's names start "
            "with 'base.', LA-Transformer's with 'model.', those of its bare ViT with 'patch_embed.' and 'blocks.'."
        )
    if found != wanted:
        raise CheckpointError(f"The state dict is one of {found}, not of {wanted}; use the loader of its own family.")
    return state


def tensor(state: Mapping[str, Tensor], name: str, dims: int) -> Tensor:
    """One tensor of a state dict.

    Raises:
        CheckpointError: If it is missing or has another number of dimensions.
    """
    if name not in state:
        raise CheckpointError(f"The state dict lacks the tensor '{name}'.")
    if state[name].ndim != dims:
        raise CheckpointError(f"The tensor '{name}' has {state[name].ndim} dimensions instead of {dims}.")
    return state[name]


class PublishedFile:
    """A published state dict with the structure that is read off its shapes and token masks.

    Args:
        state_dict: The published tensors.
        family: The program that they are of, one of :data:`FAMILIES`.
        num_heads: Heads of a dense block.
        head_dim: Width of a head.
        patch_size: Side of a patch in pixels.

    Attributes:
        state: The tensors, without DataParallel's prefix.
        has_jigsaw: Whether it has TransReID's jigsaw patch module, which keeps the last block elsewhere.
        blocks: Name of each block in the file, without a trailing dot.
        overrides: Arguments of timm's model, plain data.
        heads: Heads left in each block; 0 where the program emptied a block.
        masks: Token mask of each block as booleans; None if the file has none.

    Raises:
        CheckpointError: If it is of another program, a tensor is missing, or shapes or masks contradict each other.
        InputError: If the heads do not fill the embedding.
    """

    def __init__(
        self, state_dict: Mapping[str, Tensor], family: str, num_heads: int, head_dim: int, patch_size: int
    ) -> None:
        self.state, (self.prefix, self.variant) = clean(state_dict, family), FAMILIES[family]
        self.num_heads, self.head_dim = num_heads, head_dim
        pattern = re.compile(rf"{re.escape(self.prefix)}blocks\.(\d+)\.")
        depth = 1 + max((int(match[1]) for name in self.state if (match := pattern.match(name))), default=-1)
        if not depth:
            raise CheckpointError(f"The state dict has no blocks; '{self.prefix}blocks.0.norm1.weight' is missing.")
        self.blocks = [f"{self.prefix}blocks.{number}" for number in range(depth)]
        self.has_jigsaw = family == "TransReID" and any(name.startswith("b1.") for name in self.state)
        if self.has_jigsaw:
            self.blocks[-1] = "b1.0"
        width = self.tensor(f"{self.prefix}cls_token", 3).shape[-1]
        if num_heads < 1 or num_heads * head_dim != width:
            raise InputError(
                f"num_heads {num_heads} times head_dim {head_dim} is not the embedding width {width} of the checkpoint."
            )
        self.heads = [self._heads(block) for block in self.blocks]
        biases = [f"{block}.attn.qkv.bias" in self.state for block in self.blocks]
        if any(biases) and not all(biases):
            raise CheckpointError(f"The state dict lacks '{self.blocks[biases.index(False)]}.attn.qkv.bias'.")
        hidden = self.tensor(f"{self.blocks[0]}.mlp.fc1.weight", 2).shape[0]
        self.overrides = {
            "embed_dim": width,
            "depth": depth,
            "num_heads": num_heads,
            "mlp_ratio": (hidden + 0.25) / width,  # timm rounds the product down
            "qkv_bias": all(biases),
            "patch_size": patch_size,
        }
        has_masks = any(f"{block}.{MASK}" in self.state for block in self.blocks)
        self.masks = [self._mask(f"{block}.{MASK}") for block in self.blocks] if has_masks else None

    def tensor(self, name: str, dims: int) -> Tensor:
        """One tensor of the file; see :func:`tensor`."""
        return tensor(self.state, name, dims)

    def _heads(self, block: str) -> int:
        rows = self.tensor(f"{block}.attn.qkv.weight", 2).shape[0]
        columns = self.tensor(f"{block}.attn.proj.weight", 2).shape[1]
        if rows != 3 * columns or columns % self.head_dim or columns > self.num_heads * self.head_dim:
            raise CheckpointError(
                f"'{block}.attn' has {rows} rows in qkv and {columns} columns in proj, which is not a whole number of "
                f"heads of {self.head_dim}, at most {self.num_heads}."
            )
        return columns // self.head_dim

    def _mask(self, name: str) -> list[bool]:
        values, length = self.tensor(name, 1).tolist(), self.tensor(f"{self.prefix}pos_embed", 3).shape[1]
        if not set(values) <= {0, 1}:
            raise CheckpointError(f"The token mask '{name}' is not boolean.")
        if len(values) != length:
            raise CheckpointError(
                f"The token mask '{name}' has {len(values)} entries, the position embedding has {length}."
            )
        if not values[0]:
            raise CheckpointError(f"The token mask '{name}' removes the class token, which is never pruned.")
        if sum(values) == 1:
            raise CheckpointError(f"The token mask '{name}' removes every patch token; at least one must be kept.")
        return [bool(value) for value in values]

    def _plan(self, num_patches: int) -> PruningPlan:
        """The plan of the network; which heads it kept is not known, only how many."""
        depth = len(self.blocks)
        tokens: Sequence[Sequence[int]] = [range(num_patches)] * depth
        if self.masks and not all(map(all, self.masks)):
            if len(self.masks[0]) != num_patches + 1:
                raise CheckpointError(
                    f"The token masks are for {len(self.masks[0]) - 1} patches, the image size and stride give "
                    f"{num_patches}; a model with pruned tokens cannot change its size."
                )
            # TransReID moves the kept tokens to the front after every block.
            tokens = _kept_positions(self.masks, moved=self.variant == "block")
        if 0 in self.heads:
            logger.warning("blocks without any head get one with zero weights, which computes the same")
        return PruningPlan(
            variant=self.variant,
            num_heads=(self.num_heads,) * depth,
            num_patches=num_patches,
            heads=tuple(tuple(range(max(count, 1))) for count in self.heads),
            tokens=tuple(map(tuple, tokens)),
            heads_known=all(count == self.num_heads for count in self.heads),
        )

    def load_into(
        self, model: Network, file_name: Callable[[str], str], unused: str, replaced: Mapping[str, Tensor] | None = None
    ) -> Network:
        """Prune a dense network as the file is and load the file's tensors, each of which must have its place.

        Args:
            model: The network, changed in place.
            file_name: The file's name of a tensor of the network.
            unused: Regular expression of the names that the program never uses, besides token masks.
            replaced: Values that count instead of the file's, by the file's name.

        Returns:
            The network in eval mode.

        Raises:
            CheckpointError: Naming what is missing, unknown or of another shape.
        """
        embed, position = backbone_of(model).patch_embed, f"{self.prefix}pos_embed"
        apply_plan(model, self._plan(embed.num_patches))
        fitted = _fitted_position_embedding(self.tensor(position, 3), embed.grid_size)
        replaced = {position: fitted, **self._stand_in_heads(), **(replaced or {})}
        source = {name: file_name(name) for name in model.state_dict()}
        expected = {source[name]: value for name, value in model.state_dict().items()}
        unused = rf"{unused}|.*\.{re.escape(MASK)}"
        given = {
            name: value for name, value in self.state.items() if name in expected or not re.fullmatch(unused, name)
        }
        given |= {name: value for name, value in replaced.items() if name in self.state}
        check_fit(expected, given, "The state dict does not fit")
        model.load_state_dict({name: given[place].to(expected[place].dtype) for name, place in source.items()})
        return model.eval()

    def _stand_in_heads(self) -> dict[str, Tensor]:
        """Zero weights of one head for every block that has none, by their name in the file."""
        width, rows = self.num_heads * self.head_dim, 3 * self.head_dim
        shapes = {"qkv.weight": (rows, width), "qkv.bias": (rows,), "proj.weight": (width, self.head_dim)}
        empty = [block for block, count in zip(self.blocks, self.heads, strict=True) if not count]
        return {f"{block}.attn.{name}": torch.zeros(shape) for block in empty for name, shape in shapes.items()}


def _kept_positions(masks: Sequence[Sequence[bool]], *, moved: bool) -> list[list[int]]:
    """Patch positions that each block keeps, from 0, ascending; the masks are in the order in which tokens arrive.

    In moved order the tokens that a block keeps come first in the next one, then the others.
    """
    order = list(range(len(masks[0])))
    positions = []
    for mask in masks:
        kept = [token for token, keep in zip(order, mask, strict=True) if keep]
        positions.append(sorted(token - 1 for token in kept if token))
        if moved:
            order = kept + [token for token, keep in zip(order, mask, strict=True) if not keep]
    return positions


def _fitted_position_embedding(embedding: Tensor, grid: tuple[int, int]) -> Tensor:
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
