"""Check data sets: folders, names, labels, matches, readable images.

The checks are those that train, prune and test make before they start. Every problem is printed by name: missing
folders, file names that do not parse, training labels with gaps, images that cannot be read, queries whose identity no
other camera has in the gallery.

-s alone checks data sets for training and for testing on them, -t alone for testing. The exit status is 0 if a run
could use the data, 2 if not.

example: amg-reid check -s market1501 --root reid-data

more: docs/checks.md
"""

from argparse import Namespace

from amg_plugin.cli.arguments import CONFIGURATION, adder, config_from_arguments

add_arguments = adder(*CONFIGURATION)


def run(args: Namespace) -> int:
    """Check; 0 if the data can be used, 2 if not."""
    cfg = config_from_arguments(args, use_schedule=False)
    sources, targets = list(cfg.data.sources), list(cfg.data.targets)
    if not args.config_file:  # the other half would be that of the defaults
        if args.sources and not args.targets:
            targets = sources
        elif args.targets and not args.sources:
            sources = []

    from amg_plugin.data.checks.inspection import inspect_data
    from amg_plugin.data.layout import PARTS
    from amg_plugin.data.manager import dataset_options
    from amg_plugin.utils.tables import text_table

    inspection = inspect_data(
        cfg.data.root,
        sources,
        targets,
        train_targets=cfg.data.load_train_targets,
        decode=cfg.amg.check_images,
        skip=cfg.amg.skip_unreadable,
        workers=cfg.data.workers,
        options=dataset_options(cfg),
    )
    rows = [
        [name, part, str(len(items)), str(len({item[1] for item in items})), str(len({item[2] for item in items}))]
        for name, dataset in inspection.datasets.items()
        for part, items in ((part, getattr(dataset, part)) for part in PARTS)
    ]
    if rows:
        print(text_table(["data set", "part", "images", "identities", "cameras"], rows), end="\n\n")
    if images := inspection.images:
        print(f"{images.count} images looked at\n")
    for kind, found in (("warning", inspection.warnings), ("problem", inspection.problems)):
        for problem in found:
            print(f"{kind}: {problem.text}{':' if problem.items else '.'}")
            print(*(f"  {item}\n" for item in problem.items), sep="", end="")
            print(f"  {problem.remedy}.\n" if problem.remedy else "", end="")
    number = len(inspection.problems)
    print(f"{number} problem{'s' * (number != 1)} found." if number else "The data can be used.")
    return 2 if inspection.problems else 0
