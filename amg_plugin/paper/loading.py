"""TransReID's state dicts, dense or pruned, as models of the plugin."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from amg_plugin.errors import CheckpointError
from amg_plugin.models.jigsaw import JigsawSpec
from amg_plugin.models.side_information import SideInformationSpec
from amg_plugin.models.spec import ModelSpec
from amg_plugin.models.transreid import TransReID
from amg_plugin.paper.state_dicts import (
    ARCH,
    MASK,
    Layout,
    Structure,
    block_numbers,
    check_family,
    clean,
    fill,
    fitted_position_embedding,
    read_plan,
    read_structure,
    stand_in_heads,
    tensor,
)
from amg_plugin.pruning import apply_plan

_SIDE = "base.sie_embed"


def load_transreid(
    state_dict: Mapping[str, Tensor],
    *,
    image_size: tuple[int, int],
    stride: int | tuple[int, int],
    num_heads: int,
    head_dim: int = 64,
    num_cameras: int = 0,
    num_views: int = 0,
    sie_coefficient: float = 3.0,
    shift_num: int = 5,
    shuffle_groups: int = 2,
    divide_length: int = 4,
    patch_size: int = 16,
    layer_norm_eps: float = 1e-6,
    attention_scale: float | None = None,
) -> TransReID:
    """Build the network of a TransReID state dict, with or without the jigsaw patch module, dense or pruned.

    Structure is read off shapes and token masks; masks in moved order are turned back into patch positions. A position
    embedding of another size is fitted.

    Args:
        state_dict: The published tensors; DataParallel's prefix is allowed.
        image_size: (height, width) in pixels.
        stride: Pixels between patches, one number or (vertical, horizontal).
        num_heads: Heads of a dense block.
        head_dim: Width of a head.
        num_cameras: Cameras of the side information; 0 for none.
        num_views: Views of the side information; 0 for none, and 1 next to cameras is as good as none.
        sie_coefficient: Factor of the side information.
        shift_num: Shift of the jigsaw module.
        shuffle_groups: Groups of the jigsaw module.
        divide_length: Parts of the jigsaw module.
        patch_size: Patch side in pixels.
        layer_norm_eps: Added to variances in layer norms.
        attention_scale: Factor of query times key; None for ``head_dim ** -0.5``.

    Returns:
        The network in eval mode, with features before the neck ``[B, D]``, local ones divided by their number.
        ``current_plan(model).heads_known`` is False where only the number of kept heads is known.

    Raises:
        CheckpointError: If tensors are missing, unknown, or contradict each other.
        InputError: If the arguments do not fit the tensors.
    """
    state = clean(state_dict)
    check_family(state, "TransReID")
    has_jigsaw = any(name.startswith("b1.") for name in state)
    structure = read_structure(state, _layout(state, has_jigsaw), num_heads, head_dim)
    spec = ModelSpec(
        ARCH, image_size, tensor(state, "classifier.weight", 2).shape[0], stride, loss="triplet", neck_feat="before",
        overrides=structure.overrides(num_heads, patch_size), attention_scale=attention_scale,
        layer_norm_eps=layer_norm_eps,
        side_information=_side_information(state, num_cameras, num_views, sie_coefficient),
        jigsaw=JigsawSpec(divide_length, shift_num, shuffle_groups) if has_jigsaw else None,
    )  # fmt: skip
    return _filled(TransReID(spec), state, structure, num_heads, head_dim)


def _side_information(
    state: Mapping[str, Tensor], num_cameras: int, num_views: int, coefficient: float
) -> SideInformationSpec | None:
    if _SIDE in state and not num_cameras and not num_views:
        raise CheckpointError(
            f"The state dict has side information ('{_SIDE}', {len(state[_SIDE])} rows); give num_cameras or num_views."
        )
    if num_cameras and num_views == 1:  # a single view tells nothing, so that no labels of views are needed
        num_views = 0
    return SideInformationSpec(num_cameras, num_views, coefficient) if num_cameras or num_views else None


def _filled(
    model: TransReID, state: Mapping[str, Tensor], structure: Structure, num_heads: int, head_dim: int
) -> TransReID:
    """Prune the network as the file is, then load the file's tensors."""
    jigsaw = model.spec.jigsaw is not None
    layout, embed = _layout(state, jigsaw), model.backbone.patch_embed
    _check_last_block(state, jigsaw)
    apply_plan(model, read_plan(structure, layout, num_heads, embed.num_patches, "block"))
    replaced = stand_in_heads(state, structure, layout, head_dim)
    replaced["base.pos_embed"] = fitted_position_embedding(tensor(state, "base.pos_embed", 3), embed.grid_size)
    if _SIDE in state:
        replaced[_SIDE] = state[_SIDE].flatten(1)
    depth = len(layout.blocks)

    def file_name(name: str) -> str:
        return _file_name(name, depth if jigsaw else 0)

    fill(model, state, file_name=file_name, unused=_unused(depth, jigsaw), replaced=replaced)
    return model.eval()


def _layout(state: Mapping[str, Tensor], jigsaw: bool) -> Layout:
    depth = block_numbers(state, "base.")
    blocks = [f"base.blocks.{number}" for number in range(depth)]
    if jigsaw:
        blocks[-1] = "b1.0"
    return Layout("base.", tuple(blocks), moved=True)


def _check_last_block(state: Mapping[str, Tensor], jigsaw: bool) -> None:
    """The two copies of the last block are never pruned; a mask that says otherwise contradicts the program."""
    for name in (f"b1.0.{MASK}", f"b2.0.{MASK}") if jigsaw else ():
        if name in state and not bool(state[name].bool().all()):
            raise CheckpointError(
                f"The token mask '{name}' removes tokens, but the last block is never pruned under the jigsaw module."
            )
    rows = {state[name].shape for name in ("b1.0.attn.qkv.weight", "b2.0.attn.qkv.weight") if jigsaw and name in state}
    if len(rows) > 1:
        raise CheckpointError("'b1.0.attn' and 'b2.0.attn' have different numbers of heads; they must be equal.")


def _file_name(name: str, jigsaw_depth: int) -> str:
    """TransReID's name of a tensor; ``jigsaw_depth`` is 0 without the jigsaw module."""
    rules = [
        (r"local_(bottleneck|classifier)s\.(\d+)\.(.+)", lambda m: f"{m[1]}_{int(m[2]) + 1}.{m[3]}"),
        (r"jigsaw\.block\.(.+)", lambda m: f"b2.0.{m[1]}"),
        (r"jigsaw\.norm\.(.+)", lambda m: f"b2.1.{m[1]}"),
        (r"side_information\.embedding", lambda m: _SIDE),
        (r"backbone\.(.+)", lambda m: f"base.{m[1]}"),
    ]
    if jigsaw_depth:
        rules.insert(0, (rf"backbone\.blocks\.{jigsaw_depth - 1}\.(.+)", lambda m: f"b1.0.{m[1]}"))
        rules.insert(0, (r"backbone\.norm\.(.+)", lambda m: f"b1.1.{m[1]}"))
    for pattern, rename in rules:
        if match := re.fullmatch(pattern, name):
            return rename(match)
    return name


def _unused(depth: int, jigsaw: bool) -> str:
    """Names that the program keeps and never uses: the ImageNet classifier, masks, the last block under JPM."""
    patterns = [r"base\.fc\..+", rf".*\.{re.escape(MASK)}"]
    if jigsaw:
        patterns += [rf"base\.blocks\.{depth - 1}\..+", r"base\.norm\..+"]
    return "|".join(patterns)
