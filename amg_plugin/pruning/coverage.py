"""How much attention falls on patches that something hides."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from amg_plugin.pruning.recorder import AttentionRecorder
from amg_plugin.pruning.surgery import current_plan


def attention_share(attention: Tensor, chosen: Tensor, prefix: int, class_token: bool = True) -> Tensor:
    """Share of the attention to patches that falls on chosen ones.

    The class token's row of each image's map, averaged over the heads, is restricted to the patch tokens among the keys
    and normalised to 1 there: what falls on prefix tokens does not count. Without a class token the mean over all
    queries takes its place.

    Args:
        attention: Softmax attention ``[B, H, Q, K]``; the first ``prefix`` keys, and queries, are prefix tokens.
        chosen: Which of the patch keys are meant, bool ``[B, K - prefix]``.
        prefix: Number of prefix tokens.
        class_token: Whether token 0 is a class token.

    Returns:
        ``[B]``, float64, from 0 to 1.
    """
    rows = attention[:, :, 0] if class_token else attention.mean(2)
    patches = rows.double().mean(1)[:, prefix:]
    return (patches * chosen).sum(1) / patches.sum(1)


class CoveredAttentionRecorder(AttentionRecorder):
    """Mean over images of :func:`attention_share` of the covered patches, per block.

    Set ``covered`` before each batch is run. Where tokens are pruned, only the kept keys of a block are looked at.

    Args:
        model: A plain ViT, or a network with one as ``backbone``.
        blocks: Numbers of the blocks to record; None means all.

    Attributes:
        covered: Which patches of the coming batch are covered, bool ``[B, N]`` over the patches of the dense model.
        images: Images recorded so far.
    """

    def __init__(self, model: nn.Module, blocks: Sequence[int] | None = None) -> None:
        super().__init__(model, blocks)
        tokens = current_plan(self.backbone).tokens
        self._kept = [torch.tensor(tokens[block]) for block in self.blocks]
        self._attention = [0.0] * len(self.blocks)
        self._keys = [0.0] * len(self.blocks)
        self.covered: Tensor | None = None
        self.images = 0

    def observe(self, place: int, attention: Tensor) -> None:
        """Add one batch.

        Raises:
            ValueError: If the map does not belong to ``covered``: another number of images, or of keys than the plan
                keeps (networks that choose their tokens image by image).
        """
        prefix, kept = self.backbone.num_prefix_tokens, self._kept[place]
        expected = (len(self.covered) if self.covered is not None else 0, prefix + len(kept))
        if (attention.shape[0], attention.shape[-1]) != expected:
            raise ValueError(
                f"attention of {attention.shape[0]} images over {attention.shape[-1]} keys, "
                f"but {expected[0]} images and {expected[1]} keys were expected"
            )
        covered = self.covered[:, kept].to(attention.device)
        share = attention_share(attention.detach(), covered, prefix, self.backbone.has_class_token)
        self._attention[place] += share.sum().item()
        self._keys[place] += covered.double().mean(1).sum().item()
        if place == 0:
            self.images += len(covered)

    def mean(self) -> list[dict[str, float]]:
        """Per recorded block ``attention``, the share on covered patches, and ``keys``, the covered share of the keys.

        Raises:
            RuntimeError: If nothing was recorded.
        """
        if not self.images:
            raise RuntimeError("no image was recorded")
        return [
            {"attention": attention / self.images, "keys": keys / self.images}
            for attention, keys in zip(self._attention, self._keys, strict=True)
        ]
