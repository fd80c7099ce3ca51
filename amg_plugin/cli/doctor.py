"""Check the installation, name what is missing and the commands that mend it.

The checks are of Python, the packages (torchreid declares none of its own), the registered names and the device. The
exit status is 0 if everything needed is there, else 1.

Where none of torch, timm and torchreid is installed, as on a device that only runs exported files, the checks are of
what that takes: numpy, Pillow and a runtime.

example: amg-reid doctor --json > installation.json

more: docs/support.md
"""

import contextlib
import importlib
import importlib.metadata
import json
import logging
import os
import platform
import re
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from itertools import groupby
from pathlib import Path

from amg_plugin import compat
from amg_plugin.cli.arguments import JSON, adder
from amg_plugin.errors import AMGError, MissingDependencyError
from amg_plugin.registries import DATASETS
from amg_plugin.registries.formats import FORMATS, optional_packages
from amg_plugin.registries.registry import resolve
from amg_plugin.utils.environment import processor_name
from amg_plugin.version import __version__

logger = logging.getLogger(__name__)

#: What has to be there, import name -> requirement as pip takes it.
NEEDED = {
    "torch": "torch",
    "torchvision": "torchvision",
    "timm": "timm>=1.0.31",
    "torchreid": "torchreid>=0.2.5",
    **compat.UNDECLARED_NEEDS,
    "yacs": "yacs",
    "yaml": "PyYAML",
    "numpy": "numpy>=1.24",
    "PIL": "pillow",
    "safetensors": "safetensors",
    "tqdm": "tqdm",
    "matplotlib": "matplotlib",
    "jinja2": "jinja2",
}

#: What has to be there to run exported files.
NEEDED_ON_DEVICES = {name: NEEDED[name] for name in ("numpy", "PIL")}
#: Without any of these, an installation is taken to be for exported files only.
_TRAINING = ("torch", "timm", "torchreid")

MINIMUM_PYTHON = (3, 10)

#: Everything needed is there; something needed is missing or broken; something optional is missing.
OK, PROBLEM, ABSENT = "ok", "problem", "absent"
_MARKS = {OK: "ok", PROBLEM: "PROBLEM", ABSENT: "-"}
#: Group of the packages that may be missing.
_OPTIONAL = "optional, for export"

#: Group, name, and what gives the detail or raises what is wrong.
Look = tuple[str, str, Callable[[], str]]

add_arguments = adder(JSON)


@dataclass(frozen=True)
class Check:
    """A row of the table: ``detail`` is a version, a count, or what is wrong; ``fix`` is the command that mends it."""

    group: str
    name: str
    status: str
    detail: str
    fix: str = ""


def run(args: Namespace) -> int:
    """Print all checks; the exit status is 0 if everything needed is there, else 1."""
    checks = collect()
    problems = sum(check.status == PROBLEM for check in checks)
    if args.json:
        print(json.dumps({"ok": not problems, "checks": [asdict(check) for check in checks]}, indent=2))
        return 1 if problems else 0
    width = max(len(check.name) for check in checks)
    for group, rows in groupby(checks, key=lambda check: check.group):
        print(group, *(f"  {row.name:<{width}}  {_MARKS[row.status]:<7}  {row.detail}" for row in rows), "", sep="\n")
    if problems:
        print(f"{problems} problem{'s' * (problems > 1)}: see the lines marked PROBLEM. To mend, run")
        print(*(f"  {command}" for command in fixes(checks)), "and 'amg-reid doctor' again.", sep="\n")
    else:
        print("everything needed is there")
    return 1 if problems else 0


def fixes(checks: Iterable[Check]) -> list[str]:
    """The commands that mend the problems among ``checks``; what has none of its own follows from the others."""
    commands = dict.fromkeys(check.fix for check in checks if check.status == PROBLEM and check.fix)
    return list(commands) or ["pip install --force-reinstall ."]  # in a checkout, as it was installed


def collect() -> list[Check]:
    """Look at the interpreter, the packages, the registered names and the device."""
    looks: list[Look] = [
        ("system", "Python", _python),
        ("system", "amg_plugin", lambda: f"{__version__} ({Path(__file__).resolve().parents[1]})"),
    ]
    complete = any(compat.is_installed(module) for module in _TRAINING)
    return [_check(*look) for look in (*looks, *(_of_everything() if complete else _of_a_device()))]


def _of_everything() -> list[Look]:
    """Looks at an installation that trains, prunes and exports."""
    optional = [module for module in optional_packages() if module not in NEEDED]
    return [
        *(("packages", module, partial(_package, module, needed)) for module, needed in NEEDED.items()),
        *((_OPTIONAL, module, partial(_package, module, compat.pip_name(module), load=False)) for module in optional),
        ("cooperation", "torch + torchvision", _torch_with_torchvision),
        ("cooperation", "amg_plugin configs", lambda: f"{len(resolve('amg_plugin.config:list_configs')())} shipped"),
        (
            "registered",
            "models",
            lambda: _registered(resolve("amg_plugin.plugin.registry:MODELS"), compat.model_factory),
        ),
        ("registered", "data sets", lambda: _registered(DATASETS, compat.image_dataset_factory)),
        ("registered", "engines", _engines),
        ("device", "CUDA", _cuda),
        ("device", "threads", _threads),
    ]


