"""State dicts of other programs: which network they hold, under which names, for which grid of patches."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Sequence
from pathlib import Path

import timm
from timm.layers import resample_abs_pos_embed
from timm.models import eva, vision_transformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from amg_plugin.errors import InputError, UnsupportedModelError
from amg_plugin.models.rotary import RotaryVisionTransformer
from amg_plugin.models.vit import temporarily

logger = logging.getLogger(__name__)

#: Entries under which training programs keep a state dict.
WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "teacher", "target_encoder", "ema", "module")
_PREFIXES = ("module.", "_orig_mod.", "backbone.", "base.", "image_encoder.")
#: Of classifiers, and of pretraining by masks.
_UNUSED = ("head.", "head_dist.", "fc.", "mask_token", "masked_embed", "pre_logits.")
#: DINOv3's networks in timm by width and whether their MLPs are gated.
_DINOV3 = {
    (384, False): "small",
    (384, True): "small_plus",
    (768, False): "base",
    (1024, False): "large",
    (1280, True): "huge_plus",
    (4096, True): "7b",
}

State = dict[str, Tensor]


def backbone_tensors(state: State, path: str | Path) -> State:
    """The tensors of the backbone, without the prefixes that programs put in front; what else there is is logged."""
    beside: list[str] = []
    while prefix := next((one for one in _PREFIXES if any(name.startswith(one) for name in state)), ""):
        beside += [name for name in state if not name.startswith(prefix)]
        state = {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}
    if beside:
        logger.info("%d tensors of %s are beside its backbone and left out: %s", len(beside), path, _listed(beside))
    if "class_embedding" in state:  # of CLIP; timm looks for the whole model
        state = {f"visual.{name}": value for name, value in state.items()}
    return state


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def check_network(model: VisionTransformer, state: State, path: str | Path) -> None:
    """Refuse weights of another kind of network than ``model``, by name.

    Raises:
        UnsupportedModelError: If no plain ViT can hold them.
        InputError: If another name of timm's can.
    """
    if swin := next((name for name in state if re.match(r"(layers|stages)\.\d+\.blocks\.\d+\.", name)), None):
        raise UnsupportedModelError(
            f"The weight file '{path}' holds a Swin Transformer ('{swin}'), as SOLIDER's are; allowed are plain ViTs."
        )
    stem = next((name for name in state if re.match(r"patch_embed\.(?!(proj\.(weight|bias)|norm\.\w+)$)", name)), None)
    patches = state.get("patch_embed.proj.weight", state.get("visual.conv1.weight"))
    if stem or (patches is not None and patches.ndim == 4 and patches.shape[1] != 3):
        raise UnsupportedModelError(
            f"The weight file '{path}' holds a ViT with a convolutional stem ('{stem or 'patch_embed.proj.weight'}'), "
            "such as the ICS networks of TransReID-SSL; allowed are ViTs that cut patches by one convolution."
        )
    is_rotary = isinstance(model, RotaryVisionTransformer)
    if not is_rotary and (name := _rotary_name(state)):
        raise InputError(
            f"The weight file '{path}' holds a network with rotary positions, which this ViT has not; set amg.arch to "
            f"{name}."
        )
    if isinstance(model.norm_pre, nn.Identity) and "visual.ln_pre.weight" in state:
        raise InputError(
            f"The weight file '{path}' holds CLIP's ViT, which has a norm in front of its blocks; set amg.arch to "
            f"{_clip_name(state)}."
        )
    if is_rotary and any(name.endswith("qkv.bias") for name in state) and not _has_bias(model) and _biased(state):
        raise InputError(
            f"The weight file '{path}' has biases of queries and values, which this network has not; set amg.arch to "
            f"{_rotary_name(state)}."
        )


def _has_bias(model: nn.Module) -> bool:
    return model.blocks[0].attn.packed()[1] is not None


def _biased(state: State) -> bool:
    """Whether queries or values have a bias other than 0."""
    if any(name.endswith(("q_bias", "v_bias")) for name in state):
        return True
    thirds = [value.chunk(3) for name, value in state.items() if name.endswith("qkv.bias")]
    return any(bool(third.any()) for query, _, value in thirds for third in (query, value))


def _rotary_name(state: State) -> str:
    """The name in timm of the network with rotary positions that a state dict holds; empty if it holds none."""
    eva02 = any(re.search(r"\.(q_proj\.weight|inner_attn_ln\.weight|q_bias)$|^(rope|freqs)", name) for name in state)
    published = "storage_tokens" in state or any("rope_embed" in name for name in state)
    ported = "reg_token" in state and "pos_embed" not in state and "blocks.0.gamma_1" in state
    if not (published or ported):
        return "one of timm's eva02_* names" if eva02 and "cls_token" in state else ""
    gated = any(name.startswith(("blocks.0.mlp.w1", "blocks.0.mlp.fc1_")) for name in state)
    size = _DINOV3.get((state["cls_token"].shape[-1], gated)) if "cls_token" in state else None
    found = f"vit_{size}_patch16_dinov3{'_qkvb' if _biased(state) else ''}"
    return found if size and timm.is_model(found) else "one of timm's vit_*_dinov3 names"


def _clip_name(state: State) -> str:
    kernel = state["visual.conv1.weight"]
    size = {768: "base", 1024: "large"}.get(len(kernel))
    found = f"vit_{size}_patch{kernel.shape[-1]}_clip_quickgelu_224"
    return found if size and timm.is_model(found) else "one of timm's vit_*_clip_quickgelu_* names"


def converted(model: VisionTransformer, state: State, path: str | Path, grid: Sequence[int] = ()) -> State:
    """A state dict under timm's names, fitted to a model's patches and grid.

    Args:
        model: A dense ViT.
        state: Tensors of a backbone under the names of timm or of those that timm knows.
        path: Where they come from.
        grid: Rows and columns of the position embedding; empty: see :func:`source_grid`.

    Raises:
        InputError: If timm cannot convert them, or the grid is unknown.
    """
    if isinstance(model, RotaryVisionTransformer):
        if not _has_bias(model):  # they are 0, see check_network; timm would print that it leaves them out
            state = {name: value for name, value in state.items() if not name.endswith("qkv.bias")}
        convert, options = eva.checkpoint_filter_fn, {}
    else:
        convert, options = vision_transformer.checkpoint_filter_fn, {"adapt_layer_scale": True}
    try:
        with temporarily("pos_embed", None, [model]):  # positions are fitted here
            state = convert(dict(state), model, **options)
    except Exception as error:  # timm's conversions fail in many ways on tensors of another network
        raise InputError(
            f"The weight file '{path}' does not fit the model: timm cannot convert it ({type(error).__name__}); "
            "check amg.arch, amg.stride and the image size."
        ) from error
    if model.pos_embed is not None and "pos_embed" in state:
        state["pos_embed"] = _fitted_positions(model, state["pos_embed"], path, grid)
    elif grid:
        raise InputError(f"amg.weights_grid is given, but '{path}' has no position embedding for this network.")
    return {name: value for name, value in state.items() if not name.startswith(_UNUSED)}


def _fitted_positions(model: VisionTransformer, embedding: Tensor, path: str | Path, grid: Sequence[int]) -> Tensor:
    prefix = 0 if model.no_embed_class else model.num_prefix_tokens
    if embedding.ndim != 3:
        raise InputError(
            f"The weight file '{path}' does not fit the model: its position embedding is {list(embedding.shape)}."
        )
    old, new = source_grid(model, embedding.shape[1] - prefix, path, grid), model.patch_embed.grid_size
    if old == tuple(new):
        return embedding
    return resample_abs_pos_embed(embedding, list(new), list(old), prefix)


def source_grid(model: VisionTransformer, count: int, path: str | Path, given: Sequence[int] = ()) -> tuple[int, int]:
    """Rows and columns that a position embedding for ``count`` patches is for.

    A file does not say. Without ``given`` it is the grid of timm's own pretrained model where that has as many patches,
    else the model's own, else a square, else the 2:1 of upright images of persons. What was deduced is logged.

    Raises:
        InputError: If ``given`` has another number of patches, or nothing of the above fits.
    """
    own = tuple(model.patch_embed.grid_size)
    if given:
        if given[0] * given[1] != count:
            raise InputError(
                f"amg.weights_grid {list(given)} is impossible: the positions of '{path}' are for {count} patches."
            )
        return tuple(given)
    sides = model.pretrained_cfg.get("input_size", (3, 224, 224))[-2:]
    pretrained = tuple(side // patch for side, patch in zip(sides, model.patch_embed.patch_size, strict=True))
    square = (math.isqrt(max(count, 0)),) * 2
    width = math.isqrt(max(count, 0) // 2)
    upright = (2 * width, width)
    for rows, columns in (pretrained, own, square, upright):
        if rows * columns == count > 0:
            break
    else:
        raise InputError(
            f"The weight file '{path}' does not fit the model: its positions are for {count} patches, neither the "
            f"model's {own[0]}x{own[1]} nor a square nor twice one; square grids and those of 2:1 are fitted, for "
            "others give amg.weights_grid (rows, columns)."
        )
    if square[0] ** 2 == count == own[0] * own[1] != 0 and own != square:
        taken = "kept" if (rows, columns) == own else f"refitted to {own[0]}x{own[1]}"
        logger.warning(
            "the position embedding of %s fits %dx%d and %dx%d patches equally well; it was taken for %dx%d and %s; "
            "amg.weights_grid says otherwise",
            *(path, *own, *square, rows, columns, taken),
        )
    elif (rows, columns) == upright != own:
        logger.info("the position embedding of %s was taken for %dx%d patches (amg.weights_grid)", path, rows, columns)
    return rows, columns
