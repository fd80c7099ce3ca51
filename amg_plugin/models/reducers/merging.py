"""Token merging, from "Token Merging: Your ViT But Faster" (arXiv 2210.09461): functions on tensors.

Tokens are dealt alternately into two halves, as the authors' program deals them: the class token is the first of the
first half, and takes no part. Each token of the first half proposes the most similar one of the second; the most
similar pairs are merged into averages that are weighted by how many patches each token stands for.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from amg_plugin.models.reducers.method import TokenReducer


@dataclass(frozen=True)
class Matching:
    """Which tokens merge, per image; positions count all tokens.

    Attributes:
        stay: Tokens of the first half that stay as they are, ``[B, first - merges]``, ascending.
        source: Tokens of the first half that are merged away, ``[B, merges]``.
        target: For each of them, the index within the second half that takes it in, ``[B, merges]``.
        second: Positions of the second half, ``[second]``.
        prefix: Leading tokens that take no part.
    """

    stay: Tensor
    source: Tensor
    target: Tensor
    second: Tensor
    prefix: int


def match(keys: Tensor, merges: int, prefix: int) -> Matching:
    """Bipartite soft matching by cosine similarity (section 3 of the paper).

    Args:
        keys: What tokens are compared by, ``[B, N, C]``; the paper takes the attention's keys, averaged over heads.
        merges: Pairs to merge, at most half of the tokens behind the prefix.
        prefix: Leading tokens that are protected, as the class token.
    """
    odd = prefix % 2  # dealing starts at token 0, protected ones included
    first = torch.arange(prefix + odd, keys.shape[1], 2, device=keys.device)
    second = torch.arange(prefix + 1 - odd, keys.shape[1], 2, device=keys.device)
    unit = F.normalize(keys.detach(), dim=-1)
    similarity = unit[:, first] @ unit[:, second].transpose(1, 2)
    best, partner = similarity.max(dim=2)
    order = best.sort(dim=1, descending=True).indices  # ONNX has no stable sort
    merged, stay = order[:, :merges], order[:, merges:].sort(dim=1).values
    return Matching(first[stay], first[merged], partner.gather(1, merged), second, prefix)


def merge(tokens: Tensor, sizes: Tensor, matching: Matching) -> tuple[Tensor, Tensor]:
    """Average matched tokens, weighted by their sizes.

    Args:
        tokens: ``[B, N, D]``.
        sizes: Patches that each token stands for, ``[B, N]``.
        matching: Which tokens merge.

    Returns:
        Tokens ``[B, N - merges, D]`` (prefix, what stays of the first half, second half) and their sizes.
    """
    weighted = torch.cat((tokens * sizes.unsqueeze(-1), sizes.unsqueeze(-1)), dim=-1)
    width = weighted.shape[-1]
    source = weighted.gather(1, matching.source.unsqueeze(-1).expand(-1, -1, width))
    stay = weighted.gather(1, matching.stay.unsqueeze(-1).expand(-1, -1, width))
    second = weighted.index_select(1, matching.second)
    second = second.scatter_add(1, matching.target.unsqueeze(-1).expand(-1, -1, width), source)
    weighted = torch.cat((weighted[:, : matching.prefix], stay, second), dim=1)
    sizes = weighted[..., -1]
    return weighted[..., :-1] / sizes.unsqueeze(-1), sizes


def proportional_bias(sizes: Tensor) -> Tensor:
    """What is added to attention logits so that a token counts as often as it has patches, ``[B, 1, 1, N]``."""
    return sizes.log()[:, None, None]


class TokenMerging(TokenReducer):
    """Token merging (ToMe): the same number of pairs in every block; at most one half of the tokens goes."""

    evenly = True

    def reduce(
        self, tokens: Tensor, sizes: Tensor | None, keys: Tensor, attention: Tensor | None, leaving: int, prefix: int
    ) -> tuple[Tensor, Tensor]:
        """Merge the most similar pairs; arguments as :meth:`TokenReducer.reduce`."""
        sizes = tokens.new_ones(tokens.shape[:2]) if sizes is None else sizes
        return merge(tokens, sizes, match(keys, tokens.shape[1] - prefix - leaving, prefix))

    def fewest(self, tokens: int) -> int:
        """One half stays."""
        return tokens - tokens // 2

    def leaving(self, strength: float, tokens: int, patches: int) -> int:
        """The same number of merges in every block, as long as there are pairs."""
        return tokens - min(int(strength * (patches // 2)), tokens // 2)

    def extra_macs(self, before: int, after: int, head_dim: int) -> int:
        """Similarities of the two halves."""
        return (before - before // 2) * (before // 2) * head_dim if after < before else 0
