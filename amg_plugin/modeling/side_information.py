"""Side information embedding of TransReID: a learned vector per camera and view, added to every token."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from amg_plugin.errors import ConfigError

logger = logging.getLogger(__name__)

UNSEEN = ("none", "mean")


@dataclass(frozen=True)
class SideInformationSpec:
    """Size and use of the embedding.

    Attributes:
        cameras: Training cameras; 0 means that cameras do not count.
        views: Training views; 0 means that views do not count.
        coefficient: Factor of the embedding.
        unseen: What an image of an unknown camera or view gets: ``"none"`` (nothing) or ``"mean"`` (the mean vector).
    """

    cameras: int = 0
    views: int = 0
    coefficient: float = 3.0
    unseen: str = "none"

    def __post_init__(self) -> None:
        if self.cameras < 0 or self.views < 0 or self.cameras + self.views == 0:
            raise ConfigError(
                f"Side information of {self.cameras} cameras and {self.views} views is impossible; "
                "at least one of them is needed."
            )
        if self.unseen not in UNSEEN:
            raise ConfigError(f"amg.sie.unseen '{self.unseen}' is unknown; allowed: {', '.join(UNSEEN)}.")

    @property
    def rows(self) -> int:
        """Number of learned vectors."""
        return max(self.cameras, 1) * max(self.views, 1)


class SideInformation(nn.Module):
    """Looks up the side information of a batch (TransReID, ICCV 2021, section on SIE).

    Labels that training has not seen never fail: they get what ``spec.unseen`` says, with one warning per module.

    Args:
        spec: Size and use.
        width: Embedding width of the tokens.
    """

    def __init__(self, spec: SideInformationSpec, width: int) -> None:
        super().__init__()
        self.spec = spec
        self.embedding = nn.Parameter(torch.empty(spec.rows, width))
        nn.init.trunc_normal_(self.embedding, std=0.02)
        self._warned = False

    def forward(self, camids: Tensor | None = None, viewids: Tensor | None = None) -> Tensor | None:
        """Vectors ``[B, 1, D]`` to add to the tokens; None if there is nothing to add.

        Args:
            camids: Camera of each image, ``[B]``, counted from 0; a negative number marks an unseen one.
            viewids: View of each image, likewise.
        """
        row = valid = None
        for labels, count in ((camids, self.spec.cameras), (viewids, self.spec.views)):
            if not count:
                continue
            if labels is None:
                return self._unlabelled()
            labels = torch.as_tensor(labels, device=self.embedding.device).long()
            known = (labels >= 0) & (labels < count)
            row = labels if row is None else row * count + labels
            valid = known if valid is None else valid & known
        if not self._warned and not valid.is_meta and not bool(valid.all()):
            self._warn(f"{int((~valid).sum())} of {len(valid)} images come from cameras or views")
        vectors = self.embedding[row.clamp(0, self.spec.rows - 1)]
        vectors = torch.where(valid[:, None], vectors, self._fallback())
        return self.spec.coefficient * vectors[:, None]

    def _fallback(self) -> Tensor:
        mean = self.embedding.mean(0)
        return mean if self.spec.unseen == "mean" else torch.zeros_like(mean)

    def _unlabelled(self) -> Tensor | None:
        if not self._warned:
            self._warn("images come without labels of cameras or views")
        return None if self.spec.unseen == "none" else self.spec.coefficient * self._fallback()[None, None]

    def _warn(self, what: str) -> None:
        self._warned = True
        treatment = "is left out" if self.spec.unseen == "none" else "is averaged over all that training has seen"
        logger.warning("%s that training has seen: for these the side information %s", what, treatment)
