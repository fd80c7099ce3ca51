"""Scores of a network on query and gallery, without anything that trains."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from amg_plugin import compat
from amg_plugin.data.labels import Loaders, TargetLabels
from amg_plugin.data.layout import TEST_PARTS
from amg_plugin.evaluation.protocol import Embedded, Protocol, Scores

logger = logging.getLogger(__name__)


class Evaluator:
    """Evaluates a network by torchreid's protocol.

    Args:
        model: The network, on its device: images ``[B, 3, height, width]`` to features ``[B, D]``. One that uses
            cameras gets their rows after the images.
        loaders: Target -> ``"query"`` and ``"gallery"`` -> loader: ``test_loader`` of torchreid's data manager, or
            what :func:`amg_plugin.data.manager.build_test_loaders` gives.
        protocol: How features are compared.
        sources: Training data sets that a network with side information is taken for if it does not say its own.
    """

    def __init__(self, model: nn.Module, loaders: Loaders, protocol: Protocol, sources: Sequence[str] = ()) -> None:
        self.model = model
        self.loaders = loaders
        self.protocol = protocol
        self.sources = sources
        self.device = next(chain(model.parameters(), model.buffers()), torch.empty(0)).device

    def evaluate(self, visit: Callable[[str, np.ndarray], None] | None = None) -> dict[str, Scores]:
        """Scores of every target.

        Args:
            visit: Gets each target with its distances ``[queries, gallery]``.

        Raises:
            DataError: If no query of a target has a match.
        """
        return {target: self.score(target, visit) for target in self.loaders}

    def score(self, target: str, visit: Callable[[str, np.ndarray], None] | None = None) -> Scores:
        """Scores of one target; arguments as :meth:`evaluate`."""
        query, gallery = self.embed(target)
        matrix = self.protocol.distances(query, gallery)
        scores = self.protocol.score(matrix, query, gallery)
        curve = ", ".join(f"Rank-{rank} {value:.1%}" for rank, value in scores["cmc"].items())
        logger.info("%s: mAP %.1f%%, %s", target, 100 * scores["mAP"], curve)
        if visit is not None:
            visit(target, matrix)
        return scores

    def embed(self, target: str, label: str = "") -> tuple[Embedded, Embedded]:
        """Features of query and gallery of a target.

        Args:
            target: Name of the target.
            label: Text next to the progress bar.
        """
        TargetLabels(target, self.loaders[target], self.sources).announce_unseen(self.model)
        self.model.eval()
        query, gallery = (
            self._embed(target, self.loaders[target][part], f"{target} {part}{label and ', '}{label}")
            for part in TEST_PARTS
        )
        return query, gallery

    @torch.no_grad()
    def _embed(self, target: str, loader: DataLoader, label: str) -> Embedded:
        features, pids, camids = [], [], []
        for batch in tqdm(loader, desc=label, leave=False, disable=None):
            _, batch_pids, batch_camids = self.parse(batch)
            features.append(self.extract(*self.inputs(target, batch)).float().cpu())
            pids.extend(batch_pids.tolist())
            camids.extend(batch_camids.tolist())
        return Embedded(torch.cat(features), np.asarray(pids), np.asarray(camids))

    def inputs(self, target: str, batch: Mapping[str, Any]) -> tuple[Tensor | None, ...]:
        """What the network wants of a batch of ``target``: images and, if it uses them, rows of cameras and views."""
        images, _, camids = self.parse(batch)
        labels = TargetLabels(target, self.loaders[target], self.sources)
        return images.to(self.device), *labels.of(self.model, camids, batch, self.device)

    def parse(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        """Images, identities and cameras of a batch."""
        return batch["img"], batch["pid"], batch["camid"]

    def extract(self, images: Tensor, *labels: Tensor | None) -> Tensor:
        """Features ``[B, D]``."""
        return self.model(images, *labels)


def draw_rankings(
    target: str, matrix: np.ndarray, loaders: Loaders, size: tuple[int, int], folder: str | Path, longest: int
) -> None:
    """Draw the first ranks of every query, by torchreid, into ``folder/visrank_TARGET``.

    Args:
        target: Name of the target.
        matrix: Distances ``[queries, gallery]``.
        loaders: Whose images are drawn.
        size: (height, width) in pixels.
        folder: Where the run writes.
        longest: Ranks to draw.
    """
    compat.torchreid().utils.visualize_ranked_results(
        matrix,
        tuple(loaders[target][part].dataset.data for part in TEST_PARTS),
        "image",
        height=size[0],
        width=size[1],
        save_dir=str(Path(folder) / f"visrank_{target}"),
        topk=longest,
    )
