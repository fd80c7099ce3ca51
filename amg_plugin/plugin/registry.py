"""Names that the plugin adds to torchreid, and the engine registry that torchreid lacks."""

import inspect
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from amg_plugin import compat
from amg_plugin.errors import ConfigError, InputError

if TYPE_CHECKING:
    from torch import nn
    from yacs.config import CfgNode

_lock = threading.RLock()


class Registry:
    """A table of names.

    Args:
        kind: What the entries are, for messages ("engine").
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, Any] = {}
        self._loaders: dict[str, Callable[[], Any]] = {}

    def register(self, name: str, obj: Any) -> None:
        """Add ``obj`` under ``name``; adding the same object (or its reloaded self) again changes nothing.

        Raises:
            InputError: ``name`` belongs to something else.
        """
        with _lock:
            if name in self._loaders or (name in self._entries and not _is_same(self._entries[name], obj)):
                raise InputError(f"The {self.kind} name '{name}' is already taken; choose another name")
            self._entries[name] = obj

    def register_lazy(self, name: str, loader: Callable[[], Any]) -> None:
        """Add an entry that is made by ``loader()`` when it is first asked for."""
        with _lock:
            if name in self:
                raise InputError(f"The {self.kind} name '{name}' is already taken; choose another name")
            self._loaders[name] = loader

    def get(self, name: str) -> Any:
        """Return the entry called ``name``.

        Raises:
            ConfigError: There is none; the message lists the names.
            MissingDependencyError: The entry needs a package that is missing.
        """
        loader = self._loaders.get(name)
        if loader is not None:
            entry = loader()  # outside the lock: it imports, and an importing thread may be waiting for us
            with _lock:
                self._entries.setdefault(name, entry)
                self._loaders.pop(name, None)
        if name not in self._entries:
            raise ConfigError(f"Unknown {self.kind} '{name}'; allowed are {', '.join(self.names())}")
        return self._entries[name]

    def names(self) -> list[str]:
        """Return the names in alphabetical order."""
        return sorted({*self._entries, *self._loaders})

    def __contains__(self, name: object) -> bool:
        return name in self._entries or name in self._loaders

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __len__(self) -> int:
        return len(self.names())


def _is_same(there: Any, obj: Any) -> bool:
    """Whether ``there`` is ``obj``, or what ``obj`` was before its module was reloaded."""
    if there is obj:
        return True
    mark = (getattr(obj, "__module__", None), getattr(obj, "__qualname__", None))
    return None not in mark and mark == (
        getattr(there, "__module__", None),
        getattr(there, "__qualname__", None),
    )


def _plugin_engine(class_name: str) -> Any:
    compat.torchreid()  # says what is missing before the engine module fails on it
    from amg_plugin import engine

    return getattr(engine, class_name)


#: Engines by name: torchreid's stock ones (``image_*``) and the plugin's (``amg_*``).
ENGINES = Registry("engine")
ENGINES.register_lazy("image_softmax", lambda: compat.torchreid().engine.ImageSoftmaxEngine)
ENGINES.register_lazy("image_triplet", lambda: compat.torchreid().engine.ImageTripletEngine)
ENGINES.register_lazy("amg_softmax", lambda: _plugin_engine("AMGSoftmaxEngine"))
ENGINES.register_lazy("amg_triplet", lambda: _plugin_engine("AMGTripletEngine"))

_LOSS_OF_ENGINE = {
    "image_softmax": "softmax",
    "amg_softmax": "softmax",
    "image_triplet": "triplet",
    "amg_triplet": "triplet",
}


# torchreid's table holds these thin functions, so that registering does not import timm.


def vit_amg(num_classes: int, loss: str = "softmax", pretrained: bool = True, use_gpu: bool = True) -> "nn.Module":
    """ViT-B/16, or what the active `amg` node names; arguments as torchreid's ``build_model`` passes them."""
    from amg_plugin.models import factory

    return factory.vit_amg(num_classes, loss=loss, pretrained=pretrained, use_gpu=use_gpu)


def vit_amg_small(
    num_classes: int, loss: str = "softmax", pretrained: bool = True, use_gpu: bool = True
) -> "nn.Module":
    """ViT-S/16; arguments as torchreid's ``build_model`` passes them."""
    from amg_plugin.models import factory

    return factory.vit_amg_small(num_classes, loss=loss, pretrained=pretrained, use_gpu=use_gpu)


def vit_amg_tiny(num_classes: int, loss: str = "softmax", pretrained: bool = True, use_gpu: bool = True) -> "nn.Module":
    """ViT-Ti/16; arguments as torchreid's ``build_model`` passes them."""
    from amg_plugin.models import factory

    return factory.vit_amg_tiny(num_classes, loss=loss, pretrained=pretrained, use_gpu=use_gpu)


#: Models by the name that ``model.name`` takes.
MODELS: dict[str, Callable[..., "nn.Module"]] = {
    "vit_amg": vit_amg,
    "vit_amg_small": vit_amg_small,
    "vit_amg_tiny": vit_amg_tiny,
}


def register() -> None:
    """Give torchreid the plugin's models and data sets; calling it again changes nothing.

    Nothing is downloaded, built or drawn. All names are checked before the first one is entered, so a refusal
    leaves torchreid as it was.

    Raises:
        MissingDependencyError: torchreid or a package that it needs is missing.
        InputError: A name is already taken by someone else.
    """
    models = compat.model_factory()
    datasets = compat.image_dataset_factory()
    from amg_plugin.data.datasets.names import DATASETS

    with _lock:
        _refuse_taken("model", models, MODELS)
        _refuse_taken("data set", datasets, DATASETS)
        models.update(MODELS)
        for name, cls in DATASETS.items():
            if name in datasets:
                datasets[name] = cls  # ours; torchreid's own function refuses every second call
            else:
                compat.register_image_dataset(name, cls)


def _refuse_taken(kind: str, table: dict[str, Any], ours: dict[str, Any]) -> None:
    for name, obj in ours.items():
        if name in table and not _is_same(table[name], obj):
            other = table[name]
            owner = f"{getattr(other, '__module__', '?')}.{getattr(other, '__qualname__', repr(other))}"
            raise InputError(
                f"The {kind} name '{name}' is already taken in torchreid by {owner}; "
                "amg_plugin does not overwrite it: remove that registration or import only one of the two"
            )


def build_engine(
    cfg: "CfgNode",
    datamanager: Any,
    model: "nn.Module",
    optimizer: Any,
    scheduler: Any,
    **kwargs: Any,
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
    engine_class = ENGINES.get(name)
    fitting = _LOSS_OF_ENGINE.get(name, cfg.loss.name)
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
