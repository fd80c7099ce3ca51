"""Asymmetric retrieval: queries by one network, the gallery by another."""

from __future__ import annotations

from amg_plugin.evaluation.evaluator import Evaluator
from amg_plugin.evaluation.protocol import Scores

#: Which network embeds queries and gallery.
QUERY, GALLERY, ASYMMETRIC = "query", "gallery", "asymmetric"


def compare_spaces(by_query: Evaluator, by_gallery: Evaluator) -> dict[str, dict[str, Scores]]:
    """Evaluate two networks alone and together on every target, by the protocol of the first.

    Args:
        by_query: Has the network that embeds queries, with its own image size and preparation of images.
        by_gallery: Has the network that embeds the gallery, for the same targets.

    Returns:
        Scores per target for ``query`` (the query network embeds both), ``gallery`` (the gallery network does) and
        ``asymmetric``.
    """
    found: dict[str, dict[str, Scores]] = {ASYMMETRIC: {}, QUERY: {}, GALLERY: {}}
    compare = by_query.protocol.compare
    for target in by_query.loaders:
        ours, theirs = by_query.embed(target, "query model"), by_gallery.embed(target, "gallery model")
        found[ASYMMETRIC][target] = compare(ours[0], theirs[1])
        found[QUERY][target] = compare(*ours)
        found[GALLERY][target] = compare(*theirs)
    return found
