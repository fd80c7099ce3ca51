"""``amg-reid visualize``: pictures of what a network attends to and of what pruning has kept."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amg_plugin.cli.arguments import add_config_arguments, config_from_arguments
from amg_plugin.errors import CheckpointError, InputError

if TYPE_CHECKING:
    from amg_plugin.checkpoint import Checkpoint

HELP = "draw what each block keeps and where its heads look"
DESCRIPTION = """Draw figures of a checkpoint, pruned or not.

With --images, one figure per image: the positions that each block keeps, the attention that the class token pays in
each head, and the mean over the heads. --dense gives the checkpoint that CKPT was pruned from; then the mean before
pruning stands beside the mean after it.

Without --images, one figure of the network: heads and positions that each block keeps. --calibrate scores the network
on its training data (that of the checkpoint's configuration; -s, --root and --set change it) and colours heads by
entropy and positions by importance. With --dense the dense network is scored, so that removed heads and positions have
values too.

example: amg-reid visualize log/pruned/best.pth --dense log/dense/last.pth --images photos/0001.jpg"""

_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("checkpoint", metavar="CKPT", help="a checkpoint written by amg-reid")
    parser.add_argument("--images", nargs="+", metavar="FILE", help="images, or folders of images, one figure each")
    parser.add_argument("--dense", metavar="CKPT", help="the checkpoint before pruning")
    parser.add_argument("--calibrate", action="store_true", help="score heads and positions (without --images)")
    parser.add_argument(
        "--output", metavar="FOLDER", help="where the figures go (the folder 'visualize' beside the checkpoint)"
    )
    parser.add_argument("--format", choices=("png", "pdf"), default="png", help="of the files (%(default)s)")
    parser.add_argument("--dpi", type=int, default=150, help="dots per inch of a PNG, 50 to 600 (%(default)s)")
    add_config_arguments(parser, trailing=False)


def run(args: argparse.Namespace) -> int:
    """Draw; 0 on success."""
    if args.images and args.calibrate:
        raise InputError("--calibrate goes with the figure of the network; leave it or --images out.")
    if not 50 <= args.dpi <= 600:
        raise InputError(f"--dpi {args.dpi} is out of range; 50 to 600 is allowed.")

    from amg_plugin.checkpoint import read_checkpoint
    from amg_plugin.plots.attention import check_comparable
    from amg_plugin.plots.style import save_figure

    checkpoint = read_checkpoint(args.checkpoint)
    dense = read_checkpoint(args.dense) if args.dense else None
    for given in (checkpoint, dense):
        if given is not None and given.spec.reducer is not None:
            raise CheckpointError(
                f"A network with the reducer '{given.spec.reducer.method}' chooses tokens anew for every image and has "
                "no fixed positions to draw; figures are made of networks that AMG prunes, and of dense ones."
            )
    if dense is not None:
        check_comparable(dense.plan, checkpoint.plan)
        if (dense.spec.arch, dense.spec.image_size) != (checkpoint.spec.arch, checkpoint.spec.image_size):
            raise CheckpointError(
                f"--dense is {dense.spec.arch} for images of {dense.spec.image_size}, but the checkpoint "
                f"{checkpoint.spec.arch} for {checkpoint.spec.image_size}; give the one that it was pruned from."
            )
    folder = Path(args.output) if args.output else Path(args.checkpoint).parent / "visualize"
    if args.images:
        files = image_files(args.images)
        figures = image_figures(checkpoint, dense, files, args.checkpoint)
        names = figure_names(files)
    else:
        figures = iter([model_figure(args, checkpoint, dense, folder)])
        names = [f"{Path(args.checkpoint).stem}_model"]
    for name, figure in zip(names, figures, strict=True):
        path = folder / f"{name}.{args.format}"
        save_figure(figure, path, args.dpi)
        print(path)
    return 0


def image_files(words: Sequence[str]) -> list[Path]:
    """Files named by ``--images``; folders stand for the images in them.

    Raises:
        InputError: If one does not exist, or a folder holds no images.
    """
    files: list[Path] = []
    for word in words:
        path = Path(word)
        if path.is_dir():
            inside = sorted(
                file
                for file in path.iterdir()
                if file.suffix.lower() in _SUFFIXES and not file.name.startswith(".")  # ._NAME, which macOS adds
            )
            if not inside:
                raise InputError(f"The folder '{path}' (--images) holds no images ({', '.join(_SUFFIXES)}).")
            files += inside
        elif path.is_file():
            files.append(path)
        else:
            raise InputError(f"The image '{path}' (--images) does not exist.")
    return files


def figure_names(files: Sequence[Path]) -> list[str]:
    """A name for the figure of each file: its own, with a number where several files share it."""
    names: list[str] = []
    for file in files:
        name, number = file.stem, 1
        while name in names:
            number += 1
            name = f"{file.stem}-{number}"
        names.append(name)
    return names


def image_figures(checkpoint: Checkpoint, dense: Checkpoint | None, files: Sequence[Path], name: str) -> Any:
    """Yield the figure of each file."""
    from amg_plugin.plots.attention import attention_of_images
    from amg_plugin.plots.image_figure import draw_image
    from amg_plugin.plots.preparation import prepare_image

    model = checkpoint.build()
    before_model = dense.build() if dense is not None else None
    pruned = not checkpoint.plan.is_dense
    for file in files:
        picture, inputs = prepare_image(file, checkpoint)
        after = attention_of_images(model, inputs)[0]
        before = None
        if before_model is not None:
            before = attention_of_images(before_model, prepare_image(file, dense)[1])[0]
        note = "" if before or not pruned else "--dense would show the mean before pruning"
        yield draw_image(
            picture,
            after,
            before,
            title=f"Attention in {file.name}",
            subtitle=_summary(checkpoint, name, note),
            after_title="mean\nafter" if pruned else "mean",
        )


def model_figure(args: argparse.Namespace, checkpoint: Checkpoint, dense: Checkpoint | None, folder: Path) -> Any:
    """The figure of the network."""
    from amg_plugin.models.vit import backbone_of
    from amg_plugin.plots.model_figure import ModelMaps, draw_model

    entropy = importance = None
    scored = checkpoint if dense is None else dense
    if args.calibrate:
        from amg_plugin.plots.calibration import scored_maps

        args.opts = [*args.opts, "data.save_dir", str(folder)]
        cfg = config_from_arguments(args, use_schedule=False, base=scored.config)
        entropy, importance = scored_maps(cfg, scored)
    grid = tuple(backbone_of(checkpoint.build()).patch_embed.grid_size)
    note = ""
    if args.calibrate:
        note = f"scores of the {'dense' if scored.plan.is_dense else 'pruned'} network on its training data"
    return draw_model(
        ModelMaps(checkpoint.plan, grid, entropy, importance),
        title="Heads and positions that are kept",
        subtitle=_summary(checkpoint, args.checkpoint, note),
    )


def _summary(checkpoint: Checkpoint, name: str, note: str = "") -> str:
    plan, spec = checkpoint.plan, checkpoint.spec
    heads, tokens = sum(plan.heads_per_block), sum(plan.tokens_per_block)
    return (
        f"{Path(name).parent.name}/{Path(name).name}: {spec.arch}, {spec.image_size[0]}x{spec.image_size[1]}; "
        f"{heads} of {sum(plan.num_heads)} heads, {tokens} of {plan.num_patches * plan.depth} positions "
        f"(variant {plan.variant})\n{note}"
    )
