"""``amg-reid bench``: is a pruned network really faster?"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from amg_plugin.errors import InputError
from amg_plugin.registries import REDUCERS, TOKEN_VARIANTS
from amg_plugin.registries.formats import forms

HELP = "measure latency, throughput and memory: dense against pruned against exported"
DESCRIPTION = """Measure what pruning saves in time. Networks run in turn (A B A B ...), so that a slow phase of the
machine affects all of them; there is one process per runtime and number of threads. The command prints medians
and quartiles of the latency, throughput, MACs, parameters, size and peak memory, and how much of the MACs saved is time
saved; a warning says where pruning did not pay. No data is needed.

Give checkpoints or exported files (each is measured against its dense network in the same runtime), or build structures
with random weights:

example: amg-reid bench log/vit_small_pruned/best.pth --threads 1 2 --batch 1 16
         amg-reid bench log/vit_small_pruned/best.pth pruned_int8.onnx pruned.xml
         amg-reid bench --model vit_amg_small --plan head25-token25 head40 --forms eager fast onnx
         amg-reid bench --model vit_amg_small --plan head25-token25 --reducers tome evit --backbones osnet_x1_0 \
           --output edge

A plan without data spreads the rates as AMG does over trained networks: later blocks lose more, the middle of the image
stays."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add = parser.add_argument
    add("checkpoints", nargs="*", metavar="CKPT", help="checkpoints, or files of amg-reid export")
    add("--model", nargs="+", default=[], metavar="NAME", help="vit_amg, vit_amg_small, vit_amg_tiny or a ViT of timm")
    add("--plan", nargs="+", default=[], metavar="RATES", help="what to prune of --model, for example head25-token25")
    add(
        "--variant",
        choices=TOKEN_VARIANTS,
        default="block",
        help="what a removed token of --plan loses (default: block)",
    )
    add(
        "--reducers",
        nargs="+",
        choices=REDUCERS,  # asked when the words are read, so that those of --import count
        default=[],
        help="token merging or dropping, measured with every --plan at the same counted MACs",
    )
    add("--stride", type=int, default=0, metavar="N", help="patch stride of --model (default: the patch size)")
    add("--height", type=int, metavar="N", help="image height of --model and --backbones (default: 256)")
    add("--width", type=int, metavar="N", help="image width of --model and --backbones (default: 128)")
    add("--backbones", nargs="+", default=[], metavar="NAME", help="torchreid's networks, for example osnet_x1_0")
    add(
        "--forms",
        nargs="+",
        metavar="FORM",
        help=f"{', '.join(forms())}: the network in PyTorch, amg_plugin.fast, or other runtimes (default: eager fast, "
        "and those of the exported files that are given)",
    )
    add("--threads", type=int, nargs="+", default=[1], metavar="N", help="CPU threads (default: 1)")
    add("--batch", type=int, nargs="+", default=[1], metavar="N", help="images per pass (default: 1)")
    add("--rounds", type=int, default=20, metavar="N", help="timed runs of each network (default: 20)")
    add("--warmup", type=int, default=3, metavar="N", help="untimed runs before them (default: 3)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: cuda if there is a GPU")
    add("--no-memory", action="store_true", help="leave out peak memory, which takes a process per network")
    add("--output", metavar="NAME", help="also write NAME.json (every sample) and NAME.md")


def run(args: argparse.Namespace) -> int:
    """Measure and print; 0 on success."""
    import torch
    from tqdm import tqdm

    from amg_plugin.bench import table
    from amg_plugin.bench.request import Request
    from amg_plugin.bench.run import Settings
    from amg_plugin.bench.run import run as measure
    from amg_plugin.utils.files import write_text

    request = Request(**{name: getattr(args, name) for name in Request.__dataclass_fields__})
    device = ("cuda" if torch.cuda.is_available() else "cpu") if args.device == "auto" else args.device
    settings = Settings(
        forms=request.chosen_forms(),
        threads=tuple(dict.fromkeys(args.threads)),
        batches=tuple(dict.fromkeys(args.batch)),
        rounds=args.rounds,
        warmup=args.warmup,
        device=device,
        memory=not args.no_memory,
    )
    settings.check()
    output = None if args.output is None else _output(args.output)
    subjects = request.subjects()
    with tqdm(total=settings.total_rounds, disable=None, leave=False) as bar:

        def progress(what: str, finished: int) -> None:
            bar.set_description(what, refresh=not finished)
            bar.update(finished)

        result = measure(subjects, settings, progress)
    result["command"] = shlex.join(["amg-reid", "bench", *_words(args)])
    found = table.rows(result)
    print(table.text(found))
    if output:
        for suffix, content in (("json", table.to_json(result, found)), ("md", table.markdown(result, found))):
            print(write_text(output.with_name(f"{output.name}.{suffix}"), content))
    return 0


def _output(name: str) -> Path:
    """Name of the files without suffix, in a folder that can be written; known before anything is measured."""
    from amg_plugin.utils.files import check_writable

    path = Path(name).with_suffix("") if name.endswith((".json", ".md")) else Path(name)
    if not path.name or name.endswith(("/", "\\")):
        raise InputError(f"--output '{name}' is not a name for files; give, for example, edge or results/edge.")
    for suffix in ("json", "md"):
        if (written := path.with_name(f"{path.name}.{suffix}")).is_dir():
            raise InputError(f"'{written}', which --output '{name}' would write, is a folder; choose another name.")
    check_writable(path.parent, "The folder of --output,")
    return path


def _words(args: argparse.Namespace) -> list[str]:
    """The command line without folders of this machine."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    words = ["/".join(Path(path).parts[-2:]) for path in args.checkpoints]
    for name, default in vars(parser.parse_args([])).items():
        value = getattr(args, name)
        if name == "checkpoints" or value == default:
            continue
        values = [Path(value).name] if name == "output" else value if isinstance(value, list) else [value]
        words += [f"--{name.replace('_', '-')}", *([] if value is True else map(str, values))]
    return words
