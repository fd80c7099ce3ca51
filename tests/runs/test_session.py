"""From a configuration to an engine: what a machine's GPUs forbid, and what checks leave as it was."""

import pytest
import torch
from tiny_run import tiny_config

from amg_plugin.errors import ConfigError
from amg_plugin.runs.setup import assemble, check_buildable


@pytest.fixture
def gpus(monkeypatch):
    """Pretends that so many GPUs are there."""

    def pretend(count):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    return pretend


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_on_several_gpus_is_refused_before_anything_moves_to_them(gpus, tmp_path, precision):
    gpus(2)
    cfg = tiny_config(tmp_path, tmp_path, use_gpu=True, amg__precision=precision)
    with pytest.raises(ConfigError, match=rf"amg\.precision {precision} works on one GPU.*CUDA_VISIBLE_DEVICES"):
        assemble(cfg, None, torch.nn.Linear(1, 1), [], 1)


def test_checking_the_network_leaves_the_random_numbers_of_the_run_alone(tmp_path):
    before = torch.get_rng_state()
    check_buildable(tiny_config(tmp_path, tmp_path, amg__drop_path=0.1))
    assert torch.equal(torch.get_rng_state(), before)
