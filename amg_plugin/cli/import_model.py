"""``amg-reid import``: a published checkpoint as one of the plugin."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from amg_plugin.checkpoint import read_checkpoint, save_checkpoint
from amg_plugin.cli.inspect import describe, render
from amg_plugin.config.load import load_config, to_plain_dict
from amg_plugin.errors import InputError
from amg_plugin.models.reid import ReIDModel
from amg_plugin.models.weights import read_state_dict
from amg_plugin.paper import load_la_transformer, load_transreid
from amg_plugin.paper.state_dicts import check_family, clean, tensor
from amg_plugin.pruning import current_plan
from amg_plugin.utils.preprocessing import Preprocessing

HELP = "turn a published TransReID or LA-Transformer checkpoint into one of the plugin"
DESCRIPTION = """Read a published checkpoint, dense or pruned, and write it as a checkpoint of amg-reid.

The file is read as data: tensors, numbers and plain containers, never code. Structure is read off its shapes and token
masks. Which heads a pruned file kept is not recorded in it, so the result knows their number only.

example: amg-reid import transformer_120.pth --from transreid --out log/transreid.pth
         amg-reid import net_best.pth --from la --out log/la.pth"""

SOURCES = ("transreid", "la")
_SIZES = {"transreid": (256, 128), "la": (224, 224)}
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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("file", metavar="FILE", help="a published .pth or .safetensors file")
    parser.add_argument("--from", dest="source", choices=SOURCES, required=True, help="the program that wrote it")
    parser.add_argument("--out", metavar="CKPT", required=True, help="the checkpoint to write")
    parser.add_argument(
        "--trained-on",
        metavar="NAME",
        default="market1501",
        help="data set that the file was trained on, whose cameras its side information knows (default: market1501)",
    )
    parser.add_argument(
        "--image-size", nargs=2, type=int, metavar=("H", "W"), help="pixels (default: 256 128, LA-Transformer 224 224)"
    )
    parser.add_argument("--stride", type=int, help="pixels between patches (default: what fits the position embedding)")
    parser.add_argument("--patch-size", type=int, default=16, help="patch side in pixels (default: 16)")
    parser.add_argument("--num-heads", type=int, help="heads of a dense block (default: embedding width / head width)")
    parser.add_argument("--head-dim", type=int, help="width of a head (default: 64; 96 for TransReID's small)")
    parser.add_argument("--attention-scale", type=float, help="factor of query times key (default: the program's)")
    parser.add_argument("--views", type=int, default=0, help="views of the side information (default: 0)")
    parser.add_argument("--sie-coefficient", type=float, default=3.0, help="factor of side information (default: 3)")
    parser.add_argument("--parts", type=int, help="parts (default: 4 of the jigsaw module, 14 of LA-Transformer)")


def run(args: argparse.Namespace) -> int:
    """Import; 0 on success."""
    state = clean(read_state_dict(args.file))
    model = (import_transreid if args.source == "transreid" else import_la)(state, args)
    save_imported(args.out, model, args.source, Path(args.file).name, args.trained_on)
    checkpoint = read_checkpoint(args.out)
    print(render(checkpoint, describe(checkpoint)))
    if not checkpoint.plan.heads_known:
        print("\nwhich heads were kept is not recorded in the file; only their numbers are known")
    print(f"\n{args.out}")
    return 0


def save_imported(path: str | Path, model: ReIDModel, source: str, file_name: str, trained_on: str) -> None:
    """Write an imported network as a checkpoint of the plugin.

    Args:
        path: Where to.
        model: The network.
        source: The program that wrote the file, one of :data:`SOURCES`.
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


def import_transreid(state: Mapping[str, Tensor], args: argparse.Namespace) -> ReIDModel:
    """Build TransReID's network with the sizes that the command line leaves open read off the file."""
    check_family(state, "TransReID")
    width = tensor(state, "base.cls_token", 3).shape[-1]
    # TransReID's own "small" is the only one without a bias on queries, keys and values.
    small = "base.blocks.0.attn.qkv.bias" not in state and width == 768
    head_dim = args.head_dim or (96 if small else 64)
    size = tuple(args.image_size or _SIZES["transreid"])
    rows = len(state["base.sie_embed"]) if "base.sie_embed" in state else 0
    if rows % max(args.views, 1):
        raise InputError(f"--views {args.views} does not divide the {rows} rows of the side information.")
    cameras = 0 if rows == args.views else rows // max(args.views, 1)
    return load_transreid(
        state,
        image_size=size,
        stride=args.stride or fitting_stride(tensor(state, "base.pos_embed", 3).shape[1] - 1, size, args.patch_size),
        num_heads=args.num_heads or width // head_dim,
        head_dim=head_dim,
        num_cameras=cameras,
        num_views=args.views,
        sie_coefficient=args.sie_coefficient,
        divide_length=args.parts or 4,
        patch_size=args.patch_size,
        attention_scale=args.attention_scale or (768**-0.5 if small else None),
    )


def import_la(state: Mapping[str, Tensor], args: argparse.Namespace) -> ReIDModel:
    """Build LA-Transformer's network with the sizes that the command line leaves open read off the file."""
    if args.stride not in (None, args.patch_size):
        raise InputError(f"--stride {args.stride} is impossible with --from la, whose patches do not overlap.")
    check_family(state, "LA-Transformer")
    head_dim = args.head_dim or 64
    return load_la_transformer(
        state,
        image_size=tuple(args.image_size or _SIZES["la"]),
        num_heads=args.num_heads or tensor(state, "model.cls_token", 3).shape[-1] // head_dim,
        head_dim=head_dim,
        parts=args.parts or 14,
        patch_size=args.patch_size,
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
