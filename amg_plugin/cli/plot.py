r"""Draw results: accuracy over milliseconds or MACs.

'pareto' draws any set of finished runs (their folders): the network that each ended with, and the dense one it began
with; LABEL=RUN joins runs to a line. Times are those of 'amg-reid bench --output' in the folder of a run. JSON files of
tools/compare_methods.py give methods as lines over their sizes; times are there if the tool ran with --latency, and
torchreid's light networks are marked at theirs. The grey line joins what nothing beats.

example: amg-reid plot pareto log/head25 log/head40 log/merged --over macs
         amg-reid plot pareto AMG=log/head25 AMG=log/head40 merging=log/merged --over fast --output pareto.svg
         amg-reid plot pareto equal_macs_15.json equal_macs.json equal_macs_50.json --methods dense amg tome \
             --output pareto.svg

more: docs/visualize.md
"""

from argparse import Namespace
from pathlib import Path

from amg_plugin.cli.arguments import adder, argument
from amg_plugin.errors import InputError

_KINDS = (".svg", ".png", ".pdf")

add_arguments = adder(
    argument("figure", "what to draw", choices=("pareto",)),
    argument("results", "folders of runs, or files of tools/compare_methods.py", nargs="+", metavar="[LABEL=]RESULT"),
    argument("--over", "a panel each: macs, or the form that was timed", nargs="+", default=["onnx"], metavar="COST"),
    argument("--batch", "images per pass; a panel each", nargs="+", type=int, default=[1], metavar="N"),
    argument("--step", "before or after fine-tuning", choices=("before", "after"), default="after"),
    argument("--methods", "keys of the methods to draw (default: all)", nargs="+", default=[], metavar="NAME"),
    argument("--output", "an .svg, .png or .pdf file", default="pareto.svg", metavar="FILE"),
)


def run(args: Namespace) -> int:
    """Draw; 0 on success."""
    path = Path(args.output)
    if path.suffix not in _KINDS:
        raise InputError(f"--output '{args.output}' must end in {', '.join(_KINDS)}.")

    from amg_plugin.plots.pareto import MACS, Axis, draw_pareto, read_curves
    from amg_plugin.plots.style import save_figure
    from amg_plugin.utils.files import check_output

    check_output(path)
    axes = dict.fromkeys(Axis(kind, 1 if kind == MACS else batch) for kind in args.over for batch in args.batch)
    panels = [(axis, read_curves(args.results, axis, args.step, args.methods)) for axis in axes]
    save_figure(draw_pareto(panels, args.step), path, 150)
    print(path)
    return 0
