"""The fast form on a GPU with one launch per call: kernels recorded in CUDA graphs, one for each shape of inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from amg_plugin.errors import InputError

#: Most shapes that are recorded at a time, each with memory of its own; the oldest goes first.
MOST_SHAPES = 8
#: Calls before recording, in which libraries choose their kernels.
_WARM_UP = 3

Inputs = list[Tensor | None]


class GraphedNetwork(nn.Module):
    """A network on a GPU that replays what it recorded at the first call with inputs of a shape; evaluation only.

    The first call with a new shape takes longer. Calls run one after another: inputs and features have fixed places in
    memory, and what is returned is a copy.

    Args:
        network: A network in eval mode that does the same kernels for all inputs of a shape.
        record: ``record(network, inputs)`` gives a function that fills in further inputs and returns features;
            None for CUDA graphs.

    Raises:
        InputError: If the network is not on a GPU.
    """

    def __init__(self, network: nn.Module, record: Callable[[nn.Module, Inputs], Any] | None = None) -> None:
        super().__init__()
        device = next(network.parameters()).device
        if record is None and device.type != "cuda":
            raise InputError(f"CUDA graphs are for networks on a GPU, and this one is on '{device}': move it first.")
        self.network, self._record = network, record or record_graph
        self._recorded: dict[tuple, Any] = {}

    def train(self, mode: bool = True) -> GraphedNetwork:
        """Eval mode only; raises RuntimeError if ``mode`` is True."""
        if mode:
            raise RuntimeError("a network in CUDA graphs only evaluates; train the network that it was made from")
        return super().train(False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> GraphedNetwork:
        self._recorded.clear()  # what is recorded reads the weights where they were
        return super()._apply(fn, recurse)

    @torch.no_grad()
    def forward(self, images: Tensor, camids: Tensor | None = None, viewids: Tensor | None = None) -> Tensor:
        """Features of images ``[B, 3, height, width]``, as of the network, without gradients.

        Raises:
            InputError: If an input is on another device than the network.
        """
        inputs: Inputs = [images, camids, viewids]
        device = next(self.network.parameters()).device
        if elsewhere := [one.device for one in inputs if one is not None and one.device != device]:
            raise InputError(f"An input is on '{elsewhere[0]}', but the network in CUDA graphs on '{device}'.")
        key = tuple(None if one is None else (one.shape, one.dtype) for one in inputs)
        if key not in self._recorded:
            while len(self._recorded) >= MOST_SHAPES:
                self._recorded.pop(next(iter(self._recorded)))
            self._recorded[key] = self._record(self.network, inputs)
        return self._recorded[key](inputs)


def record_graph(network: nn.Module, inputs: Inputs) -> Callable[[Inputs], Tensor]:
    """Record the kernels of a network for inputs of these shapes; gives what replays them for others."""
    places = [None if one is None else one.clone() for one in inputs]
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(_WARM_UP):
            network(*places)
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        features = network(*places)

    def replay(given: Inputs) -> Tensor:
        for place, one in zip(places, given, strict=True):
            if place is not None:
                place.copy_(one)
        graph.replay()
        return features.clone()

    return replay
