"""How heads, tokens and neurons are scored: AMG, rules beyond the paper, and simple ones to compare with.

A scorer is a callable ``score(model, calibration, blocks)``. It gives a tensor per entry of ``blocks``, on any device,
with a finite number for each head (or patch token, or neuron) that the block still has. Heads with large scores go
first, tokens and neurons with small ones. It may run the calibration batches, and leaves the model as it was. The
tables of :mod:`amg_plugin.registries` name the scorers and say which of them AMG's weights per block apply to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from amg_plugin.errors import RunError
from amg_plugin.models.vit import backbone_of, temporarily
from amg_plugin.pruning.recorder import (
    AttentionMapRecorder,
    InputCovarianceRecorder,
    InputGradientRecorder,
    InputVarianceRecorder,
    TokenGradientRecorder,
)
from amg_plugin.pruning.scores import entropy_against_gradient, head_entropy, what_repair_leaves
from amg_plugin.pruning.streams import tokens_read
from amg_plugin.pruning.surgery import current_plan

Batch = Any


@dataclass(frozen=True)
class Calibration:
    """What a scorer may run.

    Attributes:
        batches: Starts a fresh pass over the calibration batches.
        forward: Runs the model on a batch, without gradients.
        loss: Task loss of a batch, a scalar that depends on every recorded block; parameters are frozen meanwhile.
        reduce: Adds a tensor up over processes; None for one process.
        seed: Seed of the random scorers.
        normalize_entropy: Divide head entropies by log2 of the number of keys.
    """

    batches: Callable[[], Iterable[Batch]]
    forward: Callable[[Batch], object]
    loss: Callable[[Batch], Tensor]
    reduce: Callable[[Tensor], Tensor] | None = None
    seed: int = 0
    normalize_entropy: bool = False


def _mean_attention(model: nn.Module, calibration: Calibration, blocks: Sequence[int]) -> list[Tensor]:
    """Mean attention ``[H, Q, K]`` of each block in ``blocks`` over one calibration pass."""
    with AttentionMapRecorder(model, blocks) as recorder, torch.no_grad():
        for batch in calibration.batches():
            calibration.forward(batch)
    return _mean_maps(recorder, calibration)


def _mean_maps(recorder: AttentionMapRecorder, calibration: Calibration) -> list[Tensor]:
    if calibration.reduce is not None:
        recorder.images = int(calibration.reduce(torch.tensor(recorder.images)))
    recorder.sums = _over_processes(recorder.sums, calibration)
    return recorder.mean()


def _over_processes(sums: Sequence[Tensor], calibration: Calibration) -> list[Tensor]:
    return list(sums) if calibration.reduce is None else [calibration.reduce(total) for total in sums]


def _run_gradients(model: nn.Module, calibration: Calibration, end_batch: Callable[[], None] = lambda: None) -> None:
    """Forward and backward passes over the calibration batches, for the recorders that are attached."""
    with temporarily("requires_grad", False, model.parameters()):  # no score needs their gradients
        for batch in calibration.batches():
            calibration.loss(batch).backward()
            end_batch()


def _proj_inputs(model: nn.Module, blocks: Sequence[int]) -> InputGradientRecorder:
    """Watches what ``proj`` gets: the heads, behind the norm over all of them and the gate, where there are such."""
    attentions = [backbone_of(model).blocks[block].attn for block in blocks]
    return InputGradientRecorder([one.proj for one in attentions], [one.head_dim for one in attentions])


def entropy_of_heads(model: nn.Module, calibration: Calibration, blocks: Sequence[int]) -> list[Tensor]:
    """AMG: entropy of the mean attention map (arXiv 2304.01452)."""
    return [head_entropy(maps, calibration.normalize_entropy) for maps in _mean_attention(model, calibration, blocks)]


def magnitude_of_heads(model: nn.Module, calibration: Calibration, blocks: Sequence[int]) -> list[Tensor]:
    """Ablation: minus the L2 norm of the weights a head owns, relative to the mean of its block."""
    scores = []
    for block in blocks:
        attention = backbone_of(model).blocks[block].attn
        qkv = attention.packed()[0].detach().reshape(3, attention.num_heads, -1)
        proj = attention.proj.weight.detach().T.reshape(attention.num_heads, -1)
        norm = (qkv.square().sum((0, 2)) + proj.square().sum(1)).sqrt().double()
        scores.append(-norm / norm.mean())
    return scores


def taylor_of_heads(model: nn.Module, calibration: Calibration, blocks: Sequence[int]) -> list[Tensor]:
    """Beyond the paper: minus the first-order change of the loss (arXiv 1905.10650, 1906.10771)."""
    with _proj_inputs(model, blocks) as recorder:
        _run_gradients(model, calibration)
    return [-changes for changes in _over_processes(recorder.changes, calibration)]


def entropy_against_gradient_of_heads(
    model: nn.Module, calibration: Calibration, blocks: Sequence[int]
) -> list[Tensor]:
    """Beyond the paper: entropy weighed against the first-order change of the loss (after HIES, arXiv 2510.13832).

    Entropies are shares of their ceilings, so that blocks with different numbers of keys compare.
    """
    with AttentionMapRecorder(model, blocks) as maps, _proj_inputs(model, blocks) as recorder:
        _run_gradients(model, calibration)
    entropy = [head_entropy(mean, normalize=True) for mean in _mean_maps(maps, calibration)]
    return entropy_against_gradient(entropy, _over_processes(recorder.changes, calibration))


def reconstruction_of_heads(model: nn.Module, calibration: Calibration, blocks: Sequence[int]) -> list[Tensor]:
    """Beyond the paper: minus the first-order change of the loss by what least squares cannot make up for.

    Each head is taken by itself: the other heads of its block stay and stand in for it. One pass without gradients
    gives means and covariances, a second one the gradients.

    Raises:
        RunError: If statistics are not finite.
    """
    attentions = [backbone_of(model).blocks[block].attn for block in blocks]
    layers, widths = [one.proj for one in attentions], [one.head_dim for one in attentions]
    with InputCovarianceRecorder(layers, _front_tokens(model, blocks)) as recorder, torch.no_grad():
        for batch in calibration.batches():
            calibration.forward(batch)
    left = []
    for block, width, sums in zip(blocks, widths, recorder.sums, strict=True):
        count, total, products = _over_processes(sums, calibration)
        mean = total / count
        covariance = products / count - mean.outer(mean)
        if not torch.isfinite(covariance).all():
            raise RunError(f"The inputs of proj of block {block} are not finite; the calibration pass gave NaN.")
        left.append(partial(_times, mean=mean, matrix=what_repair_leaves(covariance, width)))
    with InputGradientRecorder(layers, widths, left) as gradients:
        _run_gradients(model, calibration)
    return [-changes for changes in _over_processes(gradients.changes, calibration)]


def _times(values: Tensor, mean: Tensor, matrix: Tensor) -> Tensor:
    return (values - mean.to(values.dtype)) @ matrix.to(values.dtype).T


def _front_tokens(model: nn.Module, blocks: Sequence[int]) -> list[int | None]:
    """How many tokens at the front of each block matter: in a last one of which only prefix tokens are read, those."""
    backbone, read = backbone_of(model), len(tokens_read(model))
    last = len(backbone.blocks) - 1
    return [read if block == last and read <= backbone.num_prefix_tokens else None for block in blocks]


def random_heads(model: nn.Module, calibration: Calibration, blocks: Sequence[int]) -> list[Tensor]:
    """Ablation: uniform random scores, fixed by the seed."""
    return _random(current_plan(model).heads_per_block, calibration.seed, blocks)


def importance_of_tokens(model: nn.Module, calibration: Calibration, blocks: Sequence[int]) -> list[Tensor]:
    """AMG: similarity times first-order gradient (arXiv 2304.01452)."""
    with TokenGradientRecorder(model, blocks) as recorder:
        _run_gradients(model, calibration, lambda: recorder.end_batch(calibration.reduce))
    return recorder.importance


def importance_per_image_of_tokens(model: nn.Module, calibration: Calibration, blocks: Sequence[int]) -> list[Tensor]:
    """Beyond the paper: AMG's product, its absolute value taken per image and not per batch."""
    with TokenGradientRecorder(model, blocks, per_image=True) as recorder:
        _run_gradients(model, calibration, lambda: recorder.end_batch(calibration.reduce))
    return recorder.importance


