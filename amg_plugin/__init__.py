"""AMG pruning of ViT re-ID models for torchreid.

Importing the package registers its models, data sets and engines in torchreid, if torchreid is there. Models, scores,
plans and checkpoints work without it.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

from amg_plugin.errors import MissingDependencyError
from amg_plugin.version import __version__

if TYPE_CHECKING:
    from amg_plugin.checkpoint import load_model
    from amg_plugin.config.load import get_default_config
    from amg_plugin.deploy.extractor import FeatureExtractor
    from amg_plugin.plugin.registry import ENGINES, build_engine, register

__all__ = ["ENGINES", "FeatureExtractor", "__version__", "build_engine", "get_default_config", "load_model", "register"]

#: Names that are loaded on first use, so that a script that needs little imports little.
_LAZY = {
    "ENGINES": "amg_plugin.plugin.registry",
    "FeatureExtractor": "amg_plugin.deploy.extractor",
    "build_engine": "amg_plugin.plugin.registry",
    "get_default_config": "amg_plugin.config.load",
    "load_model": "amg_plugin.checkpoint",
    "register": "amg_plugin.plugin.registry",
}
_SUBMODULES = ("models", "paper", "pruning")


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    if name in _SUBMODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


def _register_if_possible() -> None:
    from amg_plugin import compat

    if not compat.is_installed():
        return
    from amg_plugin.plugin.registry import register

    try:
        register()
    except MissingDependencyError as error:
        # torchreid is broken; everything that does not need it still works, the rest says so when used.
        logging.getLogger(__name__).warning("%s", error)


_register_if_possible()
