"""Print the model card of a checkpoint or of an exported file.

The card is Markdown with a head in YAML, the form that model hubs read: network, plan, the data it was trained on, the
scores it was saved with, preprocessing, licence note, and how it was made. It says what the file says; what is not
recorded is named so. No data is needed.

example: amg-reid card log/vit_small_pruned/best.pth

more: docs/report.md
"""

from argparse import Namespace

from amg_plugin.cli.arguments import TRUSTED, adder, argument

add_arguments = adder(
    argument("file", "a checkpoint, or a file of amg-reid export", metavar="FILE"),
    TRUSTED,
)


def run(args: Namespace) -> int:
    """Print; 0 on success."""
    from amg_plugin.report.card import card

    print(card(args.file, trusted=args.trusted), end="")
    return 0
