"""What a token reducer is: the base class of the built-in ones and of those that users register."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor


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
