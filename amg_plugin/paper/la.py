"""State dicts of the LA-Transformer program, dense or pruned, as models of the plugin."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from amg_plugin.errors import CheckpointError
from amg_plugin.models.la_transformer import LATransformer
from amg_plugin.models.spec import ModelSpec
from amg_plugin.models.vit import build_backbone
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

_UNUSED_MASKS = rf".*\.{re.escape(MASK)}"


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
    state = clean(state_dict)
    check_family(state, "LA ViT")
    layout, structure = _structure(state, "", num_heads, head_dim)
    classes = tensor(state, "head.weight", 2).shape[0] if "head.weight" in state else 0
    model = build_backbone(
        ARCH,
        image_size=image_size,
        overrides={**structure.overrides(num_heads, patch_size), "num_classes": classes},
        layer_norm_eps=layer_norm_eps,
    )
    replaced = _prepare(model, state, layout, structure, num_heads, head_dim)
    fill(
        model,
        state,
        file_name=lambda name: name,
        unused=rf"{_UNUSED_MASKS}|pre_logits\..+",
        replaced=replaced,
    )
    return model.eval()


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
    state = clean(state_dict)
    check_family(state, "LA-Transformer")
    layout, structure = _structure(state, "model.", num_heads, head_dim)
    for name in ("cls_token", "pos_embed"):
        if name in state and not torch.equal(state[name], tensor(state, f"model.{name}", 3)):
            raise CheckpointError(
                f"'{name}' and 'model.{name}' differ, although the program keeps one tensor for both."
            )
    reduce, norm, classify = _classifier_layout(state)
    spec = ModelSpec(
        arch=ARCH,
        image_size=image_size,
        num_classes=tensor(state, f"{classify}.weight".format(0), 2).shape[0],
        overrides=structure.overrides(num_heads, patch_size),
        layer_norm_eps=layer_norm_eps,
        head="parts",
        parts=parts,
        part_hidden=tensor(state, f"{reduce}.weight".format(0), 2).shape[0],
    )
    model = LATransformer(spec)
    replaced = _prepare(model.backbone, state, layout, structure, num_heads, head_dim)
    layers = {"reduce": reduce, "norm": norm, "classify": classify}

    def file_name(name: str) -> str:
        if match := re.fullmatch(r"classifiers\.(\d+)\.(\w+)\.(.+)", name):
            return f"{layers[match[2]].format(match[1])}.{match[3]}"
        return name.replace("backbone.", "model.", 1)

    unused = rf"{_UNUSED_MASKS}|model\.(head|pre_logits)\..+|cls_token|pos_embed"
    fill(model, state, file_name=file_name, unused=unused, replaced=replaced)
    return model.eval()


def _structure(state: Mapping[str, Tensor], prefix: str, num_heads: int, head_dim: int) -> tuple[Layout, Structure]:
    depth = block_numbers(state, prefix)
    layout = Layout(prefix, tuple(f"{prefix}blocks.{number}" for number in range(depth)), moved=False)
    return layout, read_structure(state, layout, num_heads, head_dim)


def _prepare(
    vit: VisionTransformer,
    state: Mapping[str, Tensor],
    layout: Layout,
    structure: Structure,
    num_heads: int,
    head_dim: int,
) -> dict[str, Tensor]:
    """Prune ``vit`` as the file is and give the tensors that count instead of the file's."""
    embed, position = vit.patch_embed, f"{layout.prefix}pos_embed"
    apply_plan(vit, read_plan(structure, layout, num_heads, embed.num_patches, "kv"))
    replaced = stand_in_heads(state, structure, layout, head_dim)
    replaced[position] = fitted_position_embedding(tensor(state, position, 3), embed.grid_size)
    return replaced


def _classifier_layout(state: Mapping[str, Tensor]) -> tuple[str, str, str]:
    """Names of a part classifier's first layer, norm and last layer, with ``{}`` for the number of the part."""
    found: dict[str, str] = {}
    for name, value in state.items():
        if match := re.fullmatch(r"classifier0\.((?:add_block|classifier)\.\d+)\.(weight|running_mean)", name):
            layer = "classifier{}." + match[1]
            if match[2] == "running_mean":
                found["norm"] = layer
            elif value.ndim == 2:
                found["reduce" if match[1].startswith("add_block") else "classify"] = layer
    for part, example in (
        ("reduce", "add_block.0.weight"),
        ("norm", "add_block.1.running_mean"),
        ("classify", "classifier.0.weight"),
    ):
        if part not in found:
            raise CheckpointError(f"The state dict lacks a layer of the part classifiers: 'classifier0.{example}'.")
    return found["reduce"], found["norm"], found["classify"]
