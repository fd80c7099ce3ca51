"""``amg-reid doctor``: check the installation and name what is missing."""

import argparse
import importlib
import importlib.metadata
import json
import logging
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from amg_plugin import compat
from amg_plugin.errors import AMGError, MissingDependencyError
from amg_plugin.registries.formats import optional_packages
from amg_plugin.version import __version__

logger = logging.getLogger(__name__)

HELP = "check the installation and name what is missing"
DESCRIPTION = """Check Python, the packages (torchreid declares none of its own), the registered names
and the device.

The exit status is 0 if everything needed is there, else 1.

example: amg-reid doctor --json > installation.json"""

#: What has to be there, import name -> requirement as pip takes it.
NEEDED = {
    "torch": "torch",
    "torchvision": "torchvision",
    "timm": "timm>=1.0.31",
    "torchreid": "torchreid>=0.2.5",
    **compat.UNDECLARED_NEEDS,
    "yacs": "yacs",
    "yaml": "PyYAML",
    "numpy": "numpy",
    "PIL": "pillow",
    "safetensors": "safetensors",
    "tqdm": "tqdm",
    "matplotlib": "matplotlib",
}

MINIMUM_PYTHON = (3, 10)

OK, PROBLEM, ABSENT = "ok", "problem", "absent"
#: Group of the packages that may be missing.
OPTIONAL = "optional, for export"


