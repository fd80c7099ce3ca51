"""Token reducers to compare AMG with: functions on tensors, and the base class of these and of a user's reducers.

Token merging (ToMe, arXiv 2210.09461) deals tokens alternately into two halves, as the authors' program deals them: the
class token is the first of the first half, and takes no part. Each token of the first half proposes the most similar
one of the second; the most similar pairs are merged into averages that are weighted by how many patches each token
stands for. Token dropping (EViT, arXiv 2202.07800) keeps what the class token attends to.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Matching:
    """Which tokens merge, per image; positions count all tokens, ``prefix`` leading ones take no part.

    Attributes:
        stay: Tokens of the first half that stay as they are, ``[B, first - merges]``, ascending.
        source: Tokens of the first half that are merged away, ``[B, merges]``.
        target: For each of them, the index within the second half that takes it in, ``[B, merges]``.
        second: Positions of the second half, ``[second]``.
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
    """Average matched tokens ``[B, N, D]``, weighted by their sizes ``[B, N]``.

    Returns:
        Tokens ``[B, N - merges, D]`` (prefix, what stays of the first half, second half) and their sizes.
    """
    weighted = torch.cat((tokens * sizes.unsqueeze(-1), sizes.unsqueeze(-1)), dim=-1)
    target = matching.target.unsqueeze(-1).expand(-1, -1, weighted.shape[-1])
    second = weighted.index_select(1, matching.second).scatter_add(1, target, _rows(weighted, matching.source))
    weighted = torch.cat((weighted[:, : matching.prefix], _rows(weighted, matching.stay), second), dim=1)
    sizes = weighted[..., -1]
    return weighted[..., :-1] / sizes.unsqueeze(-1), sizes


def _rows(tokens: Tensor, places: Tensor) -> Tensor:
    """The tokens ``[B, n, D]`` at places ``[B, n]`` of each image."""
    return tokens.gather(1, places.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def proportional_bias(sizes: Tensor) -> Tensor:
    """What is added to attention logits so that a token counts as often as it has patches, ``[B, 1, 1, N]``."""
    return sizes.log()[:, None, None]


def class_attention(attention: Tensor, prefix: int) -> Tensor:
    """Attention of the class token (query 0) to each token behind the prefix, mean over heads, ``[B, N - prefix]``."""
    return attention[:, :, 0, prefix:].mean(1)


def drop(tokens: Tensor, importance: Tensor, keep: int, prefix: int) -> Tensor:
    """Keep the most important tokens and fuse the others into one (section 3 of the paper).

    The fused token is the sum of the others, each times its importance.

    Args:
        tokens: ``[B, N, D]``.
        importance: ``[B, N - prefix]``.
        keep: Tokens behind the prefix that are kept.
        prefix: Leading tokens that are always kept.

    Returns:
        ``[B, prefix + keep + 1, D]``: prefix, kept tokens in their order, fused token.
    """
    order = importance.sort(dim=1, descending=True).indices  # ONNX has no stable sort
    kept, others = order[:, :keep].sort(dim=1).values, order[:, keep:]
    behind = tokens[:, prefix:]
    weights = importance.gather(1, others).unsqueeze(-1).to(tokens.dtype)
    fused = (_rows(behind, others) * weights).sum(1, keepdim=True)
    return torch.cat((tokens[:, :prefix], _rows(behind, kept), fused), dim=1)


class TokenReducer:
    """Takes tokens away, image by image, between the attention and the MLP of a block.

    Subclasses need :meth:`reduce` and have no parameters. Tokens are counted without the prefix tokens, which stay.

    Attributes:
        needs_attention: Whether :meth:`reduce` gets the attention maps, which fused attention does not have.
        evenly: Whether no block takes away more than one token beyond the common share, to meet a target.
    """

    needs_attention = False
    evenly = False

    def reduce(
        self, tokens: Tensor, sizes: Tensor | None, keys: Tensor, attention: Tensor | None, leaving: int, prefix: int
    ) -> tuple[Tensor, Tensor | None]:
        """Leave fewer tokens.

        Args:
            tokens: ``[B, N, D]``.
            sizes: Patches that each token stands for, ``[B, N]``; None for one each.
            keys: The attention's keys, averaged over heads, ``[B, N, d]``.
            attention: Softmax maps ``[B, H, N, N]``, or None.
            leaving: Tokens behind the prefix to leave.
            prefix: Leading tokens that stay.

        Returns:
            Tokens ``[B, prefix + leaving, D]`` and their sizes; None if every token still counts as one.
        """
        raise NotImplementedError

    def stages(self, depth: int) -> Sequence[int]:
        """Blocks that take tokens away, out of ``depth``; all of them here."""
        return range(depth)

    def fewest(self, tokens: int) -> int:
        """The fewest tokens that can leave a block which ``tokens`` enter."""
        return min(tokens, 1)

    def leaving(self, strength: float, tokens: int, patches: int) -> int:
        """Tokens that leave a stage.

        Args:
            strength: From 0 (all of them) to 1 (the fewest).
            tokens: Tokens that enter it.
            patches: Tokens that enter the first block.
        """
        return max(math.ceil((1 - strength) * tokens), self.fewest(tokens))

    def extra_macs(self, before: int, after: int, head_dim: int) -> int:
        """MACs that choosing tokens costs in a block, beyond the network's own."""
        return 0


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


class TokenDropping(TokenReducer):
    """Token dropping (EViT): the same share stays at every stage; the others are fused into one token."""

    needs_attention = True

    def reduce(
        self, tokens: Tensor, sizes: Tensor | None, keys: Tensor, attention: Tensor | None, leaving: int, prefix: int
    ) -> tuple[Tensor, Tensor | None]:
        """Keep what the class token attends to; arguments as :meth:`TokenReducer.reduce`."""
        return drop(tokens, class_attention(attention, prefix), leaving - 1, prefix), sizes

    def stages(self, depth: int) -> tuple[int, ...]:
        """After a quarter, a half and three quarters of the blocks, as the paper (4th, 7th, 10th of 12)."""
        return tuple(sorted({depth * quarter // 4 for quarter in (1, 2, 3)}))

    def fewest(self, tokens: int) -> int:
        """One token and the fused one."""
        return min(tokens, 2)

    def leaving(self, strength: float, tokens: int, patches: int) -> int:
        """The share that stays, rounded up, and the fused token."""
        return min(tokens, max(math.ceil((1 - strength) * tokens), 1) + 1)
