"""Runs of ``amg-reid`` in processes of their own that are killed, or get signals, at a named place.

Started as a program, this file imports everything once and then forks a process for every line that it reads, since
importing torch takes seconds.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import amg_plugin

#: Status of a run that was killed, and of one that may not have a file system of its own.
KILLED, NO_DISK = -signal.SIGKILL, 77


class Runs:
    """Starts runs of ``amg-reid`` one after the other; ``with`` it."""

    def __enter__(self) -> Runs:
        package = Path(amg_plugin.__file__).resolve().parents[1]
        path = os.pathsep.join([str(package), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen([sys.executable, __file__], env=environment, **pipes)
        return self

    def __exit__(self, *_: object) -> None:
        self.process.communicate()

    def run(self, *words: object, at: str = "", call: int = 1, after: bool = False, last: str = "",
            signals: tuple[int, ...] = (signal.SIGKILL,), disk: tuple[str, int] | None = None) -> Run:  # fmt: skip
        """Run a command to its end.

        Args:
            *words: What follows ``amg-reid``.
            at: ``module:name`` of a function; empty kills nothing.
            call: The call of it, from 1, at which the process gets signals.
            after: Once the call is over.
            last: Only calls count whose last argument ends with this text.
            signals: What the process sends to itself.
            disk: A folder and the bytes of a file system of its own, which fills up then and ends with the process;
                the names of what is left in it and where its state stands are printed last.
        """
        job = {"words": list(map(str, words)), "at": at, "call": call, "after": after, "last": last,
               "signals": [int(number) for number in signals], "disk": disk}  # fmt: skip
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return Run(**json.loads(self.process.stdout.readline()))


class Run:
    """A run that has ended: its status (minus the signal that killed it), what it printed, and its process group."""

    def __init__(self, status: int, output: str, group: int) -> None:
        self.status, self.output, self.group = status, output, group

    def left_processes(self, seconds: float = 20.0) -> list[str]:
        """Processes that it has started and that are still there after a while."""
        end = time.monotonic() + seconds
        while (found := self._members()) and time.monotonic() < end:
            time.sleep(0.1)
        return found

    def _members(self) -> list[str]:
        found = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = path.read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[2]) == self.group and fields[0] != "Z":
                found.append(path.parent.name)
        return found


def _arm(job: dict[str, Any]) -> None:
    """Let the process end itself at a call of a function."""
    module, _, names = job["at"].partition(":")
    *path, name = names.split(".")
    owner = importlib.import_module(module)
    for part in path:
        owner = getattr(owner, part)
    original, ours, calls = getattr(owner, name), os.getpid(), [0]

    def end() -> None:
        if job["disk"]:
            _fill(Path(job["disk"][0]))
        for number in job["signals"]:
            os.kill(ours, number)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        counts = os.getpid() == ours and str(args[-1:] and args[-1]).endswith(job["last"])
        calls[0] += counts
        due = counts and calls[0] == job["call"]
        if due and not job["after"]:
            end()
        result = original(*args, **kwargs)
        if due and job["after"]:
            end()
        return result

    setattr(owner, name, wrapped)


def _mount(folder: str, size: int) -> bool:
    """Give this process a small file system; False where it may not have one."""
    import ctypes

    user, group = os.getuid(), os.getgid()
    libc, user_and_mounts = ctypes.CDLL(None), 0x10000000 | 0x20000
    if libc.unshare(user_and_mounts):
        return False
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
        Path("/proc/self", name).write_text(text)
    return not libc.mount(b"tmpfs", folder.encode(), b"tmpfs", 0, f"size={size}".encode())


def _fill(folder: Path) -> None:
    """Leave 100 kB on a file system."""
    free = shutil.disk_usage(folder).free
    (folder / "ballast").write_bytes(bytes(max(free - 100_000, 0)))


def _child(job: dict[str, Any], output: Path) -> None:
    os.setsid()
    with output.open("w") as file:
        for number in (0, 1, 2):
            os.dup2(file.fileno(), number)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    status = 1
    try:
        if job["disk"] and not _mount(*job["disk"]):
            os._exit(NO_DISK)
        if job["at"]:
            _arm(job)
        from amg_plugin.cli.main import main

        status = main(job["words"])
    except SystemExit as error:
        status = error.code
    except BaseException:
        traceback.print_exc()
    finally:
        if job["disk"]:
            from amg_plugin.engine.state_files import newest_state

            names = sorted(path.name for path in Path(job["disk"][0]).iterdir())
            sys.stdout.write(f"\n{json.dumps([names, str(getattr(newest_state(job['disk'][0]), 'position', ''))])}")
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _serve() -> None:
    import tempfile

    import torch

    for name in ("runs.balance", "runs.checks", "runs.resuming", "report.ending"):  # everything that a run imports
        importlib.import_module(f"amg_plugin.{name}")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "output"
        for line in sys.stdin:
            job = json.loads(line)
            child = os.fork()
            if child == 0:
                _child(job, output)
            _, status = os.waitpid(child, 0)
            ended = {"status": os.waitstatus_to_exitcode(status), "output": output.read_text(errors="replace")}
            sys.stdout.write(json.dumps({**ended, "group": child}) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    _serve()
