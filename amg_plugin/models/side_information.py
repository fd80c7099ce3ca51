"""Side information embedding of TransReID: a learned vector per camera and view, added to every token."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from amg_plugin.config.schema import check_value
from amg_plugin.errors import ConfigError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SideInformationSpec:
    """Size and use of the embedding.

    Attributes:
        cameras: Training cameras; 0 means that cameras do not count.
        views: Training views; 0 means that views do not count.
        coefficient: Factor of the embedding.
        unseen: What an image of an unknown camera or view gets: ``"none"`` (nothing) or ``"mean"`` (the mean vector).
        camera_table: Which cameras the rows stand for: camera numbers by training data set, in the order of the rows;
            empty if unknown (imported networks).
    """

    cameras: int = 0
    views: int = 0
    coefficient: float = 3.0
    unseen: str = "none"
    camera_table: dict[str, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.cameras < 0 or self.views < 0 or self.cameras + self.views == 0:
            raise ConfigError(
                f"Side information of {self.cameras} cameras and {self.views} views is impossible; "
                "at least one of them is needed."
            )
        check_value("amg.sie.unseen", self.unseen)
        table = {str(name): [int(number) for number in numbers] for name, numbers in self.camera_table.items()}
        object.__setattr__(self, "camera_table", table)  # plain data, for checkpoints
        named = sum(len(numbers) for numbers in self.camera_table.values())
        if self.camera_table and named != self.cameras:
            raise ConfigError(f"Side information of {self.cameras} cameras cannot name {named} of them.")

    @property
    def rows(self) -> int:
        """Number of learned vectors."""
        return max(self.cameras, 1) * max(self.views, 1)


class _Once:
    """Whether the warning was given; copies and DataParallel's replicas of a module share it."""

    def __init__(self) -> None:
        self.done = False

    def __deepcopy__(self, memo: dict[int, Any]) -> _Once:
        return self


def _is_recorded() -> bool:
    """Whether a program is being made out of what runs."""
    return torch.compiler.is_compiling() or torch.compiler.is_exporting() or torch.jit.is_tracing()


class SideInformation(nn.Module):
    """Looks up the side information of a batch (TransReID, ICCV 2021, section on SIE).

    Labels that training has not seen never fail: they get what ``spec.unseen`` says, with one warning per network.

    Args:
        spec: Size and use.
        width: Embedding width of the tokens.
    """

    def __init__(self, spec: SideInformationSpec, width: int) -> None:
        super().__init__()
        self.spec = spec
        self.embedding = nn.Parameter(torch.empty(spec.rows, width))
        nn.init.trunc_normal_(self.embedding, std=0.02)
        self._warned = _Once()

    def forward(self, camids: Tensor | None = None, viewids: Tensor | None = None) -> Tensor | None:
        """Vectors ``[B, 1, D]`` to add to the tokens; None if there is nothing to add.

        Args:
            camids: Camera of each image, ``[B]``, counted from 0; a negative number marks an unseen one.
            viewids: View of each image, in the same form.
        """
        row = valid = None
        for labels, count in ((camids, self.spec.cameras), (viewids, self.spec.views)):
            if not count:
                continue
            if labels is None:
                self.warn("the images come without labels of cameras or views")
                return None if self.spec.unseen == "none" else self.spec.coefficient * self._fallback()[None, None]
            labels = torch.as_tensor(labels, device=self.embedding.device).long()
            known = (labels >= 0) & (labels < count)
            row = labels if row is None else row * count + labels
            valid = known if valid is None else valid & known
        # A traced program can neither look at labels nor log.
        if not (self._warned.done or valid.is_meta or _is_recorded()) and not bool(valid.all()):
            self.warn(f"{int((~valid).sum())} of {len(valid)} images come from cameras or views unseen in training")
        vectors = self.embedding[row.clamp(0, self.spec.rows - 1)]
        vectors = torch.where(valid[:, None], vectors, self._fallback())
        return self.spec.coefficient * vectors[:, None]

    def warn(self, what: str) -> None:
        """Say once, for this module and its copies, what is unseen and what becomes of it."""
        if not torch.compiler.is_compiling() and not self._warned.done:
            self._warned.done = True
            logger.warning(
                "%s: for them side information %s (amg.sie.unseen)",
                what,
                "is left out" if self.spec.unseen == "none" else "is averaged over all that training has seen",
            )

    def warn_with(self, other: SideInformation) -> None:
        """Share the one warning with another network of the same run."""
        self._warned = other._warned

    def _fallback(self) -> Tensor:
        mean = self.embedding.mean(0)
        return mean if self.spec.unseen == "mean" else torch.zeros_like(mean)