def class_attention_of_tokens(model: nn.Module, calibration: Calibration, blocks: Sequence[int]) -> list[Tensor]:
    """Ablation: mean attention that the class token pays (all queries where there is no class token)."""
    backbone = backbone_of(model)
    queries = slice(0, 1) if backbone.has_class_token else slice(None)
    maps = _mean_attention(model, calibration, blocks)
    return [values[:, queries, backbone.num_prefix_tokens :].mean((0, 1)) for values in maps]


def random_tokens(model: nn.Module, calibration: Calibration, blocks: Sequence[int]) -> list[Tensor]:
    """Ablation: uniform random scores, fixed by the seed."""
    return _random(current_plan(model).tokens_per_block, calibration.seed, blocks)


def taylor_of_neurons(model: nn.Module, calibration: Calibration, blocks: Sequence[int]) -> list[Tensor]:
    """Beyond the paper: first-order change of the loss, absolute value per image (arXiv 1906.10771)."""
    layers = [mlp.fc2 for mlp in _mlps(model, blocks)]
    with InputGradientRecorder(layers, [1] * len(layers)) as recorder:
        _run_gradients(model, calibration)
    return _over_processes(recorder.changes, calibration)


def variance_of_neurons(model: nn.Module, calibration: Calibration, blocks: Sequence[int]) -> list[Tensor]:
    """Beyond the paper: variance over images and tokens; a unit that never varies is a bias (arXiv 2507.12988)."""
    with InputVarianceRecorder([mlp.fc2 for mlp in _mlps(model, blocks)]) as recorder, torch.no_grad():
        for batch in calibration.batches():
            calibration.forward(batch)
    return recorder.variances(calibration.reduce)


def magnitude_of_neurons(model: nn.Module, calibration: Calibration, blocks: Sequence[int]) -> list[Tensor]:
    """Ablation: L2 norm of the weights that a unit owns, relative to the mean of its block."""
    scores = []
    for mlp in _mlps(model, blocks):
        hidden = mlp.fc2.in_features
        inward = [layer.weight for layer in mlp.children() if isinstance(layer, nn.Linear) and layer is not mlp.fc2]
        owned = [weight.detach().square() for weight in (mlp.fc2.weight.T, *inward)]
        norm = sum(squares.reshape(-1, hidden, squares.shape[1]).sum((0, 2)) for squares in owned).sqrt().double()
        scores.append(norm / norm.mean())
    return scores


def random_neurons(model: nn.Module, calibration: Calibration, blocks: Sequence[int]) -> list[Tensor]:
    """Ablation: uniform random scores, fixed by the seed."""
    return _random(current_plan(model).neurons_per_block, calibration.seed, blocks)


def _mlps(model: nn.Module, blocks: Sequence[int]) -> list[nn.Module]:
    return [backbone_of(model).blocks[block].mlp for block in blocks]


def _random(sizes: Sequence[int], seed: int, blocks: Sequence[int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(sizes[block], generator=generator, dtype=torch.float64) for block in blocks]
