"""Measure latency, throughput and memory: dense against pruned against exported.

Networks run in turn (A B A B ...), so that a slow phase of the machine affects all of them; there is one process per
runtime and number of threads. Printed are medians and quartiles of the latency, throughput, MACs, parameters, size and
peak memory, and how much of the MACs saved is time saved; a warning says where pruning did not pay. No data is needed.

Give checkpoints or exported files (each is measured against its dense network in the same runtime), or build structures
with random weights:

example: amg-reid bench log/vit_small_pruned/best.pth --threads 1 2 --batch 1 16
         amg-reid bench log/vit_small_pruned/best.pth pruned_int8.onnx pruned.xml
         amg-reid bench --model vit_amg_small --plan head25-token25 head40 --forms eager fast onnx
         amg-reid bench --model vit_amg_small --plan head25-token25 --reducers tome evit --output edge

Exported files are measured without PyTorch, too, where it is not installed: alone, and without counted MACs.

A plan without data spreads the rates as AMG does over trained networks: later blocks lose more, the middle of the image
stays.

more: docs/edge.md
"""

import contextlib
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path

from amg_plugin import compat
from amg_plugin.cli.arguments import TRUSTED, adder, argument
from amg_plugin.errors import InputError
from amg_plugin.registries import REDUCERS, TOKEN_VARIANTS
from amg_plugin.registries.formats import forms

_FORMS = (
    f"{', '.join(forms())}: the network in PyTorch, amg_plugin.fast, or other runtimes (default: eager fast, and those "
    "of the exported files that are given)"
)
#: Several words, or numbers.
_WORDS, _NUMBERS = {"nargs": "+", "default": []}, {"nargs": "+", "default": [1], "type": int, "metavar": "N"}

add_arguments = adder(
    argument("checkpoints", "checkpoints, or files of amg-reid export", nargs="*", metavar="CKPT"),
    TRUSTED,
    argument("--model", "vit_amg, vit_amg_small, vit_amg_tiny or a ViT of timm", metavar="NAME", **_WORDS),
    argument("--plan", "what to prune of --model, for example head25-token25-neuron20", metavar="RATES", **_WORDS),
    argument("--variant", "what a removed token of --plan loses", choices=TOKEN_VARIANTS, default="block"),
    # The choices are asked when the words are read, so that those of --import count.
    argument("--reducers", "token merging or dropping, at the MACs of every --plan", choices=REDUCERS, **_WORDS),
    argument("--stride", "patch stride of --model; 0 is the patch size", default=0, metavar="N"),
    argument("--height", "image height of --model and --backbones (default: 256)", type=int, metavar="N"),
    argument("--width", "image width of --model and --backbones (default: 128)", type=int, metavar="N"),
    argument("--backbones", "torchreid's networks, for example osnet_x1_0", metavar="NAME", **_WORDS),
    argument("--forms", _FORMS, nargs="+", metavar="FORM"),
    argument("--threads", "CPU threads (default: 1)", **_NUMBERS),
    argument("--batch", "images per pass (default: 1)", **_NUMBERS),
    argument("--rounds", "timed runs of each network", default=20, metavar="N"),
    argument("--warmup", "untimed runs before them", default=3, metavar="N"),
    argument("--device", "auto: cuda if there is a GPU", choices=("auto", "cpu", "cuda"), default="auto"),
    argument("--no-memory", "leave out peak memory, which takes a process per network"),
    argument("--output", "also write NAME.json (every sample) and NAME.md", metavar="NAME"),
)


def run(args: Namespace) -> int:
    """Measure and print; 0 on success."""
    from amg_plugin.bench import run, table
    from amg_plugin.bench.request import Request
    from amg_plugin.utils.files import write_text
    from amg_plugin.utils.places import typed_command

    request = Request(**{name: getattr(args, name) for name in Request.__dataclass_fields__})
    settings = run.Settings(
        forms=request.chosen_forms(),
        threads=tuple(dict.fromkeys(args.threads)),
        batches=tuple(dict.fromkeys(args.batch)),
        rounds=args.rounds,
        warmup=args.warmup,
        device=("cuda" if run.has_gpu() else "cpu") if args.device == "auto" else args.device,
        memory=not args.no_memory,
    )
    settings.check()
    files = {} if args.output is None else _files(args.output)
    subjects = request.subjects()
    with _progress(settings.total_rounds) as progress:
        result = run.run(subjects, settings, progress)
    result["command"] = typed_command(args.words)
    found = table.rows(result)
    print(table.text(found))
    for suffix, file in files.items():
        print(write_text(file, table.to_json(result, found) if suffix == "json" else table.markdown(result, found)))
    return 0


@contextlib.contextmanager
def _progress(total: int) -> Iterator[Callable[[str, int], None]]:
    """Shows what is going on and how many rounds were finished; nothing on a device without tqdm."""
    if not compat.is_installed("tqdm"):
        yield lambda what, finished: None
        return
    from tqdm import tqdm

    with tqdm(total=total, disable=None, leave=False) as bar:

        def progress(what: str, finished: int) -> None:
            bar.set_description(what, refresh=not finished)
            bar.update(finished)

        yield progress


def _files(name: str) -> dict[str, Path]:
    """The two files of ``--output``, in a folder that can be written; known before anything is measured."""
    from amg_plugin.utils.files import check_output

    path = Path(name).with_suffix("") if name.endswith((".json", ".md")) else Path(name)
    if not path.name or name.endswith(("/", "\\")):
        raise InputError(f"--output '{name}' is not a name for files; give, for example, edge or results/edge.")
    files = {suffix: path.with_name(f"{path.name}.{suffix}") for suffix in ("json", "md")}
    for file in files.values():
        check_output(file)
    return files
