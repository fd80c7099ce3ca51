"""Carry out a benchmark: one process per runtime and number of threads, networks in alternation inside it."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from amg_plugin import compat
from amg_plugin.bench import worker
from amg_plugin.bench.subject import Subject
from amg_plugin.deploy.exported_file import ExportedFile
from amg_plugin.errors import InputError, RunError
from amg_plugin.registries.formats import FORMATS, file_size
from amg_plugin.registries.imports import LOADED
from amg_plugin.utils.environment import processor_name, versions
from amg_plugin.utils.imports import need


@dataclass(frozen=True)
class Settings:
    """How to measure.

    Attributes:
        forms: Names of :func:`~amg_plugin.registries.formats.forms`.
        threads: Numbers of CPU threads.
        batches: Numbers of images.
        rounds: Samples of each network.
        warmup: Rounds before that do not count.
        device: ``"cpu"`` or ``"cuda"``.
        memory: Measure peak memory, each network in a process of its own.
    """

    forms: tuple[str, ...] = ("eager", "fast")
    threads: tuple[int, ...] = (1,)
    batches: tuple[int, ...] = (1,)
    rounds: int = 20
    warmup: int = 3
    device: str = "cpu"
    memory: bool = True

    def check(self) -> None:
        """Check before any work.

        Raises:
            InputError: If a value is impossible here.
            MissingDependencyError: If a runtime is missing.
        """
        for name, values in (("threads", self.threads), ("batch", self.batches)):
            if min(values, default=0) < 1:
                raise InputError(f"--{name} {' '.join(map(str, values))} is impossible; allowed are numbers from 1.")
        if self.rounds < 1 or self.warmup < 1:
            raise InputError("--rounds and --warmup must be at least 1.")
        if self.device == "cuda" and compat.is_installed("torch") and not has_gpu():
            raise InputError("Device cuda is impossible: PyTorch sees no GPU here; measure on cpu.")
        for form in self.forms:
            check_form(form, self.device)
            if form in FORMATS and FORMATS.row(form).batch == "one" and set(self.batches) != {1}:
                raise InputError(
                    f"Form {form} takes one image per call, not --batch {' '.join(map(str, self.batches))}."
                )

    @property
    def total_rounds(self) -> int:
        """Rounds of all processes, for a progress bar."""
        return len(self.processes) * len(self.batches) * (self.rounds + self.warmup)

    @property
    def processes(self) -> list[tuple[str, int]]:
        """Form and threads of each process; on a GPU threads make no difference."""
        threads = self.threads if self.device == "cpu" else self.threads[:1]
        return [(form, count) for form in self.forms for count in threads]


def run(subjects: Sequence[Subject], settings: Settings, progress: Callable[[str, int], None]) -> dict[str, Any]:
    """Measure.

    Args:
        subjects: Networks; names are unique.
        settings: How.
        progress: Gets what is going on and the number of rounds that were finished.

    Returns:
        ``subjects`` (with counted cost), ``cases`` (form, device, threads, batch, and per network ``samples`` in
        seconds per pass), ``environment``.

    Raises:
        RunError: If a process fails.
    """
    described: list[dict[str, Any]] = []
    for subject in subjects:
        progress(f"counting {subject.name}", 0)
        described.append({**subject.to_dict(), "path": Path(subject.path).name, **subject.describe()})
    cases, found = [], versions()
    with tempfile.TemporaryDirectory(prefix="amg-bench-") as folder:
        files = {form: _files(subjects, form, Path(folder), progress) for form in settings.forms}
        for form, threads in settings.processes:
            label = case_title(form, settings.device, threads)
            progress(label, 0)
            task = _task(subjects, settings, form, threads, files[form])
            outcome = _in_process(task, lambda label=label: progress(label, 1))
            found.update(outcome["versions"])
            peaks = {}  # each network in a process of its own
            for entry in task["subjects"] if settings.memory else ():
                progress(f"{label}, memory", 0)
                alone = _in_process({**task, "what": "memory", "subjects": [entry]})
                peaks[entry["subject"]["name"]] = alone["found"]
            for number, batch in enumerate(settings.batches):
                case = {
                    "form": form,
                    "device": settings.device,
                    "threads": threads,
                    "batch": batch,
                    "samples": outcome["found"][number],
                    "peak_memory": {name: values[number] for name, values in peaks.items()},
                }
                if files[form]:
                    case["bytes"] = {name: file_size(file) for name, file in files[form].items()}
                cases.append(case)
    return {"subjects": described, "cases": cases, "environment": environment(settings, found)}


def _files(subjects: Sequence[Subject], form: str, folder: Path, say: Callable[[str, int], None]) -> dict[str, Path]:
    """Files of the networks that run in a form, by name; none for forms of PyTorch itself."""
    files: dict[str, Path] = {}
    for number, subject in enumerate(subjects if form in FORMATS else ()):
        if subject.form == form:  # an exported file
            files[subject.name] = Path(subject.path)
        elif subject.runs_as(form):
            from amg_plugin.bench.subjects import write_form  # needs PyTorch

            say(f"{subject.name} to {form}", 0)
            files[subject.name] = folder / f"{number}{FORMATS.row(form).suffixes[0]}"
            write_form(subject, form, files[subject.name])
    return files


def _task(
    subjects: Sequence[Subject], settings: Settings, form: str, threads: int, files: dict[str, Path]
) -> dict[str, Any]:
    """What the process gets, as plain data."""
    row = FORMATS.rows.get(form)
    return {
        **asdict(settings),
        "what": "time",
        "form": form,
        "packages": row.runtime if row else ("torch", "timm"),
        "imports": list(LOADED.values()),
        "threads": threads,
        "subjects": [
            {"subject": subject.to_dict(), "file": str(files.get(subject.name, ""))}
            for subject in subjects
            if subject.runs_as(form)
        ],
    }


def case_title(form: str, device: str, threads: int) -> str:
    """What a process measures; on a GPU threads make no difference."""
    return f"{form}, {device}" if device != "cpu" else f"{form}, {threads} thread{'s' * (threads > 1)}"


def _in_process(task: dict[str, Any], finished: Callable[[], None] = lambda: None) -> dict[str, Any]:
    threads = str(task["threads"])
    variables = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    package = str(Path(__file__).resolve().parents[2])
    variables["PYTHONPATH"] = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH", "")]))
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8") as errors,
        subprocess.Popen(
            [sys.executable, worker.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=variables,
        ) as process,
    ):
        try:
            process.stdin.write(json.dumps(task))
            process.stdin.close()
            result = None
            for line in process.stdout:
                message = _message(line)
                if "progress" in message:
                    finished()
                result = message.get("result", result)
        finally:
            if sys.exc_info()[0] is not None:
                process.kill()
        if process.wait() != 0 or result is None:
            errors.seek(0)
            last = (errors.read().strip().splitlines() or ["it said nothing"])[-1]
            raise RunError(f"Measuring in form '{task['form']}' failed (status {process.returncode}): {last[:300]}")
    return result


def _message(line: str) -> dict[str, Any]:
    """A line of the process; libraries print there as well."""
    try:
        value = json.loads(line)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def environment(settings: Settings, found: dict[str, str]) -> dict[str, Any]:
    """Where the figures come from."""
    return {
        "device": _gpu_name() if settings.device == "cuda" else processor_name(),
        "cores": os.cpu_count(),
        "system": platform.system(),
        "rounds": settings.rounds,
        "warmup": settings.warmup,
        "versions": found,
    }


def has_gpu() -> bool:
    """Whether PyTorch, if it is installed, sees a GPU."""
    return compat.is_installed("torch") and need("torch", "").cuda.is_available()


def _gpu_name() -> str:
    return need("torch", "").cuda.get_device_name() if has_gpu() else "cuda"


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def check_form(form: str, device: str) -> None:
    """Check that networks can be measured in a form on ``"cpu"`` or ``"cuda"`` here, before any work.

    Raises:
        InputError: If the form is impossible on the device.
        MissingDependencyError: If a package is missing.
    """
    row = FORMATS.rows.get(form)
    if row is None:  # PyTorch itself
        need("torch", f"Form {form}")
        if form == "fast_graph" and device != "cuda":
            raise InputError(f"Form {form} is impossible on {device}: it runs on cuda only; choose another form.")
        return
    # Without torch no network can be written; files run as they are.
    packages, extra = (row.packages, 0) if compat.is_installed("torch") else (row.runtime, 1)
    for package in packages:
        need(package, f"Form {form}", row.extras[extra])
    if device not in row.devices:
        raise InputError(
            f"Form {form} is impossible on {device}: it runs on {' and '.join(row.devices)} only; choose another form "
            "or device."
        )
    getattr(row.load("opener"), "check_device", ExportedFile.check_device)(device)
