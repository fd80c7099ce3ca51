"""Turn a checkpoint of TransReID, LA-Transformer or torchreid into an amg-reid checkpoint.

Read a published checkpoint, dense or pruned, and write it as an amg-reid checkpoint. Of torchreid, checkpoints of
vit_amg* are read (model.pth.tar-N), whose structure is that of --amg-config; the options about sizes are not for them.

The file is read as data: tensors, numbers and plain containers, never code. Its shapes and token masks give
the structure. A pruned file does not record which heads it kept, so the result knows only their number.

example: amg-reid import transformer_120.pth --from transreid --out log/transreid.pth
         amg-reid import net_best.pth --from la --out log/la.pth
         amg-reid --amg-config my_amg.yaml import log/model/model.pth.tar-60 --from torchreid --out log/vit.pth

more: docs/fidelity.md
"""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("file", metavar="FILE", help="a published .pth or .safetensors file")
    sources = ("transreid", "la", "torchreid")
    parser.add_argument("--from", dest="source", choices=sources, required=True, help="the program that wrote it")
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
    from amg_plugin.checkpoint import read_checkpoint
    from amg_plugin.paper.importing import Sizes, read_network, save_imported, save_torchreids
    from amg_plugin.runs.result import describe, description_text
    from amg_plugin.utils.files import check_output

    check_output(args.out, "--out")
    if args.source == "torchreid":
        save_torchreids(args.out, args.file)
    else:
        sizes = Sizes(**{one.name: getattr(args, one.name) for one in fields(Sizes) if one.name != "cameras"})
        model = read_network(args.file, args.source, sizes)
        save_imported(args.out, model, args.source, Path(args.file).name, args.trained_on)
    checkpoint = read_checkpoint(args.out)
    print(description_text(checkpoint, describe(checkpoint)))
    if not checkpoint.plan.heads_known:
        print("\nthe file does not record which heads were kept, only how many")
    print(f"\n{args.out}")
    return 0
