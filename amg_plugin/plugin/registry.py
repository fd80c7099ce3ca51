"""Names that the plugin adds to torchreid, and the engine registry that torchreid lacks.

timm is imported when a network is built, and not when the names are registered.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from amg_plugin import compat
from amg_plugin.errors import ConfigError, InputError
from amg_plugin.registries.registry import Registry, Row, refuse_taken

if TYPE_CHECKING:
    from torch import nn
    from yacs.config import CfgNode

    from amg_plugin.models.reid import ReIDModel

_lock = threading.RLock()


@dataclass(frozen=True)
class EngineRow(Row):
    """An engine; ``loss`` is the ``loss.name`` that it is for, empty for any."""

    loss: str = ""


#: Engines by name: torchreid's stock ones (``image_*``) and the plugin's (``amg_*``).
ENGINES = Registry("engine", EngineRow)
for _name, _where, _loss in (
    ("image_softmax", "torchreid:engine.ImageSoftmaxEngine", "softmax"),
    ("image_triplet", "torchreid:engine.ImageTripletEngine", "triplet"),
    ("amg_softmax", "amg_plugin.engine.hooked:AMGSoftmaxEngine", "softmax"),
    ("amg_triplet", "amg_plugin.engine.hooked:AMGTripletEngine", "triplet"),
):
    ENGINES.register(_name, _where, loss=_loss, needs=("torchreid",))


def vit_amg(num_classes: int, loss: str = "softmax", pretrained: bool = True, use_gpu: bool = True) -> ReIDModel:
    """ViT-B/16, or whatever ``amg.arch`` of the active node names.

    Args:
        num_classes: Number of training identities.
        loss: ``"softmax"`` or ``"triplet"``.
        pretrained: Start from timm's weights, unless ``amg.weights`` names a local file, which always counts.
        use_gpu: Part of torchreid's call; the model is built on the CPU and moved by the caller.

    Raises:
        InputError: If the configuration is impossible or there are no such weights.
    """
    return _build("vit_amg", num_classes, loss, pretrained)


def vit_amg_small(num_classes: int, loss: str = "softmax", pretrained: bool = True, use_gpu: bool = True) -> ReIDModel:
    """ViT-S/16; arguments as :func:`vit_amg`."""
    return _build("vit_amg_small", num_classes, loss, pretrained)


def vit_amg_tiny(num_classes: int, loss: str = "softmax", pretrained: bool = True, use_gpu: bool = True) -> ReIDModel:
    """ViT-Ti/16; arguments as :func:`vit_amg`."""
    return _build("vit_amg_tiny", num_classes, loss, pretrained)


def _build(name: str, num_classes: int, loss: str, pretrained: bool) -> ReIDModel:
    from amg_plugin.checkpoint import build_start
    from amg_plugin.config.active import active_amg_config
    from amg_plugin.models.solve import fit_reducer
    from amg_plugin.models.spec import ARCHITECTURES, spec_from_config
    from amg_plugin.utils.preprocessing import Preprocessing

    amg = active_amg_config()
    spec = spec_from_config(amg, num_classes=num_classes, loss=loss, default_arch=ARCHITECTURES[name])
    model = build_start(fit_reducer(spec, amg), pretrained, amg.weights, amg.weights_grid)
    model.preprocessing = Preprocessing.of_torchreid(spec.image_size)
    return model


#: Models by the name that ``model.name`` takes.
MODELS: dict[str, Callable[..., ReIDModel]] = {
    "vit_amg": vit_amg,
    "vit_amg_small": vit_amg_small,
    "vit_amg_tiny": vit_amg_tiny,
}


def register(*datasets: str) -> None:
    """Give torchreid the plugin's models and data sets; calling it again changes nothing.

    Nothing is downloaded, built or drawn. All names are checked before the first one is entered, so a refusal
    leaves torchreid as it was.

    Args:
        *datasets: Names of the forms folder:NAME and csv:NAME to enter as well, for a data manager of torchreid's.

    Raises:
        MissingDependencyError: torchreid or a package that it needs is missing.
        InputError: A name is already taken by someone else.
    """
    models = compat.model_factory()
    from amg_plugin.data.checks.folders import known_datasets

    with _lock:
        refuse_taken("model", models, MODELS)
        known_datasets(*datasets)
        models.update(MODELS)


def build_engine(
    cfg: CfgNode, datamanager: Any, model: nn.Module, optimizer: Any, scheduler: Any, **kwargs: Any
) -> Any:
    """Build the engine that ``cfg`` asks for.

    The name is ``cfg.amg.engine``, or ``amg_<cfg.loss.name>`` where that is empty. Of the options in ``cfg``
    an engine gets those that its constructor takes: ``scheduler``, ``use_gpu``, ``label_smooth``, for triplet
    also ``margin``, ``weight_t`` and ``weight_x``, and ``cfg`` itself for the plugin's own engines.

    Args:
        cfg: Configuration as made by ``amg_plugin.get_default_config``.
        datamanager: torchreid's image data manager or the plugin's.
        model: The model to train, built for the same loss.
        optimizer: Its optimiser.
        scheduler: Its learning-rate scheduler; torchreid cannot save without one.
        **kwargs: Handed to the constructor as they are; they win over ``cfg``.

    Raises:
        ConfigError: There is no engine of that name, or it does not fit ``cfg.loss.name``.
        InputError: ``cfg.data.type`` is ``video``, or ``scheduler`` is ``None``.
        MissingDependencyError: torchreid is missing.
    """
    if cfg.data.type != "image":
        raise InputError(
            f"data.type is '{cfg.data.type}', and video engines are out of scope of amg_plugin: use 'image'"
        )
    name = cfg.amg.engine or f"amg_{cfg.loss.name}"
    engine_class = ENGINES.load(name)
    fitting = ENGINES.row(name).loss or cfg.loss.name
    if cfg.loss.name != fitting:
        raise ConfigError(
            f"amg.engine '{name}' needs loss.name '{fitting}', but loss.name is '{cfg.loss.name}': "
            "change one of them, or leave amg.engine empty"
        )
    if scheduler is None:
        raise InputError("scheduler is None, but torchreid's engines save its state: build one, e.g. 'single_step'")
    options = {
        "scheduler": scheduler,
        "use_gpu": cfg.use_gpu,
        "label_smooth": cfg.loss.softmax.label_smooth,
        "margin": cfg.loss.triplet.margin,
        "weight_t": cfg.loss.triplet.weight_t,
        "weight_x": cfg.loss.triplet.weight_x,
        "cfg": cfg,
    }
    accepted = _constructor_parameters(engine_class)
    chosen = {key: value for key, value in options.items() if key in accepted}
    return engine_class(datamanager, model, optimizer, **{**chosen, **kwargs})


def _constructor_parameters(cls: type) -> set[str]:
    """Names that the constructor takes, followed through ``**kwargs`` to the base classes."""
    names: set[str] = set()
    for base in cls.__mro__:
        if "__init__" not in vars(base) or base is object:
            continue
        parameters = inspect.signature(vars(base)["__init__"]).parameters.values()
        names.update(p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY))
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return names
