"""What is looked at before any work, in one list, so that all that is wrong is said at once."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from yacs.config import CfgNode

from amg_plugin.checkpoint import BEST_CHECKPOINT, LAST_CHECKPOINT, Checkpoint
from amg_plugin.data.checks.folders import check_dataset_folder
from amg_plugin.errors import AMGError, ConfigError, InputError
from amg_plugin.models.build import build_network
from amg_plugin.runs.setup import check_buildable, described, fitted
from amg_plugin.runs.train import plan_pruning
from amg_plugin.utils import processes
from amg_plugin.utils.files import check_writable

#: Name of the checks of data sets.
DATA = "data"
#: Checkpoints that a run may hold at a time: the last, the best, and the one that is being written.
CHECKPOINTS = 3
#: States that a run may hold at a time: the newest, the one before it, and the one that is being written.
STATES = 3
#: Values that an optimiser of torchreid or the plugin keeps per weight; those of users count as the largest.
_MOMENTS = {"sgd": 1, "rmsprop": 2, "adam": 2, "adamw": 2, "radam": 2, "amsgrad": 3}
#: Logs, curves, result.json and the report, in bytes.
_REST = 32 << 20


@dataclass(frozen=True)
class Check:
    """One thing that was looked at: its name, what was found, and the error if it is a problem."""

    name: str
    finding: str
    problem: AMGError | None = None


def look(name: str, find: Callable[[], str]) -> Check:
    """Look at one thing; ``find`` says what it found, or raises what is wrong."""
    try:
        return Check(name, find())
    except AMGError as error:
        return Check(name, str(error), error)


def before_work(cfg: CfgNode, checkpoint: Checkpoint | None, command: str) -> list[Check]:
    """Everything that can be looked at before data is read; nothing is written.

    Args:
        cfg: The configuration.
        checkpoint: What the run starts from.
        command: ``"train"`` or ``"prune"``.
    """
    names = dict.fromkeys((*cfg.data.sources, *cfg.data.targets))
    found = [look("processes", lambda: processes_share(cfg))]
    if processes.is_main():  # which writes
        found += [
            look("folder", lambda: writable_folder(cfg)),
            look("disk space", lambda: room_on_disk(cfg, checkpoint, command)),
        ]
    if command == "prune":
        found.append(look("teacher", lambda: teacher_stays(cfg)))
        if measured_first(cfg):  # what measures looks at schedule and data in its own order
            return found
    return [
        *found,
        look("schedule" if command == "prune" else "network", lambda: plan_is_feasible(cfg, checkpoint, command)),
        *(look(DATA, partial(data_is_there, cfg, name)) for name in names),
    ]


def measured_first(cfg: CfgNode) -> bool:
    """Whether something has to be measured before the schedule is known."""
    return bool(cfg.amg.target_latency_saving or (cfg.amg.target_macs_saving and cfg.amg.balance == "auto"))


def refuse(checks: Sequence[Check]) -> None:
    """End the command if there are problems.

    Raises:
        AMGError: The problem, or an InputError that lists them.
    """
    problems = list({str(check.problem): check.problem for check in checks if check.problem is not None}.values())
    if len(problems) == 1:
        raise problems[0]
    if problems:
        listed = " ".join(f"({number}) {problem}" for number, problem in enumerate(problems, 1))
        raise InputError(f"{len(problems)} things stand in the way of this run: {listed}")


def processes_share(cfg: CfgNode) -> str:
    """That every process gets an equal share of a batch.

    Raises:
        ConfigError: If not.
    """
    number = processes.world()
    if cfg.train.batch_size % number:
        raise ConfigError(
            f"train.batch_size is {cfg.train.batch_size}, of which each of {number} processes takes an equal share; "
            "give a multiple of their number."
        )
    return "1" if number == 1 else f"{number}, each with {cfg.train.batch_size // number} images of a batch"


def writable_folder(cfg: CfgNode) -> str:
    """That files can be written into ``data.save_dir``, or into the folder in which it will be made."""
    folder = Path(cfg.data.save_dir)
    there = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    check_writable(there)
    return f"'{folder}'" + ("" if there == folder.absolute() else " will be made")


def room_on_disk(cfg: CfgNode, checkpoint: Checkpoint | None, command: str) -> str:
    """That the disk of ``data.save_dir`` has room for checkpoints and states.

    Raises:
        InputError: If not.
    """
    needed = bytes_on_disk(cfg, checkpoint, command)
    folder = Path(cfg.data.save_dir).absolute()
    free = shutil.disk_usage(next(parent for parent in (folder, *folder.parents) if parent.exists())).free
    if free < needed:
        raise InputError(
            f"data.save_dir '{cfg.data.save_dir}' has {_gigabytes(free)} left, but the run's checkpoints and states "
            f"may take {_gigabytes(needed)}; make room or choose another folder."
        )
    return f"{_gigabytes(needed)} at most of {_gigabytes(free)}"


def bytes_on_disk(cfg: CfgNode, checkpoint: Checkpoint | None, command: str) -> int:
    """What a run may hold in ``data.save_dir`` at a time, estimated from its network before anything is cut.

    A state holds weights and what the optimiser keeps for them; where the network is its own teacher, there is one copy
    of it more.
    """
    if checkpoint is not None:
        tensors = list(checkpoint.weights.values())
    else:
        with torch.device("meta"):
            tensors = list(build_network(replace(described(cfg, 1), drop_path=0.0)).state_dict().values())
    weights = sum(value.numel() * value.element_size() for value in tensors)
    state = weights * (1 + _MOMENTS.get(cfg.train.optim, max(_MOMENTS.values())))
    own_teacher = command == "prune" and cfg.amg.distill.enabled and not cfg.amg.distill.teacher
    return CHECKPOINTS * weights + STATES * state + own_teacher * weights + _REST


def _gigabytes(number: int) -> str:
    return f"{number / 1e9:.2g} GB" if number < 10e9 else f"{number / 1e9:.0f} GB"


def plan_is_feasible(cfg: CfgNode, checkpoint: Checkpoint | None, command: str) -> str:
    """That the network can be built and, for pruning, that schedule, budget and teacher fit it.

    Raises:
        InputError: If not.
    """
    if checkpoint is None:
        check_buildable(cfg)
        return "can be built"
    if command == "train":
        fitted(checkpoint, cfg)
        return "the checkpoint fits"
    with torch.random.fork_rng(devices=[]):  # the run's random numbers stay as they are
        _, pruning, _ = plan_pruning(cfg, checkpoint)
    cuts = len(pruning.schedule.cuts)
    return f"feasible, {cuts} cut{'s' * (cuts != 1)}"


def teacher_stays(cfg: CfgNode) -> str:
    """That the run does not write over its teacher.

    The network that the run starts with may be its teacher (the published way), by its file as well: the teacher is a
    copy in memory, or a file that only is read. Being pruned is a mistake that the schedule's check finds.

    Raises:
        ConfigError: If ``amg.distill.teacher`` is a file that the run writes.
    """
    if not cfg.amg.distill.enabled:
        return "none"
    if not cfg.amg.distill.teacher:
        return "the network that the run starts with"
    teacher, folder = Path(cfg.amg.distill.teacher).resolve(), Path(cfg.data.save_dir).resolve()
    if teacher in (folder / LAST_CHECKPOINT, folder / BEST_CHECKPOINT):
        raise ConfigError(
            f"amg.distill.teacher '{cfg.amg.distill.teacher}' is a file that this run writes, so it would be its own "
            "student; choose another data.save_dir."
        )
    return f"'{cfg.amg.distill.teacher}'"


def data_is_there(cfg: CfgNode, name: str) -> str:
    """That the folder of a data set is there; its images are looked at when they are read.

    Raises:
        InputError: If the name is unknown or the folder missing.
    """
    folder = check_dataset_folder(name, cfg.data.root)
    return name if folder is None else f"{name}, '{folder}'"
