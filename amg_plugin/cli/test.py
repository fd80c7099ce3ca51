"""Evaluate a checkpoint or an exported file on the targets.

The evaluator is torchreid's. Several targets are shown side by side: with '-t market1501 occluded_market1501' the table
says what occlusion costs. If a target has masks (amg-reid occlude makes them), another table says, block by block, what
share of the class token's attention falls on covered patches; --dense adds the dense model that a pruned one was made
from, for before and after.

With --gallery-weights, --weights embeds the queries and the other checkpoint the gallery, as on cameras that run the
pruned model and a server that keeps the dense one; both models alone are evaluated too. Each checkpoint brings its own
image size and preparation of images.

Without --config-file the checkpoint's own configuration counts; -t, --root and key value pairs change it.

result.json, with its tables in result.md, goes to a folder next to the file of --weights, named after file, targets and
what differs from the file's own configuration: 'test_best_market1501', 'test_best_market1501_rerank' with test.rerank
True, 'test_best_market1501_gallery-dense-best' with --gallery-weights log/dense/best.pth. data.save_dir on the command
line names another folder. A folder that holds a result.json is refused without --overwrite.

A file written by 'amg-reid export' is evaluated in its own runtime on the CPU ('test_model_onnx_market1501'). Files of
TorchScript, torch.export and ExecuTorch are programs, which run when they are opened: they need --trusted.

example: amg-reid test --weights log/vit_small_pruned/best.pth -t market1501 --root reid-data
         amg-reid test --weights log/pruned/best.pth --dense log/dense/best.pth -t market1501 occluded_market1501
         amg-reid test --weights log/pruned/best.pth --gallery-weights log/dense/best.pth -t market1501
         amg-reid test --weights model_int8.onnx -t market1501 --root reid-data

more: docs/commands.md
"""

from argparse import Namespace

from amg_plugin.cli import arguments
from amg_plugin.cli.arguments import CONFIGURATION, OVERWRITE, TRUSTED, argument
from amg_plugin.errors import InputError
from amg_plugin.registries.formats import file_format

_DENSE = "dense model to compare a pruned one with, in scores and in attention"

add_arguments = arguments.adder(
    argument("--weights", "the checkpoint or exported file to evaluate", metavar="CKPT"),
    argument("--gallery-weights", "another checkpoint that embeds the gallery (asymmetric retrieval)", metavar="CKPT"),
    argument("--dense", _DENSE, metavar="CKPT"),
    TRUSTED,
    OVERWRITE,
    *CONFIGURATION,
)


def run(args: Namespace) -> int:
    """Evaluate; 0 on success."""
    exported = file_format(arguments.required_weights(args)) is not None
    _check_files(args, exported)
    from amg_plugin.runs import test
    from amg_plugin.runs.result import write_markdown
    from amg_plugin.runs.setup import prepare, use_gpu
    from amg_plugin.utils.processes import joined

    if exported:
        from amg_plugin.deploy.exported_file import open_exported
        from amg_plugin.deploy.networks import as_checkpoint

        file = open_exported(args.weights, trusted=args.trusted)
        checkpoint = as_checkpoint(file.info)
        evaluate, subjects = test.evaluate_file, (file, checkpoint)
    else:
        checkpoint = arguments.checkpoint_from_arguments(args, args.weights)
        if args.gallery_weights is not None:
            evaluate, subjects = (
                test.evaluate_pair,
                (
                    checkpoint,
                    arguments.checkpoint_from_arguments(args, args.gallery_weights),
                ),
            )
        else:
            dense = None if args.dense is None else test.read_dense(args.dense, checkpoint)
            evaluate, subjects = test.evaluate_checkpoint, (checkpoint, dense)
    base = arguments.as_base(checkpoint.config, args.command)
    cfg = arguments.config_from_arguments(args, use_schedule=False, base=base).clone()
    cfg.defrost()
    cfg.use_gpu = cfg.use_gpu and not exported  # the file's runtime computes, on the CPU
    if "data.save_dir" not in args.opts[::2]:
        others = {"gallery": args.gallery_weights, "dense": args.dense}
        cfg.data.save_dir = str(test.output_folder(args.weights, cfg, checkpoint.config, others))
    cfg.freeze()
    arguments.refuse_to_overwrite(cfg, args.overwrite)
    with joined(use_gpu(cfg)):
        prepare(cfg)
        with arguments.logged(cfg.data.save_dir, "test") as started:
            sections = evaluate(cfg, *subjects)
            finished = arguments.finish(cfg, "test", sections, started, args.words, args.config_file)
            write_markdown(cfg.data.save_dir, finished)
    return 0


def _check_files(args: Namespace, exported: bool) -> None:
    """Check which files are given together."""
    others = {"--dense": args.dense, "--gallery-weights": args.gallery_weights}
    given = [option for option, value in others.items() if value is not None]
    if exported and given:
        raise InputError(f"{given[0]} goes with checkpoints only, but --weights is an exported file; leave it out.")
    if len(given) == 2:
        raise InputError("--dense and --gallery-weights cannot be combined; run 'amg-reid test' once with each.")
    if args.gallery_weights == "":
        raise InputError("--gallery-weights is empty; give a checkpoint.")
    if args.gallery_weights and file_format(args.gallery_weights) is not None:
        raise InputError(
            f"--gallery-weights '{args.gallery_weights}' is an exported file, but a checkpoint embeds the gallery: "
            "give the one that it was made from."
        )
