"""Write a page about a run, or about several side by side.

The page is one HTML file that needs no network and holds no absolute path: a table of the models before and after with
differences and their bootstrap intervals, the course of the training, what each block keeps and looks at, costs and
measured time, the configuration and the command to repeat it. 'train' and 'prune' write it at their end.

RUN is the folder of a run, with its result.json. Times come from JSON files of 'amg-reid bench --output' in the folder
of a run, or from --bench. Images are on the page only if you ask for them, with --images or --ranked; the page then
says that it holds images of people. Both take the run's last.pth, and with --dense the network before pruning.

example: amg-reid report log/vit_small_pruned
         amg-reid report log/1/pruned log/2/pruned log/3/pruned --output seeds.html
         amg-reid report log/vit_small_pruned --dense log/vit_small/last.pth --ranked 10 --output with_images.html

more: docs/report.md
"""

from argparse import Namespace
from pathlib import Path
from typing import Any

from amg_plugin.cli.arguments import ROOT, adder, argument, messages_aside
from amg_plugin.errors import InputError

_OUTPUT = "the page (default: report.html in the folder of the run, or here for several)"
_RANKED = "add ranked results of the N queries whose first match moved most (with --dense)"

add_arguments = adder(
    argument("runs", "folders of runs", nargs="+", metavar="RUN"),
    argument("--output", _OUTPUT, metavar="FILE"),
    argument("--bench", "JSON files of 'amg-reid bench', for the first run", nargs="+", default=[], metavar="FILE"),
    argument("--images", "add attention on these images, or folders of images", nargs="+", metavar="FILE"),
    argument("--ranked", _RANKED, type=int, metavar="N"),
    argument("--dense", "the checkpoint before pruning, for --images and --ranked", metavar="CKPT"),
    ROOT,
)


def run(args: Namespace) -> int:
    """Write the page; 0 on success."""
    shows_images = args.images is not None or args.ranked is not None
    if shows_images and len(args.runs) > 1:
        raise InputError("--images and --ranked go with one run; give one.")
    if args.ranked is not None and (args.ranked < 1 or not args.dense):
        raise InputError("--ranked takes a number from 1, and the checkpoint before pruning as --dense.")

    from amg_plugin.report.page import FILE_NAME, write_report
    from amg_plugin.report.reading import read_runs
    from amg_plugin.runs.finished import folder_of
    from amg_plugin.utils.files import check_output

    folders = [folder_of(word) for word in args.runs]
    path = Path(args.output or (folders[0] / FILE_NAME if len(folders) == 1 else FILE_NAME))
    check_output(path)
    runs = read_runs(folders, args.bench)
    print(write_report(path, runs, _pictures(args, folders[0], runs[0].result["config"]) if shows_images else None))
    return 0


def _pictures(args: Namespace, folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """What --images and --ranked ask for."""
    from amg_plugin.checkpoint import LAST_CHECKPOINT, read_checkpoint
    from amg_plugin.config.load import load_config
    from amg_plugin.plots.checkpoints import check_drawable
    from amg_plugin.plots.files import image_files
    from amg_plugin.report.pictures import attention_on, ranked

    networks = {"before": read_checkpoint(args.dense)} if args.dense else {}
    networks["after"] = read_checkpoint(folder / LAST_CHECKPOINT)
    found: dict[str, Any] = {"attention": [], "ranked": []}
    if args.images:
        check_drawable(networks["after"], networks.get("before"))
        found["attention"] = attention_on([file for word in args.images for file in image_files(word)], networks)
    if args.ranked:  # which reads data by torchreid
        words = ["data.root", args.root] if args.root else []
        cfg = load_config(None, words, use_schedule=False, base=config)
        with messages_aside():
            found["ranked"] = ranked(cfg, networks, args.ranked)
    return found
