"""How query and gallery are compared: torchreid's distances and metrics, safe for small galleries."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor
from torch.nn import functional as F
from yacs.config import CfgNode

from amg_plugin import compat
from amg_plugin.errors import DataError, RunError

logger = logging.getLogger(__name__)

#: torchreid's default length of the CMC curve.
MAX_RANK = 50

Scores = dict[str, Any]
"""``{"mAP": float, "rank1": float, "cmc": {rank: float}}`` of one target, fractions."""


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


@dataclass(frozen=True)
class Protocol:
    """How features are compared; the values are those of torchreid's ``test``.

    Attributes:
        metric: ``"euclidean"`` or ``"cosine"``.
        normalize: L2-normalise features first.
        ranks: CMC ranks to report, clamped to the gallery.
        rerank: k-reciprocal re-ranking.
        use_metric_cuhk03: CUHK03's metric, which ranks one image per identity.
    """

    metric: str = "euclidean"
    normalize: bool = False
    ranks: Sequence[int] = (1, 5, 10, 20)
    rerank: bool = False
    use_metric_cuhk03: bool = False

    @classmethod
    def from_config(cls, cfg: CfgNode) -> Protocol:
        """Read the nodes ``test`` and ``cuhk03``."""
        test, cuhk03 = cfg.test, cfg.cuhk03.use_metric_cuhk03
        return cls(test.dist_metric, test.normalize_feature, tuple(test.ranks), test.rerank, cuhk03)

    def distances(self, query: Embedded, gallery: Embedded) -> np.ndarray:
        """torchreid's distance matrix ``[queries, gallery]``, re-ranked if asked for.

        Raises:
            RunError: If a distance is NaN or infinite, as squares of large features are.
        """
        torchreid = compat.torchreid()
        q, g = query.features, gallery.features
        if self.normalize:
            q, g = F.normalize(q, dim=1), F.normalize(g, dim=1)

        def measure(a: Tensor, b: Tensor) -> np.ndarray:
            return torchreid.metrics.compute_distance_matrix(a, b, self.metric).numpy()

        matrix = measure(q, g)
        if self.rerank:
            matrix = torchreid.utils.re_ranking(matrix, measure(q, q), measure(g, g))
        if not np.isfinite(matrix).all():
            raise RunError("Distances of features are NaN or infinite, so nothing can be ranked by them.")
        return matrix

    def score(self, matrix: np.ndarray, query: Embedded, gallery: Embedded) -> Scores:
        """CMC and mAP by torchreid's ``evaluate_rank`` of the matrix that :meth:`distances` gave.

        Raises:
            DataError: If no query has a match.
        """
        length = longest_cmc(query, gallery, self.use_metric_cuhk03)
        labels = query.pids, gallery.pids, query.camids, gallery.camids
        cmc, mean_ap = compat.torchreid().metrics.evaluate_rank(
            matrix, *labels, max_rank=length, use_metric_cuhk03=self.use_metric_cuhk03
        )
        kept = sorted({min(rank, length) for rank in self.ranks})
        if kept != sorted(set(self.ranks)):
            logger.warning("ranks %s are clamped to %s: the gallery is small", list(self.ranks), kept)
        curve = {str(rank): float(cmc[rank - 1]) for rank in kept}
        return {"mAP": float(mean_ap), "rank1": float(cmc[0]), "cmc": curve}

    def compare(self, query: Embedded, gallery: Embedded) -> Scores:
        """Scores of one target."""
        return self.score(self.distances(query, gallery), query, gallery)


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


def ranking(distances: np.ndarray, pid: int, camid: int, gallery: Embedded) -> tuple[np.ndarray, np.ndarray]:
    """The gallery images that count for a query, nearest first: their numbers, and which show its identity.

    As in torchreid's metric, gallery images of the query's own identity and camera do not count.

    Args:
        distances: Of the query to every gallery image ``[gallery]``.
        pid: Its identity.
        camid: Its camera.
        gallery: The gallery.
    """
    order = np.argsort(distances)
    same = gallery.pids[order] == pid
    counted = ~(same & (gallery.camids[order] == camid))
    return order[counted], same[counted]


def per_query_scores(matrix: np.ndarray, query: Embedded, gallery: Embedded) -> dict[str, np.ndarray]:
    """What every query that has a match contributes to the scores, in the order of the queries.

    Args:
        matrix: Distances ``[queries, gallery]``.
        query: The queries.
        gallery: The gallery.

    Returns:
        ``{"AP": [n], "rank1": [n], "first": [n]}``: average precision and first hit, whose means are mAP and Rank-1,
        and the rank of the first match, from 1.
    """
    precision, first = [], []
    for row in zip(matrix, query.pids, query.camids, strict=True):
        ranks = 1 + np.flatnonzero(ranking(*row, gallery)[1])
        if len(ranks):
            precision.append(float(np.mean(np.arange(1, len(ranks) + 1) / ranks)))
            first.append(int(ranks[0]))
    found = np.array(first, dtype=np.int64)
    return {"AP": np.array(precision), "rank1": (found == 1).astype(float), "first": found}


def labels_digest(query: Embedded, gallery: Embedded) -> str:
    """SHA-256 of identities and cameras in their order: whether scores of queries can be compared in pairs."""
    digest = hashlib.sha256()
    for labels in (query.pids, query.camids, gallery.pids, gallery.camids):
        digest.update(np.ascontiguousarray(labels, dtype="<i8").tobytes() + b"|")
    return digest.hexdigest()
