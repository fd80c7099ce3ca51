"""Prunable counterparts of timm's ``Attention`` and ``Block``.

The classes add no parameter and no entry to the state dict: keys stay timm's. What is pruned is held in plain integers
(number of heads) and in integer index buffers (kept token positions), which belong to the
:class:`~amg_plugin.pruning.PruningPlan` and not to the weights. One thing is added: blocks that the plan names in its
``updates`` have a buffer of constants for the tokens that pass around them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from timm.layers import Attention, RmsNorm
from timm.models.vision_transformer import Block, LayerScale
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from amg_plugin.errors import ConfigError


class PrunableAttention(Attention):
    """timm's ``Attention`` whose keys and values may come from a fixed subset of the tokens.

    Made out of an existing module by :meth:`convert`, never constructed. Queries are taken from every token; where
    ``kept_tokens`` is set, keys and values are projected *after* the gather, so that the work saved is real
    (variant ``kv``; arXiv 2304.01452, section on token pruning). ``key_bias`` is added to the logits: the logarithm of
    how many patches each token stands for (variant ``merge``; arXiv 2210.09461, "proportional attention").
    """

    observer: Callable[[Tensor], None] | None  # receives the softmax attention [B, H, Q, K] of each forward pass
    kept_tokens: Tensor | None
    key_bias: Tensor | None  # [1, 1, 1, K]
    rope: Tensor | None  # rotary table, see amg_plugin.models.rotary

    @classmethod
    def convert(cls, module: nn.Module) -> PrunableAttention:
        """Turn ``module`` into a prunable one in place; its tensors are untouched."""
        if not isinstance(module, cls):
            module.__class__ = cls
            module.observer = None
            module.register_buffer("kept_tokens", None, persistent=False)
            module.register_buffer("key_bias", None, persistent=False)
            module.register_buffer("rope", None, persistent=False)
        return module

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Attend: tokens ``[B, N, D]`` in and out; masks as in timm.

        Raises:
            NotImplementedError: If a mask meets pruned tokens or an observer.
        """
        # timm's fused path always takes the default scale.
        plain_scale = self.scale == self.head_dim**-0.5
        pruned = self.kept_tokens is not None or self.key_bias is not None
        if not pruned and self.observer is None and plain_scale:
            return super().forward(x, attn_mask=attn_mask, is_causal=is_causal)
        if attn_mask is not None or is_causal:
            raise NotImplementedError(
                "attention masks are not supported together with pruned tokens, an observer or a scale of its own"
            )
        return self.attend(x, self.key_bias)[0]

    def attend(
        self, x: Tensor, bias: Tensor | None = None, with_map: bool = False
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Attend, and give away what reducers of tokens decide by.

        Args:
            x: Tokens ``[B, N, D]``.
            bias: What is added to the logits, ``[B, 1, 1, K]``.
            with_map: Also return the softmax attention, which fused attention does not have.

        Returns:
            Tokens ``[B, N, D]``, keys ``[B, H, K, d]``, attention ``[B, H, N, K]`` or None.
        """
        batch, length, _ = x.shape
        gate = self.gate(x).sigmoid() if self.gate is not None else None
        query, key, value = self._project(x)
        query, key = self._rotated(self.q_norm(query), self.k_norm(key))
        bias = None if bias is None else bias.to(query.dtype)
        attention = None
        if self.fused_attn and self.observer is None and not with_map:
            dropout = self.attn_drop.p if self.training else 0.0
            mask = None if bias is None else bias.expand(-1, -1, length, -1)
            out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout, scale=self.scale)
        else:
            logits = (query * self.scale) @ key.transpose(-2, -1)
            attention = (logits if bias is None else logits + bias).softmax(dim=-1)
            if self.observer is not None:
                self.observer(attention)
            out = self.attn_drop(attention) @ value
        out = self.norm(out.transpose(1, 2).reshape(batch, length, self.attn_dim))
        if gate is not None:
            out = out * gate
        return self.proj_drop(self.proj(out)), key, attention

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries ``[B, H, Q, d]``, keys and values ``[B, H, K, d]``."""
        batch, length, _ = x.shape
        heads, width = (self.num_heads, self.head_dim), self.attn_dim
        if self.kept_tokens is None:
            qkv = self._all_projected(x).reshape(batch, length, 3, *heads).permute(2, 0, 3, 1, 4)
            return qkv[0], qkv[1], qkv[2]
        weight, bias = self.packed()
        query = F.linear(x, weight[:width], None if bias is None else bias[:width])
        context = x.index_select(1, self.kept_tokens)
        key_value = F.linear(context, weight[width:], None if bias is None else bias[width:])
        query = query.reshape(batch, length, *heads).transpose(1, 2)
        key_value = key_value.reshape(batch, -1, 2, *heads).permute(2, 0, 3, 1, 4)
        return query, key_value[0], key_value[1]

    def _all_projected(self, x: Tensor) -> Tensor:
        return self.qkv(x)

    def packed(self) -> tuple[Tensor, Tensor | None]:
        """Weight ``[3 H d, D]`` and bias ``[3 H d]`` of queries, keys and values, in this order."""
        return self.qkv.weight, self.qkv.bias

    def _rotated(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys with what depends on the positions of their tokens."""
        return query, key


def _index(positions: list[int], like: Tensor) -> Tensor:
    return torch.tensor(positions, dtype=torch.int64, device=like.device)


class TokenMeans(nn.Module):
    """Turns a sequence into one of constant means of its tokens (variant ``merge``).

    Gathers and weighted sums only: they export everywhere, scatters do not.

    Args:
        members: Per token to make, the places of those that it is the mean of, each with its weight.
        like: Gives device and precision.
    """

    def __init__(self, members: Sequence[Sequence[tuple[int, float]]], like: Tensor) -> None:
        super().__init__()
        alone = [number for number, group in enumerate(members) if len(group) == 1]
        means = [number for number, group in enumerate(members) if len(group) > 1]
        longest = max(map(len, members))
        padded = [[*members[n], *[(members[n][0][0], 0.0)] * (longest - len(members[n]))] for n in means]
        made = {number: place for place, number in enumerate([*alone, *means])}

        tensors = {
            "alone": _index([members[number][0][0] for number in alone], like),
            "joined": _index([place for row in padded for place, _ in row], like) if means else None,
            "order": _index([made[number] for number in range(len(members))], like) if means else None,
            "weights": like.new_tensor([[[weight] for _, weight in row] for row in padded]) if means else None,
        }
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """The means ``[B, M, D]`` of tokens ``[B, N, D]``."""
        alone = x.index_select(1, self.alone)
        if self.joined is None:
            return alone
        joined = x.index_select(1, self.joined).unflatten(1, self.weights.shape[:2])
        means = (joined * self.weights.to(x.dtype)).sum(2)
        return torch.cat((alone, means), dim=1).index_select(1, self.order)


class PrunableBlock(Block):
    """timm's ``Block`` that may work on fewer tokens than it gets.

    In variant ``block`` a token that is not kept is carried around the block: no query, key, value or MLP is computed
    for it. It stays as it is, or gets the constant that ``token_update`` ``[carried, D]`` has for its position.

    In variant ``merge`` tokens are merged for good in front of the first norm (``merge``); behind the last block that
    works on merged tokens every position gets back the token that stands for it (``restore``).
    """

    kept_tokens: Tensor | None
    carried_tokens: Tensor | None
    restore_order: Tensor | None
    merge: TokenMeans | None
    restore: TokenMeans | None
    token_update: Tensor | None
    #: Whether training keeps only what goes into the block, and computes the rest again for the gradients.
    checkpointed = False

    @classmethod
    def convert(cls, module: Block) -> PrunableBlock:
        """Turn ``module`` and its attention into prunable ones in place."""
        if not isinstance(module, cls):
            module.__class__ = cls
            module.merge = module.restore = None
            for name in ("kept_tokens", "carried_tokens", "restore_order"):
                module.register_buffer(name, None, persistent=False)
            module.register_buffer("token_update", None)
        PrunableAttention.convert(module.attn)
        return module

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Run the block on the kept or merged tokens of ``x`` ``[B, N, D]``, put back in place where they have to be.

        Raises:
            NotImplementedError: If a mask meets pruned tokens.
            ValueError: If the sequence has another length than the one that was pruned.
        """
        return self.with_little_memory(self._forward, x, attn_mask, is_causal)

    def with_little_memory(self, compute: Callable[..., Any], *inputs: Any) -> Any:
        """``compute(*inputs)``, in training by activation checkpointing if the block is :attr:`checkpointed`.

        A block that something listens to is computed once: an observer or a hook would be told everything twice.
        """
        if not (self.checkpointed and self.training and torch.is_grad_enabled()) or self._is_watched():
            return compute(*inputs)
        return checkpoint(compute, *inputs, use_reentrant=False)

    def _is_watched(self) -> bool:
        parts = (module for module in self.modules() if module is not self)
        return self.attn.observer is not None or any(part._forward_hooks or part._forward_pre_hooks for part in parts)

    def _forward(self, x: Tensor, attn_mask: Tensor | None, is_causal: bool) -> Tensor:
        if self.kept_tokens is None:
            x = x if self.merge is None else self.merge(x)
            x = self._work(x, attn_mask, is_causal)
            return x if self.restore is None else self.restore(x)
        if attn_mask is not None or is_causal:
            raise NotImplementedError("attention masks are not supported together with pruned tokens")
        if x.shape[1] != len(self.restore_order):
            raise ValueError(f"the block was pruned for {len(self.restore_order)} tokens, but got {x.shape[1]}")
        kept = self._work(x.index_select(1, self.kept_tokens))
        carried = x.index_select(1, self.carried_tokens)
        if self.token_update is not None:
            carried = carried + self.token_update
        # Gathers only: they export everywhere, scatters do not.
        return torch.cat((kept, carried), dim=1).index_select(1, self.restore_order)

    def _work(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """What the dense block does."""
        return super().forward(x, attn_mask=attn_mask, is_causal=is_causal)

    def layer_scale(self, branch: int) -> Tensor | None:
        """Factors ``[D]`` of what branch 1 (attention) or 2 (MLP) gives; None if there are none."""
        scale = getattr(self, f"ls{branch}")
        return scale.gamma if isinstance(scale, LayerScale) else None

    def keep_tokens(self, kept: list[int] | None, num_tokens: int, variant: str, updated: bool = False) -> None:
        """Set the tokens that take part, prefix tokens included, in variant ``"kv"`` or ``"block"``.

        ``kept`` are ascending positions below ``num_tokens``, the length of what the block receives; None means all.
        With ``updated`` the others get constants: those that they have already, or 0.
        """
        weight = self.attn.proj.weight
        index, before = (None if kept is None else _index(kept, weight)), self.carried_tokens
        self.attn.kept_tokens = index if variant == "kv" else None
        self.kept_tokens = self.carried_tokens = self.restore_order = None
        if index is None or variant != "block":
            return
        place = {position: number for number, position in enumerate(kept)}
        carried = [position for position in range(num_tokens) if position not in place]
        place |= {position: len(kept) + number for number, position in enumerate(carried)}
        self.kept_tokens, self.carried_tokens = index, _index(carried, weight)
        self.restore_order = _index([place[position] for position in range(num_tokens)], weight)
        if updated:
            constants = weight.new_zeros(len(carried), len(weight))
            if self.token_update is not None:
                constants[[carried.index(position) for position in before.tolist()]] = self.token_update
            self.token_update = constants

    def merge_tokens(
        self,
        sizes: Sequence[int],
        before: Sequence[Sequence[tuple[int, float]]] | None,
        after: Sequence[Sequence[tuple[int, float]]] | None,
    ) -> None:
        """Set which tokens are merged, in variant ``"merge"``.

        Args:
            sizes: How many positions each token of the block stands for, prefix tokens included.
            before: Per token of the block, what it is the mean of; None if nothing is merged in front of it.
            after: The same for what leaves the block; None if that is what the block works on.
        """
        like = self.attn.proj.weight.detach()
        self.merge = None if before is None else TokenMeans(before, like)
        self.restore = None if after is None else TokenMeans(after, like)
        logs = torch.tensor(sizes, dtype=torch.float64).log().to(like)
        self.attn.key_bias = logs[None, None, None] if max(sizes) > 1 else None


def checkpoint_activations(model: nn.Module) -> None:
    """Let the blocks of a network keep only their inputs in training (activation checkpointing, arXiv 1604.06174).

    Random numbers and results are the same; each block is computed twice.

    Raises:
        ConfigError: If the network has no block of the plugin's.
    """
    blocks = [module for module in model.modules() if isinstance(module, PrunableBlock)]
    if not blocks:
        raise ConfigError("amg.checkpoint_activations is True, but the network is not one of the plugin's ViTs.")
    for block in blocks:
        block.checkpointed = True


class SubsetNorm(nn.Module):
    """Norm over the outputs of all heads, or over all hidden units of an MLP, when some of them are gone.

    timm's ``scale_norm`` normalises over the whole width, by LayerNorm or RmsNorm. What is removed is zeros in that
    width, so that mean and variance are still taken over the original width. Weight and bias of the dense norm are
    sliced later.
    """

    def __init__(self, norm: nn.LayerNorm | RmsNorm) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, getattr(norm, "bias", None), norm.eps
        self.full_width, self.centred = norm.normalized_shape[0], isinstance(norm, nn.LayerNorm)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``[..., width left]`` with the statistics of the full width."""
        removed = 0.0  # what the zeros add to the sum of squares
        if self.centred:
            mean = x.sum(-1, keepdim=True) / self.full_width
            x, removed = x - mean, (self.full_width - x.shape[-1]) * mean.square()
        variance = (x.square().sum(-1, keepdim=True) + removed) / self.full_width
        x = x * torch.rsqrt(variance + self.eps)
        if self.weight is not None:
            x = x * self.weight
        return x if self.bias is None else x + self.bias
