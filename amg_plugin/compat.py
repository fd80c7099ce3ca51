"""The only module that knows how torchreid is laid out.

Two layouts are in use. PyPI's release keeps everything under ``torchreid.reid``; the git master has it
directly under ``torchreid``. Both offer the same attributes after ``import torchreid``, so the plugin only
writes ``torchreid().data.ImageDataManager`` and never imports a torchreid submodule by name.
"""

import importlib
import importlib.util
import warnings
from types import ModuleType
from typing import Any

from amg_plugin.errors import InputError, MissingDependencyError

#: Packages that torchreid imports without declaring them: import name -> what pip calls it.
UNDECLARED_NEEDS: dict[str, str] = {
    "scipy": "scipy",
    "cv2": "opencv-python-headless",
    "gdown": "gdown",
    "tensorboard": "tensorboard",
    "six": "six",
}

_PIP_NAMES = {
    **UNDECLARED_NEEDS,
    "PIL": "pillow",
    "yaml": "PyYAML",
    "ai_edge_litert": "ai-edge-litert",
    "ai_edge_quantizer": "ai-edge-quantizer",
    "litert_torch": "litert-torch",
}

_ATTRIBUTES = ("data", "engine", "losses", "metrics", "models", "optim", "utils")


def pip_name(module: str) -> str:
    """Return what pip calls the package that provides the importable ``module``."""
    top = module.partition(".")[0]
    return _PIP_NAMES.get(top, top)


def is_installed(module: str = "torchreid") -> bool:
    """Return whether a module can be found, without importing it."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # an import blocker, or a half-initialised module
        return False


def torchreid() -> ModuleType:
    """Import torchreid and return it.

    Returns:
        The top-level module; its attributes ``data``, ``engine``, ``losses``, ``metrics``, ``models``,
        ``optim`` and ``utils`` are the same in both layouts.

    Raises:
        MissingDependencyError: torchreid, or a package that it needs, is missing or broken; the message names
            the package and the command that installs it.
    """
    try:
        with warnings.catch_warnings():
            # Its Python evaluator, used where the compiled one is absent, gives the same figures.
            warnings.filterwarnings("ignore", message="Cython evaluation", category=UserWarning)
            module = importlib.import_module("torchreid")
    except ModuleNotFoundError as error:
        raise MissingDependencyError(_missing_module_message(error)) from error
    except Exception as error:
        # A torchvision built for another torch fails with "operator torchvision::nms does not exist" or with an
        # AttributeError about the half-imported torchvision, depending on its version.
        if "torchvision" in str(error):
            raise MissingDependencyError(
                f"torchreid is installed, but torch and torchvision do not belong together ({error}): "
                "install both from the same index, pip install --force-reinstall torch torchvision"
            ) from error
        raise MissingDependencyError(
            f"torchreid is installed, but cannot be imported ({type(error).__name__}: {error}): see 'amg-reid doctor'"
        ) from error
    absent = [name for name in _ATTRIBUTES if not hasattr(module, name)]
    if absent:
        where = getattr(module, "__file__", None) or list(getattr(module, "__path__", []))
        raise MissingDependencyError(
            f"The package 'torchreid' at {where} is not the person re-ID library (it has no '{absent[0]}'): "
            "pip install torchreid"
        )
    return module


def _missing_module_message(error: ModuleNotFoundError) -> str:
    name = error.name or ""
    if name == "torchreid":
        return "torchreid is not installed: pip install torchreid"
    top = name.partition(".")[0]
    if not top:
        return f"torchreid is installed, but cannot be imported: {error}"
    if top == "torchreid":
        return f"torchreid is installed incompletely ({error}): pip install --force-reinstall torchreid"
    kind = "its undeclared dependency" if top in UNDECLARED_NEEDS else "its dependency"
    return f"torchreid is installed, but {kind} '{top}' is missing: pip install {pip_name(top)}"


def layout() -> str:
    """Return ``"pypi"`` (everything under ``torchreid.reid``) or ``"git"`` (the repository's master)."""
    return "pypi" if hasattr(torchreid(), "reid") else "git"


def model_factory() -> dict[str, Any]:
    """Return torchreid's own table of models, name -> factory; ``build_model`` reads it at each call."""
    return _table(torchreid().models, "__model_factory")


def image_dataset_factory() -> dict[str, Any]:
    """Return torchreid's own table of image data sets, name -> class."""
    return _table(torchreid().data.datasets, "__image_datasets")


def _table(module: ModuleType, name: str) -> dict[str, Any]:
    # Through vars(): as an attribute inside a class body, Python would mangle the leading underscores.
    table = vars(module).get(name)
    if not isinstance(table, dict):
        raise InputError(
            f"This torchreid is not supported: '{module.__name__}' has no table '{name}' "
            "(supported are PyPI's 0.2.5 and git master 1.4.0)"
        )
    return table
