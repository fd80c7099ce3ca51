"""Asymmetric retrieval: queries by one network, the gallery by another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from yacs.config import CfgNode

from amg_plugin.engine.hooked import HookedEngine
from amg_plugin.evaluation.protocol import Embedded, distances, embed, score

#: Which network embeds queries and gallery.
QUERY, GALLERY, ASYMMETRIC = "query", "gallery", "asymmetric"


@dataclass(frozen=True)
class Protocol:
    """How features are compared, as in torchreid's ``test``.

    Attributes:
        metric: ``"euclidean"`` or ``"cosine"``.
        normalize: L2-normalise features first.
        ranks: CMC ranks to report.
        rerank: k-reciprocal re-ranking.
        use_metric_cuhk03: CUHK03's metric.
    """

    metric: str
    normalize: bool
    ranks: Sequence[int]
    rerank: bool = False
    use_metric_cuhk03: bool = False

    @classmethod
    def from_config(cls, cfg: CfgNode) -> Protocol:
        """Read the nodes ``test`` and ``cuhk03``."""
        test = cfg.test
        ranks = tuple(test.ranks)
        return cls(test.dist_metric, test.normalize_feature, ranks, test.rerank, cfg.cuhk03.use_metric_cuhk03)

    def compare(self, query: Embedded, gallery: Embedded) -> dict[str, Any]:
        """Scores of one target: ``{"mAP", "rank1", "cmc"}``."""
        matrix = distances(query, gallery, self.metric, self.normalize, self.rerank)
        return score(matrix, query, gallery, list(self.ranks), self.use_metric_cuhk03)


def compare_spaces(
    query_engine: HookedEngine, gallery_engine: HookedEngine, protocol: Protocol
) -> dict[str, dict[str, dict[str, Any]]]:
    """Evaluate both networks alone and together on every target of the query's engine.

    Each engine brings its own network, image size and preparation of images.

    Args:
        query_engine: Engine of the network that embeds queries.
        gallery_engine: Engine of the network that embeds the gallery, with the same targets.
        protocol: How features are compared.

    Returns:
        Scores per target for ``query`` (the query network embeds both), ``gallery`` (the gallery network does) and
        ``asymmetric``.
    """
    found: dict[str, dict[str, dict[str, Any]]] = {ASYMMETRIC: {}, QUERY: {}, GALLERY: {}}
    for target in query_engine.datamanager.test_loader:
        by_query = embed_both(query_engine, target, "query model")
        by_gallery = embed_both(gallery_engine, target, "gallery model")
        found[ASYMMETRIC][target] = protocol.compare(by_query[0], by_gallery[1])
        found[QUERY][target] = protocol.compare(*by_query)
        found[GALLERY][target] = protocol.compare(*by_gallery)
    return found


def embed_both(engine: HookedEngine, target: str, label: str) -> tuple[Embedded, Embedded]:
    """Features of query and gallery of a target, by the engine's network."""
    engine.model.eval()
    extract = engine.extractor(target)
    loaders = engine.datamanager.test_loader[target]
    query, gallery = (
        embed(loaders[part], engine.parse_data_for_eval, extract, f"{target} {part}, {label}")
        for part in ("query", "gallery")
    )
    return query, gallery
