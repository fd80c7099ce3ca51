r"""How many bytes the processes of a run hand to each other: per training step, per scoring pass, per repair.

Two processes with gloo share a few steps, and then a cut of heads, neurons and tokens each, on drawn images; what each
hands to the collectives of torch is counted where it is handed over (amg_plugin.utils.processes.handed). Per step also
the processor time of a process, with the others and alone (with the whole batch and with its slice): what an estimate
starts from. See docs/scaling.md.

Usage:
  python benchmarks/communication.py --config-file market1501/vit_small --batch 16 \
      --output docs/results/communication.json
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from amg_plugin.config import load_config
from amg_plugin.data.manager import build_datamanager
from amg_plugin.data.synthetic.reid import SyntheticSpec, write_synthetic_reid
from amg_plugin.engine.calibration import build_calibration, scoring_mode
from amg_plugin.models.vit import unwrap
from amg_plugin.pruning import Repair, prune_and_repair
from amg_plugin.pruning.cut import PruningRules, plan_cut
from amg_plugin.pruning.schedule import Cut
from amg_plugin.runs.setup import assemble, build_model, prepare
from amg_plugin.utils import processes
from amg_plugin.utils.environment import environment, processor_name

PROCESSES, CALIBRATED = 2, 2
#: Enough identities of a camera each for batches of 64.
SPEC = SyntheticSpec(train_ids=32, test_ids=2, cameras=2, cameras_per_id=2, train_images_per_camera=2,
                     gallery_images_per_camera=1, width=64, height=128)  # fmt: skip


def configuration(args: argparse.Namespace, root: str, batch: int) -> CfgNode:
    """The configuration of a run on drawn images."""
    data = ["data.root", root, "data.sources", ["synthetic_reid"], "data.targets", ["synthetic_reid"]]
    words = [*data, "data.workers", 0, "data.save_dir", str(Path(root) / "log"), "use_gpu", False]
    words += ["train.batch_size", batch, "amg.batches_per_epoch", args.steps, "amg.calibration.batches", CALIBRATED]
    words += ["model.pretrained", False, "amg.check_images", False, "amg.precision", "fp32"]
    return load_config(args.config_file, [*words, *args.keys], use_schedule=False)


def build_engine(cfg: CfgNode) -> Any:
    """An engine about to train."""
    prepare(cfg)
    datamanager = build_datamanager(cfg)
    engine = assemble(cfg, datamanager, build_model(cfg, datamanager.num_train_pids), [], 1)
    engine.max_epoch = 1
    return engine


def counted(work: Callable[[], Any]) -> dict[str, int]:
    """Bytes that a piece of work hands over, by what they are."""
    processes.handed.clear()
    work()
    return dict(processes.handed)


def step_seconds(engine: Any) -> float:
    """Median processor time of a step, the first one apart."""
    ends = []
    step = engine.forward_backward

    def timed(data: dict[str, Any]) -> dict[str, float]:
        start = time.process_time()
        summary = step(data)
        ends.append(time.process_time() - start)
        return summary

    engine.forward_backward = timed
    engine.train(print_freq=10**6)
    return statistics.median(ends[1:] or ends)


def measure(args: argparse.Namespace, root: str) -> dict[str, Any]:
    """What this process hands over and takes."""
    cfg = configuration(args, root, args.batch)
    with processes.joined(gpu=False):
        engine = build_engine(cfg)
        seconds: list[float] = []
        size = {"parameters": sum(value.numel() for value in engine.model.parameters())}
        step = counted(lambda: seconds.append(step_seconds(engine)))
        model, rules = unwrap(engine.model), PruningRules.from_config(cfg.amg)
        passes, plans = {}, {}
        with scoring_mode(model, cfg.amg.calibration.mode):
            for target in ("heads", "neurons", "tokens"):
                cut, calibration = Cut(0, 0, 0, target, 0.25, 0.25, 1), build_calibration(engine, target)
                passes[target] = counted(
                    lambda c=cut, k=calibration, t=target: plans.update({t: plan_cut(model, c, rules, k)})
                )
            plain = build_calibration(engine, "repair")
            repair = Repair("least_squares", images=CALIBRATED * args.batch)
            fitted = counted(
                lambda: prune_and_repair(
                    model, plans["heads"], repair, plain.batches(), plain.forward, processes.reducer()
                )
            )
        return {
            "step": {name: round(count / args.steps) for name, count in step.items()},
            "scoring": passes,
            "repair": {"of heads": fitted},
            "step_processor_seconds": seconds[0],
            **size,
            "classes": engine.datamanager.num_train_pids,
        }


def started(args: argparse.Namespace, root: str) -> dict[str, Any]:
    """Start the processes and give what the first one measured."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        common = {"WORLD_SIZE": PROCESSES, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free.getsockname()[1]}
    words = [sys.executable, __file__, "--root", root, *sys.argv[1:]]
    running = []
    for rank in range(PROCESSES):
        environ = {**os.environ, **{name: str(value) for name, value in {**common, "RANK": rank}.items()}}
        running.append(subprocess.Popen(words, env=environ, stdout=subprocess.PIPE, text=True))
    output = [process.communicate()[0] for process in running]
    return json.loads(output[0].splitlines()[-1])


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", default="market1501/vit_small", help="a shipped configuration or a file")
    parser.add_argument("--batch", type=int, default=16, help="images of a step, over both processes")
    parser.add_argument("--steps", type=int, default=3, help="steps that are counted")
    parser.add_argument("--keys", nargs="*", default=[], metavar="KEY VALUE", help="further keys of the configuration")
    parser.add_argument("--output", metavar="FILE", help="write everything as JSON")
    parser.add_argument("--root", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Count and print."""
    args = parse_arguments()
    if args.root:
        print(json.dumps(measure(args, args.root)))
        return
    with tempfile.TemporaryDirectory() as root:
        write_synthetic_reid(Path(root), SPEC, seed=1)
        found = started(args, root)
        sizes = {"whole": args.batch, "slice": args.batch // PROCESSES}
        alone = {
            f"{name}_alone_processor_seconds": step_seconds(build_engine(configuration(args, root, size)))
            for name, size in sizes.items()
        }
    settings = {"config_file": args.config_file, "batch": args.batch, "processes": PROCESSES}
    facts = {"calibration_batches": CALIBRATED, "processor": processor_name(), **environment(use_gpu=False)}
    result = {**settings, **found, **alone, **facts}
    text = json.dumps(result, indent=1)
    if args.output:
        Path(args.output).write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
