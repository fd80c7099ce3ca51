"""State dicts of the TransReID and LA-Transformer programs, dense or pruned, as models of the plugin."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from amg_plugin.errors import CheckpointError
from amg_plugin.models.la_transformer import LATransformer
from amg_plugin.models.spec import JigsawSpec, ModelSpec, SideInformationSpec
from amg_plugin.models.transreid import TransReID
from amg_plugin.models.vit import build_backbone
from amg_plugin.paper.state_dicts import MASK, PublishedFile

#: timm's name of the ViT that every published model is a departure from.
_ARCH = "vit_base_patch16_224"
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
    file = PublishedFile(state_dict, "TransReID", num_heads, head_dim, patch_size)
    classes = file.tensor("classifier.weight", 2).shape[0]
    base = ModelSpec(_ARCH, image_size, classes, stride, loss="triplet", neck_feat="before", overrides=file.overrides)
    jigsaw = JigsawSpec(divide_length, shift_num, shuffle_groups) if file.has_jigsaw else None
    side = _side_information(file.state, num_cameras, num_views, sie_coefficient)
    own = {"attention_scale": attention_scale, "layer_norm_eps": layer_norm_eps}
    return _load_transreid(file, replace(base, side_information=side, jigsaw=jigsaw, **own))


def _side_information(
    state: Mapping[str, Tensor], cameras: int, views: int, coefficient: float
) -> SideInformationSpec | None:
    if _SIDE in state and not cameras and not views:
        raise CheckpointError(
            f"The state dict has side information ('{_SIDE}', {len(state[_SIDE])} rows); give num_cameras or num_views."
        )
    if cameras and views == 1:  # a single view tells nothing, so that no labels of views are needed
        views = 0
    return SideInformationSpec(cameras, views, coefficient) if cameras or views else None


def _load_transreid(file: PublishedFile, spec: ModelSpec) -> TransReID:
    state, jigsaw = file.state, file.has_jigsaw
    if jigsaw:
        _check_last_block(state)
    last = f"blocks.{len(file.blocks) - 1}."
    prefixes = {f"backbone.{last}": "b1.0.", "backbone.norm.": "b1.1."} if jigsaw else {}
    prefixes |= {"backbone.": "base.", "jigsaw.block.": "b2.0.", "jigsaw.norm.": "b2.1."}
    prefixes["side_information.embedding"] = _SIDE

    def file_name(name: str) -> str:
        if match := re.fullmatch(r"local_(bottleneck|classifier)s\.(\d+)\.(.+)", name):
            return f"{match[1]}_{int(match[2]) + 1}.{match[3]}"
        prefix = next((prefix for prefix in prefixes if name.startswith(prefix)), "")
        return prefixes.get(prefix, "") + name.removeprefix(prefix)

    # The ImageNet classifier, and the last block under the jigsaw module, are kept by the program and never used.
    unused = r"base\.fc\..+" + (rf"|base\.{re.escape(last)}.+|base\.norm\..+" if jigsaw else "")
    replaced = {_SIDE: state[_SIDE].flatten(1)} if _SIDE in state else {}
    return file.load_into(TransReID(spec), file_name, unused, replaced)


def _check_last_block(state: Mapping[str, Tensor]) -> None:
    """The two copies of the last block are never pruned; a mask that says otherwise contradicts the program."""
    for name in (f"b1.0.{MASK}", f"b2.0.{MASK}"):
        if name in state and not bool(state[name].bool().all()):
            raise CheckpointError(
                f"The token mask '{name}' removes tokens, but the last block is never pruned under the jigsaw module."
            )
    rows = {state[name].shape for name in ("b1.0.attn.qkv.weight", "b2.0.attn.qkv.weight") if name in state}
    if len(rows) > 1:
        raise CheckpointError("'b1.0.attn' and 'b2.0.attn' have different numbers of heads; they must be equal.")


def load_la_vit(
    state_dict: Mapping[str, Tensor],
    *,
    image_size: tuple[int, int],
    num_heads: int,
    head_dim: int = 64,
    patch_size: int = 16,
    layer_norm_eps: float = 1e-6,
) -> VisionTransformer:
    """Build the bare ViT of the LA program.

    Args:
        state_dict: timm's names; a ``head`` is optional.
        image_size: (height, width) in pixels.
        num_heads: Heads of a dense block.
        head_dim: Width of a head.
        patch_size: Patch side in pixels.
        layer_norm_eps: Added to variances in layer norms.

    Returns:
        A prunable timm ViT in eval mode; ``forward_features`` gives the tokens after the last norm.

    Raises:
        CheckpointError: If tensors are missing, unknown, or contradict each other.
        InputError: If the arguments do not fit the tensors.
    """
    file = PublishedFile(state_dict, "LA ViT", num_heads, head_dim, patch_size)
    classes = file.tensor("head.weight", 2).shape[0] if "head.weight" in file.state else 0
    overrides = {**file.overrides, "num_classes": classes}
    model = build_backbone(_ARCH, image_size=image_size, overrides=overrides, layer_norm_eps=layer_norm_eps)
    return file.load_into(model, str, r"pre_logits\..+")


def load_la_transformer(
    state_dict: Mapping[str, Tensor],
    *,
    image_size: tuple[int, int],
    num_heads: int,
    parts: int = 14,
    head_dim: int = 64,
    patch_size: int = 16,
    layer_norm_eps: float = 1e-6,
) -> LATransformer:
    """Build a whole LA-Transformer.

    Args:
        state_dict: ``model.*`` (the ViT), ``classifier{i}.*`` per part, copies of ``cls_token`` and ``pos_embed``.
        image_size: (height, width) in pixels.
        num_heads: Heads of a dense block.
        parts: Number of parts.
        head_dim: Width of a head.
        patch_size: Patch side in pixels.
        layer_norm_eps: Added to variances in layer norms.

    Returns:
        The network in eval mode.

    Raises:
        CheckpointError: If tensors are missing, unknown, or contradict each other.
        InputError: If the arguments do not fit the tensors.
    """
    file = PublishedFile(state_dict, "LA-Transformer", num_heads, head_dim, patch_size)
    for name in ("cls_token", "pos_embed"):
        if name in file.state and not torch.equal(file.state[name], file.tensor(f"model.{name}", 3)):
            raise CheckpointError(
                f"'{name}' and 'model.{name}' differ, although the program keeps one tensor for both."
            )
    layers = _classifier_layers(file.state)
    spec = ModelSpec(
        arch=_ARCH,
        image_size=image_size,
        num_classes=file.tensor(f"classifier0.{layers['classify']}.weight", 2).shape[0],
        overrides=file.overrides,
        layer_norm_eps=layer_norm_eps,
        head="parts",
        parts=parts,
        part_hidden=file.tensor(f"classifier0.{layers['reduce']}.weight", 2).shape[0],
    )

    def file_name(name: str) -> str:
        if match := re.fullmatch(r"classifiers\.(\d+)\.(\w+)\.(.+)", name):
            return f"classifier{match[1]}.{layers[match[2]]}.{match[3]}"
        return name.replace("backbone.", "model.", 1)

    return file.load_into(LATransformer(spec), file_name, r"model\.(head|pre_logits)\..+|cls_token|pos_embed")


def _classifier_layers(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Names of a part classifier's first layer, norm and last layer, below the classifier's own."""
    found: dict[str, str] = {}
    for name, value in state.items():
        if match := re.fullmatch(r"classifier0\.((add_block|classifier)\.\d+)\.(weight|running_mean)", name):
            if match[3] == "running_mean":
                found["norm"] = match[1]
            elif value.ndim == 2:
                found["reduce" if match[2] == "add_block" else "classify"] = match[1]
    for layer, example in (
        ("reduce", "add_block.0.weight"),
        ("norm", "add_block.1.running_mean"),
        ("classify", "classifier.0.weight"),
    ):
        if layer not in found:
            raise CheckpointError(f"The state dict lacks a layer of the part classifiers: 'classifier0.{example}'.")
    return found
