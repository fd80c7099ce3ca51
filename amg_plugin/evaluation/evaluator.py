"""Scores of a network on query and gallery, and its attention on covered patches, without anything that trains."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from amg_plugin import compat
from amg_plugin.data.identities import list_digest
from amg_plugin.data.labels import Loaders, TargetLabels
from amg_plugin.data.layout import TEST_PARTS
from amg_plugin.data.occlusion.masks import COVERED, Grid, covered_by_masks
from amg_plugin.evaluation.protocol import Embedded, Protocol, Scores, labels_digest, per_query_scores
from amg_plugin.models.reid import ReIDModel
from amg_plugin.models.vit import backbone_of, unwrap
from amg_plugin.pruning.recorder import CoveredAttentionRecorder
from amg_plugin.utils import processes
from amg_plugin.utils.finite import check_finite

logger = logging.getLogger(__name__)

Covered = Mapping[str, np.ndarray]
"""Image -> which of its patches are covered."""


class Evaluator:
    """Evaluates a network by torchreid's protocol.

    Args:
        model: The network, on its device: images ``[B, 3, height, width]`` to features ``[B, D]``. One that uses
            cameras gets their rows after the images.
        loaders: Target -> ``"query"`` and ``"gallery"`` -> loader: ``test_loader`` of torchreid's data manager, or
            what :func:`amg_plugin.data.manager.build_test_loaders` gives.
        protocol: How features are compared.
        sources: Training data sets that a network with side information is taken for if it does not say its own.

    Attributes:
        queries: Target -> what its queries contributed to the latest scores, as :func:`query_section` says.
    """

    #: When it evaluates, for messages.
    when = ""

    def __init__(self, model: nn.Module, loaders: Loaders, protocol: Protocol, sources: Sequence[str] = ()) -> None:
        self.model = model
        self.loaders = loaders
        self.protocol = protocol
        self.sources = sources
        self.queries: dict[str, dict[str, Any]] = {}
        self.device = next(chain(model.parameters(), model.buffers()), torch.empty(0)).device

    def evaluate(self, visit: Callable[[str, np.ndarray], None] | None = None) -> dict[str, Scores]:
        """Scores of every target.

        Args:
            visit: Gets each target with its distances ``[queries, gallery]``.

        Raises:
            DataError: If no query of a target has a match.
            RunError: If features or distances are NaN or infinite.
        """
        return {target: self.score(target, visit) for target in self.loaders}

    def score(self, target: str, visit: Callable[[str, np.ndarray], None] | None = None) -> Scores:
        """Scores of one target; arguments as :meth:`evaluate`."""
        query, gallery = self.embed(target)

        def scored() -> tuple[Scores, Any]:
            matrix = self.protocol.distances(query, gallery)
            scores = self.protocol.score(matrix, query, gallery)
            curve = ", ".join(f"Rank-{rank} {value:.1%}" for rank, value in scores["cmc"].items())
            logger.info("%s: mAP %.1f%%, %s", target, 100 * scores["mAP"], curve)
            drawn = self.protocol.use_metric_cuhk03  # at random, by that metric
            queries = None if drawn else query_section(matrix, query, gallery)
            if visit is not None:
                visit(target, matrix)
            return scores, queries

        scores, queries = processes.from_main(scored)
        if queries is not None:
            self.queries[target] = queries
        return scores

    def embed(self, target: str, label: str = "") -> tuple[Embedded, Embedded]:
        """Features of query and gallery of a target; ``label`` stands next to the progress bar.

        Where several processes share a run, each computes those of its batches, and all get all of them.
        """
        if processes.world() > 1:
            lists = [list_digest(loader.dataset.data) for loader in self.loaders[target].values()]
            processes.same_on_all(lists, f"list of images of {target}")
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
        loader, first = _share(loader)
        for number, batch in enumerate(tqdm(loader, desc=label, leave=False, disable=None), first + 1):
            _, batch_pids, batch_camids = self.parse(batch)
            found = self.extract(*self.inputs(target, batch)).float().cpu()
            check_finite(
                found.numpy(),
                f"features in batch {number} of {label}{self.when}",
                batch.get("impath", range(len(found))),
            )
            features.append(found)
            pids.extend(batch_pids.tolist())
            camids.extend(batch_camids.tolist())
        parts = [part for part in processes.everywhere((features, pids, camids)) if part[0]]
        features, pids, camids = ([one for part in parts for one in part[place]] for place in range(3))
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


def query_section(matrix: np.ndarray, query: Embedded, gallery: Embedded) -> dict[str, Any]:
    """What ``details.json`` says about the queries of one target.

    Returns:
        ``AP`` and ``first`` as :func:`per_query_scores` gives them, and ``labels``, see :func:`labels_digest`.
    """
    scores = per_query_scores(matrix, query, gallery)
    precision = [round(value, 6) for value in scores["AP"].tolist()]
    return {"AP": precision, "first": scores["first"].tolist(), "labels": labels_digest(query, gallery)}


def draw_rankings(
    target: str, matrix: np.ndarray, loaders: Loaders, size: tuple[int, int], folder: str | Path, longest: int
) -> None:
    """Draw the first ``longest`` ranks of every query, by torchreid, into ``folder/visrank_TARGET``.

    ``matrix`` has the distances ``[queries, gallery]``; ``size`` is (height, width) in pixels.
    """
    compat.torchreid().utils.visualize_ranked_results(
        matrix,
        tuple(loaders[target][part].dataset.data for part in TEST_PARTS),
        "image",
        height=size[0],
        width=size[1],
        save_dir=str(Path(folder) / f"visrank_{target.replace(':', '-')}"),
        topk=longest,
    )


def covered_targets(loaders: Loaders, model: ReIDModel) -> dict[str, Covered]:
    """Targets that have masks, with the covered patches of their images, of which ``model`` gives size and grid.

    Raises:
        DataError: Masks are missing, unreadable or of another size than their images.
    """
    if model.spec.reducer is not None:  # masks are laid over keys, which must be the same positions for every image
        logger.info("attention on covered patches is not reported: the model chooses its tokens image by image")
        return {}
    embed = backbone_of(model).patch_embed
    grid = Grid(tuple(embed.img_size), tuple(embed.patch_size), tuple(getattr(embed, "stride", embed.patch_size)))
    found = {}
    for target, parts in loaders.items():
        images = [item[0] for part in TEST_PARTS for item in parts[part].dataset.data]
        covered = covered_by_masks(images, grid, f"masks of {target}")
        if covered:
            found[target] = covered
    return found


@torch.no_grad()
def covered_attention(evaluator: Evaluator, target: str, covered: Covered) -> list[dict[str, float]]:
    """Run all images of a target that have a mask.

    Returns:
        Per block ``attention`` and ``keys``, see :meth:`CoveredAttentionRecorder.mean`.
    """
    model = unwrap(evaluator.model).eval()
    with CoveredAttentionRecorder(model) as recorder:
        for part in TEST_PARTS:
            loader, _ = _share(_with_masks(evaluator.loaders[target][part], covered))
            for batch in tqdm(loader, desc=f"attention, {target} {part}", leave=False, disable=None):
                recorder.covered = torch.from_numpy(np.stack([covered[path] for path in batch["impath"]]))
                model(*evaluator.inputs(target, batch))
    return recorder.mean(processes.reducer())


def _with_masks(loader: DataLoader, covered: Covered) -> DataLoader:
    return _only(loader, [place for place, item in enumerate(loader.dataset.data) if item[0] in covered])


def _share(loader: DataLoader) -> tuple[DataLoader, int]:
    """This process's batches of a loader, which are those that one process has, and the number of the first one."""
    if processes.world() == 1:
        return loader, 0
    number, count = len(loader), processes.world()
    first, end = (number * place // count for place in (processes.rank(), processes.rank() + 1))
    places = range(first * loader.batch_size, min(end * loader.batch_size, len(loader.dataset)))
    return _only(loader, places), first


def _only(loader: DataLoader, places: Sequence[int]) -> DataLoader:
    same = ("batch_size", "num_workers", "pin_memory")
    return DataLoader(Subset(loader.dataset, places), **{name: getattr(loader, name) for name in same})


def covered_section(covered: Covered, shares: Mapping[str, list[dict[str, float]]]) -> dict[str, Any]:
    """What ``result.json`` says about one target, out of what :func:`covered_attention` gave per model.

    Returns:
        ``images``; ``patches``, the share of all patches that is covered, mean over the images; ``threshold``, the
        share of its area from which a patch counts as covered; ``models``.
    """
    patches = float(np.mean([mask.mean() for mask in covered.values()]))
    return {"images": len(covered), "patches": patches, "threshold": COVERED, "models": dict(shares)}
