"""``amg-reid visualize``: pictures of what a network attends to and of what pruning has kept."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from amg_plugin.cli.arguments import add_config_arguments, config_from_arguments
from amg_plugin.errors import InputError

HELP = "draw what each block keeps and where its heads look"
DESCRIPTION = """Draw figures of a checkpoint, pruned or not.

With --images, one figure per image: the positions that each block keeps, the attention that the class token pays in
each head, and the mean over the heads. --dense gives the checkpoint that CKPT was pruned from; then the means before
and after pruning are shown side by side.

Without --images, one figure of the network: heads and positions that each block keeps. --calibrate scores the network
on its training data (that of the checkpoint's configuration; -s, --root and configuration keys change it) and colours
heads by entropy and positions by importance. With --dense the dense network is scored, so that removed heads and
positions have values too.

example: amg-reid visualize log/pruned/best.pth --dense log/dense/last.pth --images photos/0001.jpg"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("checkpoint", metavar="CKPT", help="a checkpoint written by amg-reid")
    parser.add_argument("--images", nargs="+", metavar="FILE", help="images, or folders of images, one figure each")
    parser.add_argument("--dense", metavar="CKPT", help="the checkpoint before pruning")
    parser.add_argument("--calibrate", action="store_true", help="score heads and positions (without --images)")
    parser.add_argument(
        "--output",
        metavar="FOLDER",
        help="where the figures go (default: the folder 'visualize' next to the checkpoint)",
    )
    parser.add_argument("--format", choices=("png", "pdf"), default="png", help="of the files (%(default)s)")
    parser.add_argument("--dpi", type=int, default=150, help="dots per inch of a PNG, 50 to 600 (%(default)s)")
    add_config_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Draw; 0 on success."""
    if args.images and args.calibrate:
        raise InputError("--calibrate goes with the figure of the network; leave it or --images out.")
    if not 50 <= args.dpi <= 600:
        raise InputError(f"--dpi {args.dpi} is out of range; 50 to 600 is allowed.")

    from amg_plugin.checkpoint import read_checkpoint
    from amg_plugin.plots.checkpoints import check_drawable, figure_of_network, figures_of_images
    from amg_plugin.plots.style import save_figure

    checkpoint = read_checkpoint(args.checkpoint)
    dense = read_checkpoint(args.dense) if args.dense else None
    check_drawable(checkpoint, dense)
    folder = Path(args.output) if args.output else Path(args.checkpoint).parent / "visualize"
    if args.images:
        files = image_files(args.images)
        figures = figures_of_images(checkpoint, dense, files, args.checkpoint)
        names = figure_names(files)
    else:
        cfg = None
        if args.calibrate:
            args.opts = [*args.opts, "data.save_dir", str(folder)]
            cfg = config_from_arguments(args, use_schedule=False, base=(dense or checkpoint).config)
        figures = iter([figure_of_network(checkpoint, dense, args.checkpoint, cfg)])
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
    from amg_plugin.data.layout import list_images

    files: list[Path] = []
    for word in words:
        path = Path(word)
        if path.is_dir():
            files += map(Path, list_images(path))
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
