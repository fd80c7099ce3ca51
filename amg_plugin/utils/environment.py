"""What a measurement was made on."""

from __future__ import annotations

import platform
from importlib import metadata
from typing import Any

import torch

from amg_plugin.version import __version__

_PACKAGES = ("torch", "torchvision", "timm", "torchreid", "numpy")


def environment(use_gpu: bool = True) -> dict[str, Any]:
    """Device, threads and versions behind a measurement.

    Args:
        use_gpu: Whether the GPU was used, if there is one.
    """
    versions = {"amg_plugin": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed as a package"
    device = torch.cuda.get_device_name() if use_gpu and torch.cuda.is_available() else f"cpu ({platform.machine()})"
    return {"device": device, "threads": torch.get_num_threads(), "versions": versions}
