"""The course of a run: what each epoch came to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class EpochSums:
    """Sums of what the steps of the current epoch report, so that an epoch has means.

    Attributes:
        loss: Sum of each term of the loss, by name.
        accuracy: Sum of the batches' accuracies, fractions.
        batches: Steps so far.
        lr: Learning rate of the latest step.
    """

    def __init__(self) -> None:
        self.loss: dict[str, float] = {}
        self.accuracy, self.batches, self.lr = 0.0, 0, 0.0

    def add(self, loss: Mapping[str, float], accuracy: float, lr: float) -> None:
        """Take in a step."""
        for name, value in loss.items():
            self.loss[name] = self.loss.get(name, 0.0) + value
        self.accuracy, self.batches, self.lr = self.accuracy + accuracy, self.batches + 1, lr

    def entry(self, epoch: int) -> dict[str, Any]:
        """The history's entry for an epoch, counted from 0; bit for bit the same for the same epoch, so without time.

        Returns:
            ``{"event": "epoch", "epoch", "loss", "accuracy", "lr"}``: the means of each term of the loss and of the
            training accuracy over the batches (empty and None without batches), and the rate of the last step in the
            group that torchreid reports.
        """
        count = self.batches
        loss = {name: total / count for name, total in self.loss.items()}
        return {
            "event": "epoch",
            "epoch": epoch,
            "loss": loss,
            "accuracy": self.accuracy / count if count else None,
            "lr": self.lr,
        }