def _of_a_device() -> list[Look]:
    """Looks at an installation that only runs exported files."""
    use = "exported files (doctor, bench FILE, FeatureExtractor, Gallery); everything else needs torch"
    return [
        ("system", "installed for", lambda: use),
        *(("packages", module, partial(_package, module, needed)) for module, needed in NEEDED_ON_DEVICES.items()),
        ("packages", "runtimes", _runtimes),
        ("device", "CPU", lambda: f"{processor_name()}, {os.cpu_count()} logical CPUs"),
    ]


def _check(group: str, name: str, look: Callable[[], str]) -> Check:
    """Turn what ``look`` returns, or the error that it raises, into a row."""
    try:
        return Check(group, name, OK, look())
    except AMGError as error:
        absent = group == _OPTIONAL and isinstance(error, MissingDependencyError)
        return Check(group, name, ABSENT if absent else PROBLEM, str(error), getattr(error, "fix", ""))
    except Exception as error:  # a doctor reports whatever is broken
        logger.debug("check of %s failed", name, exc_info=True)
        return Check(group, name, PROBLEM, f"{type(error).__name__}: {error}")


def _mendable(text: str, fix: str, kind: type[AMGError] = AMGError) -> AMGError:
    """An error that says what is wrong and the command that mends it."""
    error = kind(f"{text}: {fix}")
    error.fix = fix
    return error


def _runtimes() -> str:
    """Runtimes of exported files that are there and work without torch; one is enough."""
    known = {name: row for row in FORMATS.rows.values() if "torch" not in row.runtime for name in row.runtime}
    there = {module: _package(module, compat.pip_name(module)) for module in known if compat.is_installed(module)}
    if not there:
        first, *others = map(compat.pip_name, known)
        text = f"missing: one that runs your files, {' or '.join((first, *others))}"
        raise _mendable(text, f"pip install {first}", MissingDependencyError)
    return ", ".join(f"{module} {version}" for module, version in there.items())


def _python() -> str:
    text = f"{platform.python_version()} ({sys.executable}) on {platform.platform()}"
    if sys.version_info < MINIMUM_PYTHON:
        needed = ".".join(map(str, MINIMUM_PYTHON))
        raise _mendable(f"{text}, {needed} or newer is needed", f"python{needed} -m venv .venv, and install into it")
    return text


def _package(module: str, requirement: str, load: bool = True) -> str:
    quoted = f"'{requirement}'" if ">" in requirement else requirement
    spec = None
    with contextlib.suppress(ImportError, ValueError):
        spec = importlib.util.find_spec(module)
    if spec is None:
        raise _mendable("missing", f"pip install {quoted}", MissingDependencyError)
    name, _, least = requirement.partition(">=")
    version = _version(module, name, spec.origin)
    if least and _numbers(version) and _numbers(version) < _numbers(least):
        raise _mendable(f"{version} is too old", f"pip install --upgrade {quoted}")
    if module == "torchreid":
        return f"{version}, layout '{compat.layout()}'"
    try:
        if load:
            importlib.import_module(module)
    except Exception as error:  # a package can be there and not load, say for want of a system library
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        text = f"{version}, but cannot be imported ({reason})"
        raise _mendable(text, f"pip install --force-reinstall {quoted}") from error
    return version


def _version(module: str, name: str, origin: str | None) -> str:
    # Some modules come in several distributions, such as cv2 and tensorboard.
    for distribution in (name, *_distributions().get(module, ())):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found = importlib.metadata.distribution(distribution)
            # What is imported may be a checkout of torchreid on PYTHONPATH, not the installed one.
            if module != "torchreid" or Path(origin or "").resolve() in {
                Path(file.locate()).resolve() for file in found.files or ()
            }:
                return found.version
    return getattr(compat.torchreid(), "__version__", "unknown") if module == "torchreid" else "version unknown"


@cache
def _distributions() -> Mapping[str, Sequence[str]]:
    return importlib.metadata.packages_distributions()  # reads the metadata of everything that is installed


def _numbers(version: str) -> list[int]:
    match = re.match(r"\d+(\.\d+)*", version)
    return [int(part) for part in match.group().split(".")] if match else []


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
    text = f"do not belong together ({last}); install both from the same index"
    raise _mendable(text, "pip install --force-reinstall torch torchvision")


def _registered(names: Iterable[str], factory: Callable[[], Collection[str]]) -> str:
    from amg_plugin.plugin.registry import register

    register()
    return ", ".join(name for name in names if name in factory())


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
