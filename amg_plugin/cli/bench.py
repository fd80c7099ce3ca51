"""``amg-reid bench``: is a pruned network really faster?"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from amg_plugin.errors import InputError
from amg_plugin.registries import REDUCERS

_FORMS = ("eager", "fast", "onnx", "openvino", "torchscript", "exported_program")
HELP = "measure latency, throughput and memory: dense against pruned against exported"
DESCRIPTION = """Measure what pruning saves in time. Networks run in turn (A B A B ...), so that a slow phase of the
machine meets all of them; one process per runtime and number of threads. Printed are medians and quartiles of the
latency, throughput, MACs, parameters, size and peak memory, and how much of the MACs saved is time saved; a warning
says where pruning did not pay. No data is needed.

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
    add("--variant", choices=("block", "kv"), default="block", help="what a token of --plan loses (default: block)")
    add(
        "--reducers",
        nargs="+",
        choices=REDUCERS,  # asked when the words are read, so that those of --import count
        default=[],
        help="token merging or dropping, each beside every --plan at the same counted MACs",
    )
    add("--stride", type=int, default=0, metavar="N", help="patch stride of --model (default: the patch size)")
    add("--height", type=int, metavar="N", help="image height of --model and --backbones (default: 256)")
    add("--width", type=int, metavar="N", help="image width of --model and --backbones (default: 128)")
    add("--backbones", nargs="+", default=[], metavar="NAME", help="torchreid's networks, for example osnet_x1_0")
    add(
        "--forms",
        nargs="+",
        choices=_FORMS,
        help="plain network, amg_plugin.fast, or other runtimes (default: eager fast, and those of the "
        "exported files that are given)",
    )
    add("--threads", type=int, nargs="+", default=[1], metavar="N", help="CPU threads (default: 1)")
    add("--batch", type=int, nargs="+", default=[1], metavar="N", help="images per pass (default: 1)")
    add("--rounds", type=int, default=20, metavar="N", help="runs of each network that count (default: 20)")
    add("--warmup", type=int, default=3, metavar="N", help="runs before that do not (default: 3)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: cuda where there is a GPU")
    add("--no-memory", action="store_true", help="leave out peak memory, which takes a process per network")
    add("--output", metavar="NAME", help="also write NAME.json (every sample) and NAME.md")


def run(args: argparse.Namespace) -> int:
    """Measure and print; 0 on success."""
    import torch
    from tqdm import tqdm

    from amg_plugin.bench import table
    from amg_plugin.bench.run import Settings
    from amg_plugin.bench.run import run as measure
    from amg_plugin.utils.files import write_text

    device = ("cuda" if torch.cuda.is_available() else "cpu") if args.device == "auto" else args.device
    settings = Settings(
        forms=_forms(args),
        threads=tuple(dict.fromkeys(args.threads)),
        batches=tuple(dict.fromkeys(args.batch)),
        rounds=args.rounds,
        warmup=args.warmup,
        device=device,
        memory=not args.no_memory,
    )
    settings.check()
    output = None if args.output is None else _output(args.output)
    subjects = _subjects(args)
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
            path = output.with_name(f"{output.name}.{suffix}")
            write_text(path, content)
            print(path)
    return 0


def _exported(path: str) -> str | None:
    """Format of an exported file, None for a checkpoint or a file that is not there."""
    from amg_plugin.deploy.runtimes import file_format

    return file_format(path) if Path(path).is_file() else None


def _forms(args: argparse.Namespace) -> tuple[str, ...]:
    """The forms to measure in; without ``--forms`` what suits all that is given."""
    formats = {path: _exported(path) for path in args.checkpoints}
    for path, found in formats.items():
        if args.forms is not None and found is not None and found not in args.forms:
            raise InputError(f"'{path}' runs in the form {found} only: add it to --forms, or leave --forms out.")
    if args.forms is not None:
        return tuple(dict.fromkeys(args.forms))
    in_torch = args.model or args.backbones or None in formats.values()
    found = [*(("eager", "fast") if in_torch else ()), *(form for form in formats.values() if form is not None)]
    return tuple(dict.fromkeys(found)) or ("eager", "fast")


def _output(name: str) -> Path:
    """Name of the files without suffix, in a folder that can be written; known before anything is measured."""
    from amg_plugin.utils.files import check_writable

    path = Path(name).with_suffix("") if name.endswith((".json", ".md")) else Path(name)
    if not path.name or name.endswith(("/", "\\")):
        raise InputError(f"--output '{name}' is no name for files; give, for example, edge or results/edge.")
    for suffix in ("json", "md"):
        if (written := path.with_name(f"{path.name}.{suffix}")).is_dir():
            raise InputError(f"'{written}', which --output '{name}' would write, is a folder; choose another name.")
    check_writable(path.parent, "The folder of --output,")
    return path


def _subjects(args: argparse.Namespace) -> list:
    from amg_plugin.bench.subjects import from_backbone, from_checkpoint, from_exported, from_structure, joined

    if args.plan and not args.model:
        raise InputError("--plan needs --model, the network that it prunes.")
    if args.reducers and not args.plan:
        raise InputError("--reducers needs --plan, whose MACs they are brought to.")
    if not (args.checkpoints or args.model or args.backbones):
        raise InputError("There is nothing to measure: give checkpoints, --model or --backbones.")
    if not args.model and (args.variant != "block" or args.stride):
        raise InputError("--variant and --stride are for --model; a checkpoint has its own.")
    if not (args.model or args.backbones) and (args.height is not None or args.width is not None):
        raise InputError("--height and --width are for --model and --backbones; a checkpoint has a size of its own.")
    size = (256 if args.height is None else args.height, 128 if args.width is None else args.width)
    if min(size) < 1:
        raise InputError(f"--height {size[0]} --width {size[1]} is impossible; allowed are numbers from 1.")
    groups = []
    for path in args.checkpoints:
        groups.append(from_checkpoint(path) if _exported(path) is None else from_exported(path, args.batch))
    for model in args.model:
        reducers = tuple(dict.fromkeys(args.reducers))
        groups.append(from_structure(model, args.plan, size, args.stride, args.variant, reducers))
    groups.append([from_backbone(name, size) for name in args.backbones])
    return joined(groups)


def _words(args: argparse.Namespace) -> list[str]:
    """The command line without folders of this machine."""
    from amg_plugin.bench.subjects import short_name

    words = [short_name(path) for path in args.checkpoints]
    defaults = {"variant": "block", "stride": 0, "height": None, "width": None, "forms": None,
                "threads": [1], "batch": [1], "rounds": 20, "warmup": 3, "device": "auto", "model": [], "plan": [],
                "reducers": [], "backbones": []}  # fmt: skip
    for name, default in defaults.items():
        value = getattr(args, name)
        if value != default:
            words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return [
        *words,
        *(["--no-memory"] if args.no_memory else []),
        *(["--output", Path(args.output).name] if args.output else []),
    ]
