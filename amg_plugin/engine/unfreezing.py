"""Gradual unfreezing: the blocks of the ViT are trained one after the other, from the top (LA-Transformer)."""

from __future__ import annotations

import logging

from amg_plugin.engine.hooked import HookedEngine
from amg_plugin.engine.hooks import Hook
from amg_plugin.models.vit import backbone_of

logger = logging.getLogger(__name__)


class UnfreezingHook(Hook):
    """Trains the top block in the first epochs and one more, downwards, every ``every`` epochs.

    What is outside the blocks is trained from the start. Frozen blocks keep their weights exactly: they have no
    gradient, so no optimiser touches them, weight decay included.

    Args:
        every: Epochs after which one more block is trained, at least 1.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self._trained = 0

    def layers_opened(self, engine: HookedEngine) -> None:
        """Freeze the lower blocks again, which torchreid opens at every epoch."""
        blocks = backbone_of(engine.model).blocks
        trained = min(1 + engine.epoch // self.every, len(blocks))
        for block in blocks[: len(blocks) - trained]:
            block.requires_grad_(False)
        if trained != self._trained:
            logger.info("epoch %d: the top %d of %d blocks are trained", engine.epoch + 1, trained, len(blocks))
        self._trained = trained
