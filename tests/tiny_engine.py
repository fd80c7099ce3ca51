import pytest
from tiny_run import tiny_config

from amg_plugin import compat
from amg_plugin.data.manager import build_datamanager
from amg_plugin.runs.setup import assemble, build_model


@pytest.fixture
def make_cfg(tiny_root, tmp_path):
    """Gives a tiny configuration; ``amg__final_epochs=2`` changes ``amg.final_epochs``."""

    def make(**changes):
        return tiny_config(tiny_root, tmp_path / "log", **changes)

    return make


@pytest.fixture
def make_engine(make_cfg):
    """Gives an engine with a fresh model, the same at each call; keywords change the configuration."""

    def make(hooks=(), epochs=1, model=None, **changes):
        cfg = make_cfg(**changes)
        compat.torchreid().utils.set_random_seed(1)
        datamanager = build_datamanager(cfg)
        if model is None:
            model = build_model(cfg, datamanager.num_train_pids)
        return assemble(cfg, datamanager, model, hooks, epochs)

    return make


@pytest.fixture
def run(tmp_path):
    """Runs an engine, evaluating at the end only unless told otherwise."""

    def run(engine, max_epoch, **arguments):
        engine.run(save_dir=str(tmp_path / "log"), max_epoch=max_epoch, print_freq=100, **arguments)
        return engine

    return run
