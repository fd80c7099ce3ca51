"""TensorBoard's curves of a run, which no run ends for."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

logger = logging.getLogger(__name__)


class Curves(SummaryWriter):
    """Curves that end, with a warning, where their file can no longer be written; arguments as of ``SummaryWriter``."""

    _ended = False

    def add_scalar(self, *args: Any, **kwargs: Any) -> None:
        """Add a point."""
        if not self._ended:
            try:
                super().add_scalar(*args, **kwargs)
            except OSError as error:
                self._end(error)

    def add_hyperparameters(self, values: Mapping[str, bool | float | str], scores: Sequence[str]) -> None:
        """Say what the run is made with, for TensorBoard's table of runs; ``scores`` are curves that it shows."""
        if self._ended:
            return
        try:
            for summary in hparams(dict(values), dict.fromkeys(scores, 0.0)):
                self._get_file_writer().add_summary(summary)
        except OSError as error:
            self._end(error)

    def close(self) -> None:
        """Write what is left."""
        if not self._ended:
            try:
                super().close()
            except OSError as error:
                self._end(error)

    def _end(self, error: OSError) -> None:
        self._ended = True
        logger.warning("The curves in '%s' cannot be written (%s) and end here.", self.log_dir, error.strerror)


class NoCurves:
    """Takes the points of processes that write nothing."""

    def add_scalar(self, *args: Any, **kwargs: Any) -> None:
        """Leave it."""

    def close(self) -> None:
        """Nothing is left to write."""