@dataclass(frozen=True)
class Check:
    """One row of the table.

    Attributes:
        group: Heading that the row stands under.
        name: What was looked at.
        status: ``"ok"``, ``"problem"`` (something needed is missing or broken) or ``"absent"`` (optional).
        detail: Version, count, or what is wrong and the command that mends it.
    """

    group: str
    name: str
    status: str
    detail: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command to ``parser``."""
    parser.add_argument("--json", action="store_true", help="print the checks as JSON instead of a table")


def run(args: argparse.Namespace) -> int:
    """Print all checks; the exit status is 0 if everything needed is there, else 1."""
    checks = collect()
    healthy = all(check.status != PROBLEM for check in checks)
    if args.json:
        print(json.dumps({"ok": healthy, "checks": [asdict(check) for check in checks]}, indent=2))
    else:
        print(render(checks))
    return 0 if healthy else 1


def collect() -> list[Check]:
    """Look at the interpreter, the packages, the registered names and the device."""
    optional = [module for module in optional_packages() if module not in NEEDED]
    looks: list[tuple[str, str, Callable[[], str]]] = [
        ("system", "Python", _python),
        ("system", "amg_plugin", lambda: f"{__version__} ({Path(__file__).resolve().parents[1]})"),
        *(("packages", module, partial(_package, module, needed)) for module, needed in NEEDED.items()),
        *((OPTIONAL, module, partial(_package, module, compat.pip_name(module), load=False)) for module in optional),
        ("cooperation", "torch + torchvision", _torch_with_torchvision),
        ("cooperation", "amg_plugin configs", _configs),
        ("registered", "models", _models),
        ("registered", "data sets", _datasets),
        ("registered", "engines", _engines),
        ("device", "CUDA", _cuda),
        ("device", "threads", _threads),
    ]
    return [check(*look) for look in looks]


def render(checks: list[Check]) -> str:
    """Return the checks as a table, grouped, with a closing line that says what to do."""
    marks = {OK: "ok", PROBLEM: "PROBLEM", ABSENT: "-"}
    width = max(len(check.name) for check in checks)
    lines = []
    group = None
    for check in checks:
        if check.group != group:
            group = check.group
            lines += ["", group]
        lines.append(f"  {check.name:<{width}}  {marks[check.status]:<7}  {check.detail}")
    problems = sum(check.status == PROBLEM for check in checks)
    if problems:
        lines += ["", f"{problems} problem{'s' if problems > 1 else ''}: see the lines marked PROBLEM"]
    else:
        lines += ["", "everything needed is there"]
    return "\n".join(lines[1:])


def check(group: str, name: str, look: Callable[[], str]) -> Check:
    """Turn what ``look`` returns, or the error that it raises, into a row."""
    try:
        return Check(group, name, OK, look())
    except MissingDependencyError as error:
        return Check(group, name, ABSENT if group == OPTIONAL else PROBLEM, str(error))
    except AMGError as error:
        return Check(group, name, PROBLEM, str(error))
    except Exception as error:  # a doctor reports whatever is broken
        logger.debug("check of %s failed", name, exc_info=True)
        return Check(group, name, PROBLEM, f"{type(error).__name__}: {error}")


def _python() -> str:
    text = f"{platform.python_version()} ({sys.executable}) on {platform.platform()}"
    if sys.version_info < MINIMUM_PYTHON:
        raise AMGError(f"{text}: 3.10 or newer is needed")
    return text


def _package(module: str, requirement: str, load: bool = True) -> str:
    try:
        found = importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        found = False
    if not found:
        raise MissingDependencyError(f"missing: pip install {_quoted(requirement)}")
    version = _version(module, requirement)
    least = requirement.partition(">=")[2]
    if least and _numbers(version) and _numbers(version) < _numbers(least):
        raise AMGError(f"{version} is too old: pip install --upgrade {_quoted(requirement)}")
    if module == "torchreid":
        return f"{version}, layout '{compat.layout()}'"
    try:
        if load:
            importlib.import_module(module)
    except Exception as error:  # a package can be there and not load, say for want of a system library
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise AMGError(f"{version}, but cannot be imported ({reason})") from error
    return version


def _version(module: str, requirement: str) -> str:
    names = [re.split(r"[<>=!~]", requirement)[0]]
    if module == "cv2":  # one module, several distributions
        names += ["opencv-python", "opencv-contrib-python-headless", "opencv-contrib-python"]
    if module == "tensorboard":
        names += ["tb-nightly"]
    if module == "torchreid" and not _is_installed_copy():
        return str(getattr(compat.torchreid(), "__version__", "unknown")) if _imports() else "unknown"
    for name in names:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "version unknown"


def _is_installed_copy() -> bool:
    """Whether the torchreid that is imported is the installed one, not a checkout on PYTHONPATH."""
    spec = importlib.util.find_spec("torchreid")
    try:
        files = importlib.metadata.files("torchreid") or []
    except importlib.metadata.PackageNotFoundError:
        return False
    if spec is None or spec.origin is None:
        return False
    return any(os.path.realpath(file.locate()) == os.path.realpath(spec.origin) for file in files)


def _imports() -> bool:
    try:
        compat.torchreid()
    except AMGError:
        return False
    return True


def _numbers(version: str) -> tuple[int, ...]:
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in match.group().split(".")) if match else ()


def _quoted(requirement: str) -> str:
    return f"'{requirement}'" if ">" in requirement else requirement


def _torch_with_torchvision() -> str:
    done = "torchvision's operators load"
    if "torch" in sys.modules and "torchvision" in sys.modules:  # a failed import would have taken it out again
        sys.modules["torch"].ops.torchvision.nms  # noqa: B018  (looking it up raises if it is absent)
        return done
    # In a process of its own: an import that fails half-way leaves torchvision's modules behind.
    code = "import torch, torchvision; torch.ops.torchvision.nms"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if result.returncode == 0:
        return done
    last = (result.stderr.strip().splitlines() or ["no message"])[-1]
    if "No module named" in last:
        raise AMGError(f"not checked: {last}")
    raise AMGError(
        f"do not belong together ({last}): install both from the same index, "
        "pip install --force-reinstall torch torchvision"
    )


def _configs() -> str:
    from amg_plugin.config import list_configs

    return f"{len(list_configs())} shipped"


def _models() -> str:
    from amg_plugin.plugin import registry

    registry.register()
    return ", ".join(name for name in registry.MODELS if name in compat.model_factory())


def _datasets() -> str:
    from amg_plugin.plugin import registry

    registry.register()
    from amg_plugin.registries import DATASETS

    return ", ".join(name for name in DATASETS if name in compat.image_dataset_factory())


def _engines() -> str:
    from amg_plugin.plugin.registry import ENGINES

    for name in ENGINES:
        ENGINES.load(name)
    return ", ".join(ENGINES)


def _cuda() -> str:
    import torch

    if not torch.cuda.is_available():
        return "not available: everything runs on the CPU"
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return f"CUDA {torch.version.cuda}: {', '.join(names)}"


def _threads() -> str:
    import torch

    return f"torch uses {torch.get_num_threads()} of {os.cpu_count()} logical CPUs"
