"""Several processes that share one run, started by ``torchrun``: everything that they say to each other.

In one process every function here gives back what it got, so that callers need not ask.

Each batch is a slice of a global one, and each process computes a loss of it. :func:`gather` is the exact adjoint of
what it does: gradients are those of the **sum** of the losses of all processes. DistributedDataParallel takes the mean
of the gradients over the processes, so that parameters get the gradient of the mean of the losses, whether a loss is
that of the global batch, the same everywhere, or a mean over the own slice.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import wraps
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from amg_plugin.errors import AMGError, InputError, RunError, ToldError
from amg_plugin.utils.launched import launched
from amg_plugin.version import __version__

T = TypeVar("T")

#: How long a process waits in the middle of a step or a pass for the others before it gives them up, in seconds.
STEP_TIMEOUT = 45
#: How long it waits where one of them may have much to do: reading and checking data, ranking, writing; in hours.
PATIENCE = 24
#: What the errors of torch's backends have in their texts when a process is gone; their classes say less.
_LOST = ("gloo", "nccl", "connection closed", "connection reset", "connection refused", "timed out", "broken pipe")


@dataclass(frozen=True)
class _Joined:
    rank: int
    count: int
    local_rank: int
    gpu: bool
    steps: Any  # the group for everything within a step; the default group waits longer


_alone = _Joined(0, 1, 0, False, None)
_here = _alone
#: Bytes that this process has handed to the others through this module since it joined, by what they were.
handed: Counter[str] = Counter()


def world() -> int:
    """How many processes share the run."""
    return _here.count


def rank() -> int:
    """The number of this one, from 0."""
    return _here.rank


def is_main() -> bool:
    """Whether this process writes: files, the log, tables and progress bars."""
    return _here.rank == 0


@contextmanager
def joined(gpu: bool) -> Iterator[None]:
    """Join the processes that ``torchrun`` has started, for the time of the ``with`` block.

    Args:
        gpu: Whether the run uses GPUs, one per process; then by nccl, else by gloo.

    Raises:
        InputError: If there are fewer GPUs on this machine than processes.
        RunError: If another process is gone.
    """
    global _here
    me = launched()
    if me.count == 1:
        yield
        return
    if gpu and torch.cuda.device_count() < me.local_count:
        raise InputError(
            f"torchrun started {me.local_count} processes on this machine, which has {torch.cuda.device_count()} GPUs; "
            "give --nproc_per_node as many, or set use_gpu to False."
        )
    try:
        if gpu:
            torch.cuda.set_device(me.local_rank)
        dist.init_process_group("gloo", timeout=timedelta(hours=PATIENCE))
        backend = "cpu:gloo,cuda:nccl" if gpu else "gloo"
        steps = dist.new_group(backend=backend, timeout=timedelta(seconds=STEP_TIMEOUT))
        _here = _Joined(me.rank, me.count, me.local_rank, gpu, steps)
        handed.clear()
        same_on_all([gpu, __version__, torch.__version__], "device or version of amg_plugin or torch")
        yield
        dist.barrier()  # whoever ends first takes the connections with it
        if gpu:
            dist.destroy_process_group()
    except RuntimeError as error:
        if not any(word in str(error).lower() for word in _LOST):
            raise
        raise RunError(
            f"Process {me.rank} of {me.count} has lost another process of the run, which has ended or hangs, and ends, "
            "too; what was written before is complete."
        ) from error
    finally:
        _here = _alone
        if dist.is_initialized() and not gpu:  # nccl would wait for what never comes
            dist.destroy_process_group()


# Tensors -------------------------------------------------------------------------------------------------------------


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        rows = rows.contiguous()
        parts = [torch.empty_like(rows) for _ in range(world())]
        dist.all_gather(parts, rows, group=_here.steps)
        handed["gathered"] += rows.nbytes
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return own(_reduce(gradient, "gradients of what was gathered"))


def gather(values: Any) -> Any:
    """Rows ``[B, ...]`` of every process, ``[world * B, ...]`` in the order of the processes, with gradients.

    Args:
        values: A tensor with as many rows as everywhere else, or tuples and lists of them.
    """
    if world() == 1:
        return values
    if isinstance(values, list | tuple):
        return type(values)(map(gather, values))
    return _Gather.apply(values)


def own(rows: Any) -> Any:
    """This process's rows of what :func:`gather` gives, or its slice of a list."""
    size = len(rows) // world()
    return rows[rank() * size : (rank() + 1) * size]


def reduce_sum(values: Tensor) -> Tensor:
    """The sum over the processes of tensors of the same shape, without gradients."""
    return values if world() == 1 else _reduce(values.detach(), "sums")


