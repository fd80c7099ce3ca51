"""The `amg` node that torchreid's `build_model` cannot pass."""

import pytest

from amg_plugin.config import get_default_config
from amg_plugin.config.active import active_amg_config, set_active_amg_config, using_amg_config


@pytest.fixture
def node():
    node = get_default_config().amg.clone()
    node.arch = "vit_tiny_patch16_224"
    return node


@pytest.fixture(autouse=True)
def _defaults_afterwards():
    yield
    set_active_amg_config(None)


def test_the_defaults_are_in_force_until_a_node_is_set(node):
    assert active_amg_config() == get_default_config().amg
    set_active_amg_config(node)
    assert active_amg_config() == node
    set_active_amg_config(None)
    assert active_amg_config() == get_default_config().amg


def test_changing_a_node_given_or_received_does_not_change_the_one_in_force(node):
    set_active_amg_config(node)
    node.arch = "changed"
    received = active_amg_config()
    received.arch = "changed too"
    assert active_amg_config().arch == "vit_tiny_patch16_224"


def test_a_with_block_restores_the_previous_node_even_after_an_error(node):
    set_active_amg_config(node)
    with pytest.raises(RuntimeError), using_amg_config(get_default_config().amg):
        assert active_amg_config() == get_default_config().amg
        raise RuntimeError
    assert active_amg_config() == node
