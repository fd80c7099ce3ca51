"""Evaluation of one target with torchreid's distances and metrics, safe for small galleries."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from amg_plugin import compat
from amg_plugin.errors import DataError

logger = logging.getLogger(__name__)

#: torchreid's default length of the CMC curve.
MAX_RANK = 50


@dataclass(frozen=True)
class Embedded:
    """Features of one split.

    Attributes:
        features: ``[n, D]`` on the CPU.
        pids: Identities ``[n]``.
        camids: Cameras ``[n]``.
    """

    features: Tensor
    pids: np.ndarray
    camids: np.ndarray


@torch.no_grad()
def embed(loader: Iterable[Any], parse: Callable, extract: Callable[[Tensor, Tensor], Tensor], label: str) -> Embedded:
    """Extract the features of a loader.

    Args:
        loader: torchreid's query or gallery loader.
        parse: Gives images, pids and camids of a batch.
        extract: Gives features ``[B, D]`` of images and their camera labels ``[B]``.
        label: What the progress bar says.
    """
    features, pids, camids = [], [], []
    for batch in tqdm(loader, desc=label, leave=False, disable=None):
        images, batch_pids, batch_camids = parse(batch)
        features.append(extract(images, batch_camids).float().cpu())
        pids.extend(batch_pids.tolist())
        camids.extend(batch_camids.tolist())
    return Embedded(torch.cat(features), np.asarray(pids), np.asarray(camids))


def distances(query: Embedded, gallery: Embedded, metric: str, normalize: bool, rerank: bool) -> np.ndarray:
    """torchreid's distance matrix ``[queries, gallery]``, re-ranked if asked for."""
    torchreid = compat.torchreid()
    q, g = query.features, gallery.features
    if normalize:
        q, g = F.normalize(q, dim=1), F.normalize(g, dim=1)
    measure = torchreid.metrics.compute_distance_matrix
    matrix = measure(q, g, metric).numpy()
    if rerank:
        matrix = torchreid.utils.re_ranking(matrix, measure(q, q, metric).numpy(), measure(g, g, metric).numpy())
    return matrix


def longest_cmc(query: Embedded, gallery: Embedded, use_metric_cuhk03: bool = False) -> int:
    """Length of the CMC curve that every query of the target can fill.

    torchreid drops gallery images of the query's own identity and camera; with a small gallery fewer than its 50 ranks
    are left and it fails. CUHK03's metric ranks one image per identity. Queries without a match do not count.

    Raises:
        DataError: If no query has a match.
    """
    shots = Counter(zip(gallery.pids.tolist(), gallery.camids.tolist(), strict=True))
    per_identity = Counter(gallery.pids.tolist())
    left = [
        len(gallery.pids) - shots[pid, camid]
        for pid, camid in zip(query.pids.tolist(), query.camids.tolist(), strict=True)
        if per_identity[pid] > shots[pid, camid]
    ]
    if not left:
        raise DataError(
            "No query of the target can be evaluated: none of their identities is in the gallery under another camera."
        )
    return min(MAX_RANK, len(per_identity) if use_metric_cuhk03 else min(left))


def score(
    matrix: np.ndarray, query: Embedded, gallery: Embedded, ranks: Sequence[int], use_metric_cuhk03: bool = False
) -> dict[str, Any]:
    """CMC and mAP by torchreid's ``evaluate_rank``; ranks are clamped to the gallery.

    Returns:
        ``{"mAP": float, "rank1": float, "cmc": {rank: float}}``, fractions.
    """
    length = longest_cmc(query, gallery, use_metric_cuhk03)
    cmc, mean_precision = compat.torchreid().metrics.evaluate_rank(
        matrix,
        query.pids,
        gallery.pids,
        query.camids,
        gallery.camids,
        max_rank=length,
        use_metric_cuhk03=use_metric_cuhk03,
    )
    kept = sorted({min(rank, length) for rank in ranks})
    if kept != sorted(set(ranks)):
        logger.warning("ranks %s are clamped to %s: the gallery is small", list(ranks), kept)
    return {
        "mAP": float(mean_precision),
        "rank1": float(cmc[0]),
        "cmc": {str(rank): float(cmc[rank - 1]) for rank in kept},
    }


def per_query_scores(matrix: np.ndarray, query: Embedded, gallery: Embedded) -> dict[str, np.ndarray]:
    """Average precision and first hit of every query that has a match, by torchreid's metric on one row at a time.

    Returns:
        ``{"AP": [n], "rank1": [n]}``; their means are mAP and Rank-1.
    """
    average_precision, first_hit = [], []
    identities: dict[int, set[int]] = {}
    for pid, camid in zip(gallery.pids.tolist(), gallery.camids.tolist(), strict=True):
        identities.setdefault(pid, set()).add(camid)
    for row, (pid, camid) in enumerate(zip(query.pids.tolist(), query.camids.tolist(), strict=True)):
        if not identities.get(pid, set()) - {camid}:
            continue
        one = slice(row, row + 1)
        cmc, precision = compat.torchreid().metrics.evaluate_rank(
            matrix[one], query.pids[one], gallery.pids, query.camids[one], gallery.camids, max_rank=1
        )
        average_precision.append(float(precision))
        first_hit.append(float(cmc[0]))
    return {"AP": np.array(average_precision), "rank1": np.array(first_hit)}
