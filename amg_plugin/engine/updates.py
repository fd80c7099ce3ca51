"""From losses to steps of the optimiser: scaled losses in fp16, and one step for several batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from amg_plugin.errors import RunError

#: Precisions of ``amg.precision`` that autocast computes in.
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
#: The smallest scale of the loss; below it, gradients would overflow even if the loss were not scaled.
_SMALLEST_SCALE = 1.0


class Updates:
    """Makes the optimiser step once in ``accumulate`` batches, and guards fp16 by a scale of the loss.

    A group of batches shares a step; the last group of an epoch may be shorter. Gradients are the mean over the batches
    of the group: as those of one batch that is as many times as large, if the loss is a mean over images.

    In fp16 gradients below 6e-8 would be zero, so the loss is scaled (arXiv 1710.03740). If a gradient overflows, the
    step is left out and the scale halved; it doubles after 2000 steps without overflow.

    Args:
        precision: ``"fp32"``, ``"bf16"`` or ``"fp16"``.
        device: Type of the device, ``"cuda"`` or ``"cpu"``.
        accumulate: Batches per step, at least 1.
    """

    def __init__(self, precision: str, device: str, accumulate: int = 1) -> None:
        self.device, self.dtype, self.accumulate = device, HALF.get(precision), accumulate
        self.scaler = torch.amp.GradScaler(device, enabled=precision == "fp16")

    def autocast(self) -> torch.autocast:
        """The context of forward passes; without effect in fp32."""
        return torch.autocast(self.device, dtype=self.dtype or torch.bfloat16, enabled=self.dtype is not None)

    def group(self, batch: int, batches: int) -> range:
        """Batches of an epoch of ``batches`` that share a step with ``batch``; both count from 0."""
        first = batch - batch % self.accumulate
        return range(first, min(first + self.accumulate, batches))

    def take(
        self,
        loss: Tensor,
        optimizer: torch.optim.Optimizer,
        batch: int,
        group: range,
        share: Callable[[], None] = lambda: None,
    ) -> None:
        """Add the gradients of a batch's loss; behind the last batch of its group, make the step.

        ``share`` is called once the gradients of the group are complete; it makes them those of all processes.

        Raises:
            RunError: If gradients overflow in fp16 although the loss is scaled by less than 1.
        """
        if batch == group[0]:
            optimizer.zero_grad()
        self.scaler.scale(loss / len(group)).backward()
        if batch != group[-1]:
            return
        share()
        self.scaler.step(optimizer)
        self.scaler.update()
        if self.scaler.is_enabled() and self.scaler.get_scale() < _SMALLEST_SCALE:
            raise RunError(
                "gradients are too large for fp16, or NaN, however small the loss is scaled; use amg.precision bf16 or "
                "fp32, lower train.lr or add amg.warmup_epochs."
            )

    def state_dict(self) -> dict[str, Any]:
        """What the next step depends on besides model and optimiser, at the end of an epoch; plain data."""
        return self.scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the state of :meth:`state_dict`, of the same precision."""
        self.scaler.load_state_dict(state)