def _reduce(values: Tensor, what: str) -> Tensor:
    total = values.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total, group=_here.steps)
    handed[what] += total.nbytes
    return total


def largest(value: int) -> int:
    """The largest of the processes' numbers."""
    if world() == 1:
        return value
    found = torch.tensor(value)
    dist.all_reduce(found, dist.ReduceOp.MAX, group=_here.steps)
    return int(found)


def mean(values: Sequence[float]) -> list[float]:
    """The means over the processes of some numbers."""
    if world() == 1:
        return list(values)
    return (reduce_sum(torch.tensor(list(values), dtype=torch.float64)) / world()).tolist()


def reducer() -> Callable[[Tensor], Tensor] | None:
    """What adds a tensor up over processes, for functions that take it; None in one process."""
    return None if world() == 1 else reduce_sum


class _Distributed(nn.parallel.DistributedDataParallel):
    """torch's wrapper around what has a gradient now; it takes no parameters that no loss depends on.

    Attributes:
        others: Parameters that have none.
        bytes: Of the gradients that it shares.
    """

    def __init__(self, model: nn.Module) -> None:
        others = [value for value in model.parameters() if value.requires_grad and value.grad is None]
        for value in others:
            value.requires_grad_(False)
        try:
            device = [_here.local_rank] if _here.gpu else None
            # Buffers follow from statistics of the global batch, so that they are the same everywhere.
            super().__init__(model, device_ids=device, process_group=_here.steps, **{_SYNC_BUFFERS: False})
        finally:
            for value in others:
                value.requires_grad_(True)
        self.others = others
        self.bytes = sum(value.nbytes for value in model.parameters() if value.requires_grad and value.grad is not None)


_known = inspect.signature(nn.parallel.DistributedDataParallel).parameters
_SYNC_BUFFERS = "forward_sync_buffers" if "forward_sync_buffers" in _known else "broadcast_buffers"


def share_gradients(model: nn.Module) -> nn.Module:
    """Make the gradients that backward passes have added up the means over the processes.

    The first time that is done here, and the network comes back in DistributedDataParallel, which does it during the
    passes that follow. Frozen parameters and those that no loss depends on stay without gradients.

    Args:
        model: The network, or what this function gave for the pass before.

    Returns:
        What the next forward passes go through; the network itself in one process.
    """
    if world() == 1:
        return model
    wrapped = isinstance(model, _Distributed)
    if wrapped:
        handed["gradients"] += model.bytes
    for value in model.others if wrapped else model.parameters():
        if value.grad is not None:
            value.grad.copy_(_reduce(value.grad, "gradients") / world())
    return model if wrapped else _Distributed(model)


def hold_back(model: nn.Module, later: bool) -> None:
    """Say before a forward pass whether its gradients are shared with those of a later one."""
    if isinstance(model, _Distributed):
        model.require_backward_grad_sync = not later


def alone(model: nn.Module) -> nn.Module:
    """The network without what :func:`share_gradients` put around it, for when its parameters change."""
    return model.module if isinstance(model, _Distributed) else model


# Plain data ----------------------------------------------------------------------------------------------------------


def wait() -> None:
    """Wait for the other processes, whatever they do."""
    if world() > 1:
        dist.barrier()


def everywhere(value: T) -> list[T]:
    """A value of every process, in their order."""
    if world() == 1:
        return [value]
    values: list[Any] = [None] * world()
    dist.all_gather_object(values, value)
    return values


def from_main(make: Callable[[], T]) -> T:
    """Do something in process 0 only, while the others wait; every process gets what it gave.

    Raises:
        AMGError: What it raised; :class:`ToldError` in the others.
    """
    if world() == 1:
        return make()
    said: list[Any] = [None, None]
    failed = None
    if is_main():
        try:
            said[0] = make()
        except AMGError as error:
            failed, said[1] = error, str(error)
    dist.broadcast_object_list(said, src=0)
    if said[1] is not None:
        raise failed or ToldError(said[1])
    return said[0]


def main_only(function: Callable[..., T]) -> Callable[..., T | None]:
    """Decorates what writes: it does nothing, and gives None, in every process but the first."""

    @wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> T | None:
        return function(*args, **kwargs) if is_main() else None

    return guarded


def same_on_all(value: Any, what: str) -> None:
    """Check that every process has the same value.

    Args:
        value: Plain data, best a digest.
        what: What it is, to follow "The", for the message.

    Raises:
        RunError: If they differ.
    """
    others = [number for number, other in enumerate(everywhere(value)) if other != value]
    if others:
        raise RunError(
            f"The {what} of process {rank()} is not that of process {others[0]}, but all processes of a run must have "
            "the same; they may see other files, or run other versions."
        )
