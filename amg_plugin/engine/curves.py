"""TensorBoard's curves of a run, which no run ends for."""

from __future__ import annotations

import logging
from typing import Any

from torch.utils.tensorboard import SummaryWriter

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
