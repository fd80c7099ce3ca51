"""Streaming records of a ViT's attention: attached for a calibration pass, ejected without trace."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from amg_plugin.models.vit import backbone_of, make_prunable
from amg_plugin.pruning.scores import (
    loss_changes,
    signed_token_sums,
    token_importance_from_sums,
    token_sums_per_image,
)
from amg_plugin.pruning.surgery import current_plan


class AttentionRecorder(AbstractContextManager):
    """Base of the recorders: puts an observer on chosen blocks and takes it off again.

    Nothing is stored over batches but the sums. Use as a context manager, or call :meth:`attach` and :meth:`eject`.

    Args:
        model: A plain ViT, or a network with one as ``backbone``. It is run outside DataParallel.
        blocks: Numbers of the blocks to record; None means all.
    """

    def __init__(self, model: nn.Module, blocks: Sequence[int] | None = None) -> None:
        self.backbone = make_prunable(backbone_of(model))
        self.blocks = list(range(len(self.backbone.blocks))) if blocks is None else list(blocks)

    def attach(self) -> None:
        """Start recording.

        Raises:
            RuntimeError: If another recorder is attached.
        """
        attentions = [self.backbone.blocks[block].attn for block in self.blocks]
        if any(attention.observer is not None for attention in attentions):
            raise RuntimeError("another recorder is attached to this model; eject it first")
        for place, attention in enumerate(attentions):
            attention.observer = lambda maps, place=place: self.observe(place, maps)

    def eject(self) -> None:
        """Stop recording; the model computes as before, fused attention included."""
        for block in self.blocks:
            self.backbone.blocks[block].attn.observer = None

    def observe(self, place: int, attention: Tensor) -> None:
        """Take in the attention ``[B, H, Q, K]`` of the recorded block number ``place``."""
        raise NotImplementedError

    def __enter__(self) -> AttentionRecorder:
        self.attach()
        return self

    def __exit__(self, *error: object) -> None:
        self.eject()


class AttentionMapRecorder(AttentionRecorder):
    """Sums of attention maps, for head entropies.

    Sums of several recorders (processes, shards) can be added up: add ``sums`` element by element and ``images``.

    Attributes:
        sums: Per recorded block, the sum over images ``[H, Q, K]``, float64; empty before the first batch.
        images: Number of images behind the sums.
    """

    def __init__(self, model: nn.Module, blocks: Sequence[int] | None = None) -> None:
        super().__init__(model, blocks)
        self.sums: list[Tensor] = []
        self.images = 0

    def observe(self, place: int, attention: Tensor) -> None:
        """Add one batch."""
        total = attention.detach().sum(0).double()
        if not self.sums:
            self.sums = [torch.zeros((), dtype=torch.float64, device=total.device)] * len(self.blocks)
        self.sums[place] = self.sums[place] + total
        if place == 0:
            self.images += attention.shape[0]

    def mean(self) -> list[Tensor]:
        """Mean attention per block, ``[H, Q, K]``.

        Raises:
            RuntimeError: If nothing was recorded.
        """
        if not self.images:
            raise RuntimeError("no image was recorded")
        return [total / self.images for total in self.sums]


class TokenGradientRecorder(AttentionRecorder):
    """Sums of attention times gradient, for the importance of key/value tokens.

    After each batch's backward pass call :meth:`end_batch`.

    Args:
        model: As for :class:`AttentionRecorder`.
        blocks: As there.
        per_image: Take the absolute value per image (beyond the paper) and not per batch.

    Attributes:
        importance: Per recorded block, the importance ``[N]`` summed over batches, float64.
        batches: Number of global batches behind it.
    """

    def __init__(self, model: nn.Module, blocks: Sequence[int] | None = None, *, per_image: bool = False) -> None:
        super().__init__(model, blocks)
        self._sums = token_sums_per_image if per_image else signed_token_sums
        self.importance: list[Tensor] = []
        self.batches = 0
        self._signed: list[Tensor | None] = [None] * len(self.blocks)
        self._counts = [0] * len(self.blocks)

    def observe(self, place: int, attention: Tensor) -> None:
        """Wait for the gradient of ``attention`` and take in its signed sums."""
        if not torch.is_grad_enabled():
            raise RuntimeError("token scores need gradients: run forward and backward passes outside no_grad")
        if not attention.requires_grad:
            # Nothing below this block asks for gradients (frozen weights): the graph starts at its attention.
            attention.requires_grad_()
        maps = attention.detach()

        def take(gradient: Tensor) -> None:
            sums = self._sums(maps, gradient).double()
            held = self._signed[place]
            self._signed[place] = sums if held is None else held + sums
            self._counts[place] += maps.shape[0] * maps.shape[1] * maps.shape[2]

        attention.register_hook(take)

    def end_batch(self, reduce: Callable[[Tensor], Tensor] | None = None) -> None:
        """Finish a global batch: absolute value of the signed sums, added to ``importance``.

        Args:
            reduce: Adds a tensor up over the processes that share the batch; None for a single process.

        Raises:
            RuntimeError: If no backward pass reached the recorded blocks.
        """
        prefix = self.backbone.num_prefix_tokens
        for place, (signed, count) in enumerate(zip(self._signed, self._counts, strict=True)):
            if signed is None:
                raise RuntimeError("no gradient reached the attention; call backward before end_batch")
            if reduce is not None:
                signed = reduce(signed)
                count = int(reduce(torch.tensor(count, device=signed.device)))
            values = token_importance_from_sums(signed, count, prefix)
            if place == len(self.importance):
                self.importance.append(values)
            else:
                self.importance[place] += values
        self._signed = [None] * len(self.blocks)
        self._counts = [0] * len(self.blocks)
        self.batches += 1


class InputRecorder(AbstractContextManager):
    """Base of the recorders that watch what layers get: attached and ejected as a context manager.

    Args:
        layers: The layers.
    """

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        self.layers = list(layers)
        self._sums: list[Tensor | None] = [None] * len(self.layers)
        self._handles: list[RemovableHandle] = []

    def observe(self, place: int, values: Tensor) -> None:
        """Take in the input of the layer number ``place``."""
        raise NotImplementedError

    def __enter__(self) -> InputRecorder:
        for place, layer in enumerate(self.layers):
            self._handles.append(layer.register_forward_pre_hook(partial(self._take, place)))
        return self

    def __exit__(self, *error: object) -> None:
        while self._handles:
            self._handles.pop().remove()

    def _take(self, place: int, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.observe(place, inputs[0])

    def _add(self, place: int, sums: Tensor) -> None:
        held = self._sums[place]
        self._sums[place] = sums if held is None else held + sums


class InputGradientRecorder(InputRecorder):
    """Sums over images of what the loss changes by, to first order, when parts of the inputs of layers go.

    A part is a number of neighbouring columns: a head in the input of ``proj``, a hidden unit in that of ``fc2``.
    Nothing is stored over batches but the sums. Each forward pass must be followed by its backward pass.

    Args:
        layers: The layers, whose inputs are ``[B, N, C]``.
        widths: Columns of a part, for each layer.
        removed: Per layer, input ``[B, N, C]`` -> what it loses when a part goes, same shape; None: all of that part.

    Attributes:
        changes: Per layer, the sums ``[C / width]``, float64; see :func:`amg_plugin.pruning.scores.loss_changes`.
    """

    def __init__(
        self,
        layers: Sequence[nn.Module],
        widths: Sequence[int],
        removed: Sequence[Callable[[Tensor], Tensor]] | None = None,
    ) -> None:
        super().__init__(layers)
        self.widths, self.removed = list(widths), removed

    @property
    def changes(self) -> list[Tensor]:
        """See above.

        Raises:
            RuntimeError: If no gradient reached a layer.
        """
        if any(total is None for total in self._sums):
            raise RuntimeError("no gradient reached the recorded layers; run forward and backward passes")
        return list(self._sums)

    def observe(self, place: int, values: Tensor) -> None:
        """Wait for the gradient of ``values``."""
        if not torch.is_grad_enabled():
            raise RuntimeError("gradient scores need gradients: run forward and backward passes outside no_grad")
        if not values.requires_grad:
            values.requires_grad_()  # nothing below asks for gradients (frozen weights): the graph starts here
        held = values.detach()

        def take(gradient: Tensor) -> None:
            removed = held if self.removed is None else self.removed[place](held)
            self._add(place, loss_changes(removed, gradient, self.widths[place]))

        values.register_hook(take)


class InputVarianceRecorder(InputRecorder):
    """Sums for the variances of the inputs ``[..., C]`` of layers, over images and tokens."""

    def observe(self, place: int, values: Tensor) -> None:
        """Add one batch."""
        values = values.detach().flatten(0, -2).double()
        ones = torch.ones_like(values[0])  # counts rows, so that one reduction over processes does for all
        self._add(place, torch.stack((values.sum(0), values.square().sum(0), ones * len(values))))

    def variances(self, reduce: Callable[[Tensor], Tensor] | None = None) -> list[Tensor]:
        """Variance of each column per layer, ``[C]``, float64; ``reduce`` adds a tensor up over processes.

        Raises:
            RuntimeError: If nothing was recorded.
        """
        found = []
        for sums in self._sums:
            if sums is None:
                raise RuntimeError("no image was recorded")
            total, squares, count = sums if reduce is None else reduce(sums)
            found.append((squares / count - (total / count).square()).clamp_min(0))
        return found


class InputCovarianceRecorder(AbstractContextManager):
    """Means and covariances of the inputs of layers, over all tokens or over those at the front.

    Args:
        layers: The layers, whose inputs are ``[B, N, C]``.
        tokens: For each layer, how many tokens at the front count; None: all.

    Attributes:
        sums: Per layer, the number of tokens and the sums of ``z`` and of ``z z^T``, ``[1]``, ``[C]``, ``[C, C]``,
            float64; empty before the first batch. Those of several processes can be added up.
    """

    def __init__(self, layers: Sequence[nn.Module], tokens: Sequence[int | None]) -> None:
        self.layers, self.tokens = list(layers), list(tokens)
        self.sums: list[list[Tensor]] = [[] for _ in self.layers]
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> InputCovarianceRecorder:
        for place, layer in enumerate(self.layers):
            self._handles.append(layer.register_forward_pre_hook(partial(self._observe, place)))
        return self

    def __exit__(self, *error: object) -> None:
        while self._handles:
            self._handles.pop().remove()

    def _observe(self, place: int, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        values = inputs[0].detach()[:, : self.tokens[place]].flatten(0, 1).double()
        sums = [values.new_tensor([len(values)]), values.sum(0), values.T @ values]
        held = self.sums[place]
        self.sums[place] = [one + other for one, other in zip(held, sums, strict=True)] if held else sums


def attention_share(attention: Tensor, chosen: Tensor, prefix: int, class_token: bool = True) -> Tensor:
    """Share of the attention to patches that falls on chosen ones.

    The class token's row of each image's map, averaged over the heads, is restricted to the patch tokens among the keys
    and normalised to 1 there: what falls on prefix tokens does not count. Without a class token the mean over all
    queries takes its place.

    Args:
        attention: Softmax attention ``[B, H, Q, K]``; the first ``prefix`` keys, and queries, are prefix tokens.
        chosen: Which of the patch keys are meant, or which part of each, ``[B, K - prefix]``.
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

    Set ``covered`` before each batch is run. Where tokens are pruned, only the kept keys of a block are looked at; one
    that stands for several patches is covered in part.

    Attributes:
        covered: Which patches of the coming batch are covered, bool ``[B, N]`` over the patches of the dense model.
        images: Images recorded so far.
    """

    def __init__(self, model: nn.Module, blocks: Sequence[int] | None = None) -> None:
        super().__init__(model, blocks)
        plan = current_plan(self.backbone)
        self._groups = [[list(group) for group in plan.groups_of(block)] for block in self.blocks]
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
        prefix, groups = self.backbone.num_prefix_tokens, self._groups[place]
        expected = (len(self.covered) if self.covered is not None else 0, prefix + len(groups))
        if (attention.shape[0], attention.shape[-1]) != expected:
            raise ValueError(
                f"attention of {attention.shape[0]} images over {attention.shape[-1]} keys, "
                f"but {expected[0]} images and {expected[1]} keys were expected"
            )
        patches = self.covered.double()
        covered = torch.stack([patches[:, group].mean(1) for group in groups], dim=1).to(attention.device)
        share = attention_share(attention.detach(), covered, prefix, self.backbone.has_class_token)
        self._attention[place] += share.sum().item()
        self._keys[place] += patches[:, [position for group in groups for position in group]].mean(1).sum().item()
        if place == 0:
            self.images += len(covered)

    def mean(self, reduce: Callable[[Tensor], Tensor] | None = None) -> list[dict[str, float]]:
        """Per recorded block ``attention``, the share on covered patches, and ``keys``, the covered share of the keys.

        ``reduce`` adds a tensor up over processes.

        Raises:
            RuntimeError: If nothing was recorded.
        """
        sums = [self._attention, self._keys, [float(self.images)] * len(self.blocks)]
        totals = torch.tensor(sums, dtype=torch.float64)
        attention, keys, images = (totals if reduce is None else reduce(totals)).tolist()
        if not all(images):
            raise RuntimeError("no image was recorded")
        rows = zip(attention, keys, images, strict=True)
        return [{"attention": share / count, "keys": covered / count} for share, covered, count in rows]
