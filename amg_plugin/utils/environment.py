"""What a measurement was made on."""

from __future__ import annotations

import platform
from importlib import metadata
from pathlib import Path
from typing import Any

from amg_plugin.version import __version__

_PACKAGES = ("torch", "torchvision", "timm", "torchreid", "numpy")


def environment(use_gpu: bool = True) -> dict[str, Any]:
    """Device, threads and versions behind a measurement.

    Args:
        use_gpu: Whether the GPU was used, if there is one.
    """
    import torch  # what else is here works on a device without it

    device = torch.cuda.get_device_name() if use_gpu and torch.cuda.is_available() else f"cpu ({platform.machine()})"
    return {"device": device, "threads": torch.get_num_threads(), "versions": versions(*_PACKAGES)}


def versions(*packages: str) -> dict[str, str]:
    """Versions of packages, of Python and of the plugin."""
    found = {"amg_plugin": __version__, "python": platform.python_version()}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed as a package"
    return found


def processor_name() -> str:
    """Model name of the CPU, as the system gives it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model"))]
    return f"{names[0] if names else platform.processor() or 'cpu'} ({platform.machine()})"
