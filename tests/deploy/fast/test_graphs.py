"""A network in CUDA graphs: what is recorded and when, tried on the CPU with a recorder that only notes."""

import pytest
import torch
from small_models import ALL

import amg_plugin
from amg_plugin.deploy.fast import fast
from amg_plugin.deploy.fast.graphs import MOST_SHAPES, GraphedNetwork
from amg_plugin.errors import InputError


@pytest.fixture
def recorded():
    """Shapes in the order in which they were recorded."""
    return []


@pytest.fixture
def graphed(recorded):
    def record(network, inputs):
        recorded.append(len(inputs[0]))
        return lambda given: network(*given)

    return GraphedNetwork(fast(ALL["transreid"]()), record).eval()


def images(count):
    return torch.randn(count, 3, 64, 40, generator=torch.Generator().manual_seed(count))


def test_each_shape_is_recorded_once_and_gives_the_networks_features(graphed, recorded):
    reference = ALL["transreid"]()
    for count in (1, 2, 1, 2):
        cameras = torch.arange(count) % 3
        with torch.no_grad():
            expected = reference(images(count), cameras)
        found = graphed(images(count), cameras)
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    graphed(images(1))  # without cameras
    assert recorded == [1, 2, 1]


def test_features_have_no_gradients(graphed):
    assert not graphed(images(1).requires_grad_()).requires_grad
    with pytest.raises(RuntimeError, match="only evaluates"):
        graphed.train()


def test_few_shapes_are_kept_and_none_where_the_weights_moved(graphed, recorded):
    counts = list(range(1, MOST_SHAPES + 2))
    for count in counts:
        graphed(images(count))
    graphed(images(2))
    assert recorded == counts
    graphed(images(1))
    assert recorded == [*counts, 1]
    GraphedNetwork(fast(ALL["block"](), pack=False), lambda *given: None).float()


def test_on_the_cpu_they_are_refused():
    with pytest.raises(InputError, match="CUDA graphs are for networks on a GPU, and this one is on 'cpu'"):
        amg_plugin.fast(ALL["block"](), cuda_graph=True)
