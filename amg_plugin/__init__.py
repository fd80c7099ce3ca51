"""AMG pruning of ViT re-ID models for torchreid.

Importing the package registers its models and data sets in torchreid, whichever of the two is imported first. Models,
scores, plans and checkpoints work without torchreid.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from amg_plugin.plugin.on_import import register_when_imported
from amg_plugin.utils.imports import lazy_names
from amg_plugin.version import __version__

if TYPE_CHECKING:
    from amg_plugin.checkpoint import load_model, save_checkpoint
    from amg_plugin.config.schema import get_default_config
    from amg_plugin.deploy.export import export
    from amg_plugin.deploy.extractor import FeatureExtractor
    from amg_plugin.deploy.fast.network import fast
    from amg_plugin.deploy.gallery import Gallery
    from amg_plugin.models.complexity import count
    from amg_plugin.plugin.registry import ENGINES, build_engine, register

__all__ = [
    "ENGINES",
    "FeatureExtractor",
    "Gallery",
    "__version__",
    "build_engine",
    "count",
    "export",
    "fast",
    "get_default_config",
    "load_model",
    "register",
    "save_checkpoint",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "ENGINES": "amg_plugin.plugin.registry",
        "FeatureExtractor": "amg_plugin.deploy.extractor",
        "Gallery": "amg_plugin.deploy.gallery",
        "build_engine": "amg_plugin.plugin.registry",
        "count": "amg_plugin.models.complexity",
        "export": "amg_plugin.deploy.export",
        "fast": "amg_plugin.deploy.fast.network",
        "get_default_config": "amg_plugin.config.schema",
        "load_model": "amg_plugin.checkpoint",
        "register": "amg_plugin.plugin.registry",
        "save_checkpoint": "amg_plugin.checkpoint",
        **dict.fromkeys(("models", "paper", "pruning"), ""),
    },
)

register_when_imported()
