"""A published checkpoint as one of the plugin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from amg_plugin.checkpoint import is_torchreid_file, read_checkpoint, save_checkpoint
from amg_plugin.config.load import load_config, to_plain_dict
from amg_plugin.errors import CheckpointError, InputError
from amg_plugin.models.reid import ReIDModel
from amg_plugin.models.weights import read_state_dict
from amg_plugin.paper import load_la_transformer, load_transreid
from amg_plugin.paper.state_dicts import clean, tensor
from amg_plugin.pruning import current_plan
from amg_plugin.utils.preprocessing import Preprocessing

#: Mean and standard deviation that the programs normalise images with.
_PIXELS = {
    "transreid": ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5]),
    "la": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
}
#: Losses, batches and weights per block that the programs fine-tune pruned networks with.
_TASKS: dict[str, dict[str, Any]] = {
    "bnneck": {
        "data.transforms": ["random_flip", "pad_crop", "bicubic"],
        "sampler.train_sampler": "RandomIdentitySampler",
        "loss.softmax.label_smooth": False,
        "loss.triplet.weight_x": 1.0,
        "amg.soft_margin": True,
    },
    "parts": {
        "data.transforms": ["random_flip", "bicubic"],
        "loss.softmax.label_smooth": False,
        "amg.layer_growth": 0.02,
        "amg.layer_decay": 0.03,
    },
}


@dataclass(frozen=True)
class Sizes:
    """What a file does not say of its network; what is left out is read off the file or is the program's own.

    Attributes:
        image_size: Height and width in pixels; None for 256 and 128, or LA-Transformer's 224 and 224.
        stride: Pixels between patches; None for what fits the position embedding.
        patch_size: Side of a patch in pixels.
        num_heads: Heads of a dense block; None for the embedding width divided by the head width.
        head_dim: Width of a head; None for 64, or 96 for TransReID's small.
        attention_scale: Factor of query times key; None for the program's.
        cameras: Cameras of the side information, if there is any; None for what fits its rows.
        views: Views of the side information.
        sie_coefficient: Factor of the side information.
        parts: Parts; None for 4 of the jigsaw module, or 14 of LA-Transformer.
    """

    image_size: Sequence[int] | None = None
    stride: int | None = None
    patch_size: int = 16
    num_heads: int | None = None
    head_dim: int | None = None
    attention_scale: float | None = None
    cameras: int | None = None
    views: int = 0
    sie_coefficient: float = 3.0
    parts: int | None = None


def read_network(path: str | Path, source: str, sizes: Sizes = Sizes()) -> ReIDModel:
    """Read a published file, as data only, into the network that it holds.

    Args:
        path: A .pth or .safetensors file.
        source: The program that wrote it, ``"transreid"`` or ``"la"``.
        sizes: What the file does not say.

    Raises:
        CheckpointError: If the file is not a checkpoint of the program.
        InputError: If the sizes do not fit it.
    """
    return (_transreid if source == "transreid" else _la_transformer)(read_state_dict(path), sizes)


def save_imported(path: str | Path, model: ReIDModel, source: str, file_name: str, trained_on: str) -> None:
    """Write an imported network as a checkpoint of the plugin.

    Args:
        path: Where to.
        model: The network.
        source: The program that wrote the file, ``"transreid"`` or ``"la"``.
        file_name: The file's name, for the history.
        trained_on: Data set that it was trained on; its cameras count from 0 in both programs and in torchreid.

    Raises:
        RunError: If the checkpoint cannot be written.
    """
    height, width = model.spec.image_size
    mean, std = _PIXELS[source]
    side = model.spec.side_information
    if side is not None and side.cameras:
        model.name_cameras({trained_on: range(side.cameras)})
    save_checkpoint(
        path,
        model,
        config=_config(model, mean, std, trained_on),
        history=[{"event": "import", "from": source, "file": file_name}],
        preprocessing=Preprocessing(height, width, tuple(mean), tuple(std), "bicubic"),
    )


def save_torchreids(path: str | Path, file: str | Path) -> None:
    """Write a checkpoint of torchreid's own script as one of the plugin; the ``amg`` node in force says its structure.

    Raises:
        CheckpointError: If ``file`` is none, or of another structure.
        RunError: If the checkpoint cannot be written.
    """
    if not is_torchreid_file(file):
        raise CheckpointError(f"'{file}' is not a checkpoint of torchreid's: it has no state_dict and epoch.")
    found = read_checkpoint(file)
    save_checkpoint(path, found.build(), config=found.config, history=found.history, preprocessing=found.preprocessing)


def _transreid(state: Mapping[str, Tensor], sizes: Sizes) -> ReIDModel:
    state = clean(state, "TransReID")
    width = tensor(state, "base.cls_token", 3).shape[-1]
    # TransReID's own "small" is the only one without a bias on queries, keys and values.
    small = "base.blocks.0.attn.qkv.bias" not in state and width == 768
    head_dim = sizes.head_dim or (96 if small else 64)
    size = tuple(sizes.image_size or (256, 128))
    rows = len(state["base.sie_embed"]) if "base.sie_embed" in state else 0
    if rows % max(sizes.views, 1):
        raise InputError(f"--views {sizes.views} does not divide the {rows} rows of the side information.")
    cameras = sizes.cameras if rows else 0
    if cameras is None:
        cameras = 0 if rows == sizes.views else rows // max(sizes.views, 1)
    return load_transreid(
        state,
        image_size=size,
        stride=sizes.stride or fitting_stride(tensor(state, "base.pos_embed", 3).shape[1] - 1, size, sizes.patch_size),
        num_heads=sizes.num_heads or width // head_dim,
        head_dim=head_dim,
        num_cameras=cameras,
        num_views=sizes.views,
        sie_coefficient=sizes.sie_coefficient,
        divide_length=sizes.parts or 4,
        patch_size=sizes.patch_size,
        attention_scale=sizes.attention_scale or (768**-0.5 if small else None),
    )


def _la_transformer(state: Mapping[str, Tensor], sizes: Sizes) -> ReIDModel:
    if sizes.stride not in (None, sizes.patch_size):
        raise InputError(f"--stride {sizes.stride} is impossible with --from la, whose patches do not overlap.")
    state = clean(state, "LA-Transformer")
    head_dim = sizes.head_dim or 64
    return load_la_transformer(
        state,
        image_size=tuple(sizes.image_size or (224, 224)),
        num_heads=sizes.num_heads or tensor(state, "model.cls_token", 3).shape[-1] // head_dim,
        head_dim=head_dim,
        parts=sizes.parts or 14,
        patch_size=sizes.patch_size,
    )


def fitting_stride(patches: int, size: tuple[int, int], patch: int) -> int:
    """The largest stride that cuts an image of (height, width) pixels into so many patches.

    Raises:
        InputError: If there is none.
    """
    height, width = size
    for stride in range(patch, 0, -1):
        if ((height - patch) // stride + 1) * ((width - patch) // stride + 1) == patches:
            return stride
    raise InputError(
        f"No stride cuts {height}x{width} pixels into the {patches} patches of the position embedding; give --stride "
        "to have it fitted, or another --image-size."
    )


def _config(model: ReIDModel, mean: list[float], std: list[float], trained_on: str) -> dict[str, Any]:
    """What ``amg-reid test`` and ``prune`` start from: structure, size, pixels, losses and data set of the model."""
    spec = model.spec
    height, width = spec.image_size
    values = {
        "model.name": "vit_amg",
        "model.pretrained": False,
        "data.height": height,
        "data.width": width,
        "data.sources": [trained_on],
        "data.targets": [trained_on],
        "data.norm_mean": mean,
        "data.norm_std": std,
        "loss.name": spec.loss,
        "test.normalize_feature": True,
        "amg.neck_feat": spec.neck_feat,
        "amg.token_variant": current_plan(model).variant,
        "amg.arch": spec.arch,
        "amg.stride": spec.stride,
        "amg.head": spec.head,
        **_TASKS[spec.head],
        **{f"amg.override.{key}": value for key, value in spec.overrides.items()},
    }
    if spec.attention_scale:
        values["amg.override.attention_scale"] = spec.attention_scale
    if spec.head == "parts":
        values |= {"amg.parts.number": spec.parts, "amg.parts.hidden": spec.part_hidden}
    if side := spec.side_information:
        values |= {f"amg.sie.{key}": getattr(side, key) for key in ("cameras", "views", "coefficient")}
        values["amg.sie.enabled"] = True
    if jigsaw := spec.jigsaw:
        values |= {f"amg.jpm.{key}": getattr(jigsaw, key) for key in ("parts", "shift", "groups")}
        values["amg.jpm.enabled"] = True
    return to_plain_dict(load_config(None, [word for pair in values.items() for word in pair], use_schedule=False))
