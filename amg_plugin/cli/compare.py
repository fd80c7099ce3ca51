"""Evaluate and count torchreid's backbones and your checkpoints in one table.

Columns are input size, mAP, Rank-1, parameters, counted MACs and size. All rows have the same targets, distance,
normalisation and re-ranking.

--no-eval builds and counts without data and weights; alone, it counts all of torchreid's networks.
A torchreid network is evaluated with the weights of a file (--weights NAME=FILE, read as data, never as code;
everything but the classifier must fit). Networks named by --models have none: they are counted and marked 'no weights',
since random features say nothing. Nothing is downloaded.

example: amg-reid compare --no-eval
         amg-reid compare --weights osnet_x1_0=log/osnet/model.pth.tar-60 --checkpoint log/pruned/best.pth \
                          --root reid-data -t market1501
         amg-reid compare --no-eval --models resnet50 hacnn vit_amg_small --output table.csv

more: docs/backbones.md
"""

from argparse import Namespace
from pathlib import Path

from amg_plugin.cli.arguments import CONFIGURATION, adder, argument, config_from_arguments, messages_aside

#: Forms of the table, and the suffixes of --output that mean one.
FORMATS = ("text", "markdown", "csv", "json")
_SUFFIXES = {".md": "markdown", ".csv": "csv", ".json": "json"}

_REPEATABLE = {"action": "append", "default": []}
_WEIGHTS = "a torchreid network with a checkpoint of torchreid's, to evaluate; may be given several times"
_CHECKPOINT = "a checkpoint of amg-reid, pruned or not, to evaluate; may be given several times"
_SIZE = "another input size for a torchreid network (default: data.height x data.width; hacnn 160x64)"

add_arguments = adder(
    argument("--no-eval", "count only: no data, no weights needed"),
    argument("--models", "networks to count, or 'all'", nargs="+", default=[], metavar="NAME"),
    argument("--weights", _WEIGHTS, metavar="NAME=FILE", **_REPEATABLE),
    argument("--checkpoint", _CHECKPOINT, metavar="CKPT", **_REPEATABLE),
    argument("--size", _SIZE, metavar="NAME=HxW", **_REPEATABLE),
    argument("--format", "form of the table (default: by --output's suffix, or text)", choices=FORMATS),
    argument("--output", "write there instead of printing", metavar="FILE"),
    *CONFIGURATION,
)


def run(args: Namespace) -> int:
    """Compare; 0 on success."""
    from amg_plugin.runs.compare import compare, conditions, render
    from amg_plugin.utils.files import check_output, write_text
    from amg_plugin.utils.places import typed_command

    cfg = config_from_arguments(args, use_schedule=False)
    if args.output:
        check_output(args.output)
    form = args.format or _SUFFIXES.get(Path(args.output or "").suffix, "text")
    named = {"models": args.models, "weights": args.weights, "checkpoints": args.checkpoint, "sizes": args.size}
    with messages_aside():
        rows = compare(cfg, **named, evaluate=not args.no_eval)
    facts = {"command": typed_command(args.words), **conditions(cfg, evaluated=not args.no_eval)}
    text = render(rows, form, facts)
    print(write_text(args.output, text) if args.output else text, end="\n" if args.output else "")
    return 0
