"""Draw what each block keeps and where its heads look.

With --images, one figure per image: the positions that each block keeps, the attention that the class token pays in
each head, and the mean over the heads. --dense gives the checkpoint that CKPT was pruned from; then the means before
and after pruning are shown side by side.

Without --images, one figure of the network: heads and positions that each block keeps. --calibrate scores the network
on its training data (that of the checkpoint's configuration; -s, --root and configuration keys change it) and colours
heads by entropy and positions by importance. With --dense the dense network is scored, so that removed heads and
positions have values too.

example: amg-reid visualize log/pruned/best.pth --dense log/dense/last.pth --images photos/0001.jpg

more: docs/visualize.md
"""

import itertools
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from amg_plugin.cli.arguments import CHECKPOINT, CONFIGURATION, adder, argument, as_base, config_from_arguments
from amg_plugin.errors import InputError

_OUTPUT = "where the figures go (default: the folder 'visualize' next to the checkpoint)"

add_arguments = adder(
    CHECKPOINT,
    argument("--images", "images, or folders of images, one figure each", nargs="+", metavar="FILE"),
    argument("--dense", "the checkpoint before pruning", metavar="CKPT"),
    argument("--calibrate", "score heads and positions (without --images)"),
    argument("--output", _OUTPUT, metavar="FOLDER"),
    argument("--format", "of the files", choices=("png", "pdf"), default="png"),
    argument("--dpi", "dots per inch of a PNG, 50 to 600", default=150),
    *CONFIGURATION,
)


def run(args: Namespace) -> int:
    """Draw; 0 on success."""
    if args.images and args.calibrate:
        raise InputError("--calibrate goes with the figure of the network; leave it or --images out.")
    if not 50 <= args.dpi <= 600:
        raise InputError(f"--dpi {args.dpi} is out of range; 50 to 600 is allowed.")

    from amg_plugin.checkpoint import read_checkpoint
    from amg_plugin.plots.checkpoints import check_drawable, figure_of_network, figures_of_images
    from amg_plugin.plots.files import image_files
    from amg_plugin.plots.style import save_figure
    from amg_plugin.utils.files import check_output

    checkpoint = read_checkpoint(args.checkpoint)
    dense = read_checkpoint(args.dense) if args.dense else None
    check_drawable(checkpoint, dense)
    folder = Path(args.output) if args.output else Path(args.checkpoint).parent / "visualize"
    check_output(folder / "figure")
    if args.images:
        files = [file for word in args.images for file in image_files(word)]
        figures, names = figures_of_images(checkpoint, dense, files, args.checkpoint), _figure_names(files)
    else:
        cfg = None
        if args.calibrate:
            args.opts = [*args.opts, "data.save_dir", str(folder)]
            cfg = config_from_arguments(
                args, use_schedule=False, base=as_base((dense or checkpoint).config, args.command)
            )
        figures = iter([figure_of_network(checkpoint, dense, args.checkpoint, cfg)])
        names = [f"{Path(args.checkpoint).stem}_{'scores' if args.calibrate else 'model'}"]
    for name, figure in zip(names, figures, strict=True):
        path = folder / f"{name}.{args.format}"
        save_figure(figure, path, args.dpi)
        print(path)
    return 0


def _figure_names(files: Sequence[Path]) -> list[str]:
    """A name for the figure of each file: its own, with a number where several files share it."""
    names: list[str] = []
    for stem in (file.stem for file in files):
        numbered = (stem if number == 1 else f"{stem}-{number}" for number in itertools.count(1))
        names.append(next(name for name in numbered if name not in names))
    return names
