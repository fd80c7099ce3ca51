"""Repair of a linear layer whose inputs became fewer or other ones: pure functions on tensors.

Beyond the paper (docs/beyond.md). A cut changes what goes into the layer behind it: ``proj`` loses the columns of the
removed heads, ``fc2`` those of the removed neurons. Weight and bias that are left are fitted anew, so that the layer
comes as close as it can to what it gave before. Sources: CORP (arXiv 2602.05243), GRAIL (arXiv 2602.23795).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from amg_plugin.errors import InputError, RunError

Reduce = Callable[[Tensor], Tensor]
"""Adds a tensor up over the processes that share a run."""


class Moments:
    """Streamed means and second moments of a linear layer's inputs and of what it should give.

    Products are computed in float32 per batch, around the means of the first one, so that large means cost no digits;
    sums are float64. Wider inputs keep their precision.

    Args:
        name: What errors call the layer.
        reduce: Adds a tensor up over processes, each of which takes in its share; None for one process. All of them
            take in as many batches, and end with :meth:`pool`.

    Attributes:
        tokens: Number of tokens so far.
    """

    def __init__(self, name: str = "the layer", reduce: Reduce | None = None) -> None:
        self.name, self.tokens, self._reduce = name, 0, reduce
        self._origins: tuple[Tensor, Tensor] = ()
        self._sums: list[Tensor] = []

    def add(self, inputs: Tensor, targets: Tensor) -> None:
        """Take in inputs ``[..., K]`` and targets ``[..., D]`` of the same tokens."""
        pair = [x.detach().flatten(0, -2).to(torch.promote_types(x.dtype, torch.float32)) for x in (inputs, targets)]
        if not self._origins:
            self._origins = tuple(map(self._mean, pair))
        z, y = (x - origin for x, origin in zip(pair, self._origins, strict=True))
        sums = [total.double() for total in (z.sum(0), y.sum(0), z.T @ z, y.T @ z, y.square().sum(0))]
        self._sums = [a + b for a, b in zip(self._sums, sums, strict=True)] if self._sums else sums
        self.tokens += len(z)

    def _mean(self, rows: Tensor) -> Tensor:
        if self._reduce is None:
            return rows.mean(0)
        total = self._reduce(torch.cat((rows.double().sum(0), rows.new_tensor([len(rows)]).double())))
        return (total[:-1] / total[-1]).to(rows.dtype)

    def pool(self) -> Moments:
        """Add up what the processes have taken in; gives itself."""
        if self._reduce is not None:
            self._sums = [self._reduce(total) for total in self._sums]
            self.tokens = int(self._reduce(torch.tensor(self.tokens)))
        return self

    def central(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Means ``[K]`` and ``[D]``, covariances ``[K, K]`` and ``[D, K]``, and the targets' variances ``[D]``.

        Raises:
            InputError: If nothing was taken in.
            RunError: If a sum is not finite.
        """
        if not self.tokens:
            raise InputError(f"No calibration token reached {self.name}, so it cannot be repaired.")
        if not all(torch.isfinite(total).all() for total in self._sums):
            raise RunError(f"The statistics of {self.name} are not finite, so it cannot be repaired.")
        z, y, zz, yz, yy = (total / self.tokens for total in self._sums)
        means = [mean + origin.double() for mean, origin in zip((z, y), self._origins, strict=True)]
        return *means, zz - z.outer(z), yz - y.outer(z), yy - y.square()

    def error(self, weight: Tensor, bias: Tensor | None) -> float:
        """Mean squared error, summed over the outputs, of a layer with ``weight`` ``[D, K]`` and ``bias`` ``[D]``."""
        mean_z, mean_y, covariance, cross, variance = self.central()
        weight = weight.detach().double()
        offset = mean_y - weight @ mean_z - (0 if bias is None else bias.detach().double())
        spread = variance.sum() - 2 * (weight * cross).sum() + (weight @ covariance * weight).sum()
        return (spread + offset.square().sum()).item()


def fit_mean(weight: Tensor, moments: Moments) -> Tensor:
    """The bias ``[D]`` that gives the targets' mean, ``m_y - W m_z``; float64."""
    mean_z, mean_y, *_ = moments.central()
    return mean_y - weight.detach().double() @ mean_z


def fit_least_squares(
    weight: Tensor, bias: Tensor | None, moments: Moments, ridge: float = 1e-3
) -> tuple[Tensor, Tensor | None]:
    """Weight and bias that come closest to the targets, and stay close to what they were.

    ``W' = argmin E ||y - W' z - b'||^2 + l ||W' - W||^2`` and ``b' = m_y - W' m_z`` with ``l`` = ``ridge`` times the
    mean diagonal of the covariance. Since the penalty is 0 at ``W``, the error is never above that of
    :func:`fit_mean`, which is never above that of ``weight`` and ``bias``.

    Args:
        weight: ``W``, ``[D, K]``.
        bias: ``[D]``; None for a layer without, whose fit then goes through the origin.
        moments: Statistics of ``z`` and ``y``.
        ridge: At least 0.

    Returns:
        Weight and bias in float64; None for no bias.

    Raises:
        InputError: If there are fewer tokens than columns.
        RunError: If the statistics are not finite or the covariance is singular.
    """
    mean_z, mean_y, covariance, cross, _ = moments.central()
    check_tokens(moments.tokens, weight.shape[1], moments.name)
    if bias is None:
        covariance, cross = covariance + mean_z.outer(mean_z), cross + mean_y.outer(mean_z)
    old = weight.detach().double()
    penalised = covariance.clone()
    penalised.diagonal().add_(ridge * covariance.diagonal().mean())
    factor, failed = torch.linalg.cholesky_ex(penalised)
    pivots = factor.diagonal().square()
    if failed or pivots.min() <= len(pivots) * torch.finfo(torch.float64).eps * pivots.max():
        raise RunError(
            f"The covariance of what goes into {moments.name} is singular, so least squares has no answer; more "
            "calibration images or amg.repair mean will do."
        )
    new = old + torch.cholesky_solve((cross - old @ covariance).T, factor).T
    return new, None if bias is None else mean_y - new @ mean_z


def check_tokens(tokens: int, columns: int, name: str) -> None:
    """Raise an InputError if there are fewer calibration tokens than columns to fit."""
    if tokens < columns:
        raise InputError(
            f"Least squares over the {columns} columns of {name} needs as many calibration tokens, but there are "
            f"{tokens}; give more images (amg.repair_images), or set amg.repair to mean."
        )
