"""The engine registry, and which engine `build_engine` makes from a configuration."""

import types

import pytest
from torch import nn

from amg_plugin.compat import torchreid
from amg_plugin.config import get_default_config
from amg_plugin.errors import ConfigError, InputError
from amg_plugin.plugin import registry
from amg_plugin.plugin.registry import EngineRow, build_engine
from amg_plugin.registries.registry import Registry


class _Softmax:
    def __init__(self, datamanager, model, optimizer, scheduler=None, use_gpu=True, label_smooth=True):
        self.got = {"scheduler": scheduler, "use_gpu": use_gpu, "label_smooth": label_smooth}


class _WithHooks:
    def __init__(self, *args, cfg, hooks=(), **kwargs):
        super().__init__(*args, **kwargs)
        self.got |= {"cfg": cfg, "hooks": hooks}


class _AMGSoftmax(_WithHooks, _Softmax):
    pass


class _Triplet:
    def __init__(self, datamanager, model, optimizer, margin, weight_t, weight_x, scheduler, use_gpu, label_smooth):
        self.got = {"margin": margin, "weight_t": weight_t, "weight_x": weight_x, "label_smooth": label_smooth}


@pytest.fixture
def cfg():
    cfg = get_default_config()
    cfg.defrost()
    cfg.loss.name = "softmax"
    return cfg


@pytest.fixture
def engines(monkeypatch):
    table = Registry("engine", EngineRow)
    table.register("amg_softmax", _AMGSoftmax, loss="softmax")
    table.register("image_softmax", _Softmax, loss="softmax")
    table.register("image_triplet", _Triplet, loss="triplet")
    monkeypatch.setattr(registry, "ENGINES", table)
    return table


def _build(cfg, scheduler="scheduler", **kwargs):
    return build_engine(cfg, "datamanager", "model", "optimizer", scheduler, **kwargs)


def test_the_engine_follows_the_loss_where_no_engine_is_named(engines, cfg):
    assert type(_build(cfg)) is _AMGSoftmax


def test_a_named_engine_wins(engines, cfg):
    cfg.amg.engine = "image_softmax"
    assert type(_build(cfg)) is _Softmax


def test_an_engine_gets_the_options_that_it_takes_also_through_its_bases(engines, cfg):
    cfg.loss.softmax.label_smooth = False
    cfg.use_gpu = False
    got = _build(cfg, hooks=["hook"]).got
    assert got == {
        "scheduler": "scheduler",
        "use_gpu": False,
        "label_smooth": False,
        "cfg": cfg,
        "hooks": ["hook"],
    }


def test_triplet_engines_get_margin_and_weights(engines, cfg):
    cfg.loss.name, cfg.amg.engine = "triplet", "image_triplet"
    cfg.loss.triplet.margin, cfg.loss.triplet.weight_t, cfg.loss.triplet.weight_x = 0.7, 0.5, 2.0
    got = _build(cfg).got
    assert (got["margin"], got["weight_t"], got["weight_x"]) == (0.7, 0.5, 2.0)


def test_keyword_arguments_win_over_the_configuration(engines, cfg):
    assert _build(cfg, label_smooth="mine").got["label_smooth"] == "mine"


def test_torchreids_own_engine_is_built_as_torchreids_script_would(cfg):
    cfg.loss.name, cfg.amg.engine, cfg.use_gpu = "triplet", "image_triplet", False
    cfg.loss.triplet.margin = 0.7
    datamanager = types.SimpleNamespace(num_train_pids=3, train_loader=[], test_loader={})
    engine = build_engine(cfg, datamanager, nn.Linear(2, 2), "optimizer", "scheduler")
    assert type(engine) is torchreid().engine.ImageTripletEngine
    assert engine.criterion_t.margin == 0.7
    assert engine.get_model_names() == ["model"]


@pytest.mark.parametrize("name", ["image_triplet", "amg_triplet"])
def test_an_engine_that_does_not_fit_the_loss_is_refused(engines, cfg, name):
    if name not in engines:
        engines.register(name, _Triplet, loss="triplet")
    cfg.amg.engine = name
    with pytest.raises(ConfigError, match=r"needs loss\.name 'triplet', but loss\.name is 'softmax'"):
        _build(cfg)


def test_an_unknown_engine_is_refused_with_the_names_that_exist(engines, cfg):
    cfg.amg.engine = "amg_sofmax"
    with pytest.raises(ConfigError, match="'amg_sofmax'; allowed are amg_softmax, image_softmax, image_triplet"):
        _build(cfg)


def test_video_is_out_of_scope(engines, cfg):
    cfg.data.type = "video"
    with pytest.raises(InputError, match="out of scope"):
        _build(cfg)


def test_a_missing_scheduler_is_refused_before_training_is_lost(engines, cfg):
    with pytest.raises(InputError, match="scheduler is None"):
        _build(cfg, scheduler=None)
