"""One run per folder: another one is refused by name, and a run that is gone stands in nobody's way."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import amg_plugin
from amg_plugin.cli.arguments import logged
from amg_plugin.errors import InputError
from amg_plugin.utils.lock import LOCK_FILE, locked

pytest.importorskip("fcntl")

HOLD = """
import sys, time
from amg_plugin.errors import InputError
from amg_plugin.utils.lock import locked
try:
    with locked(sys.argv[1]):
        print("held", flush=True)
        sys.stdin.read()
except InputError as error:
    print(error, flush=True)
"""


@pytest.fixture
def start(tmp_path):
    """Starts a process that holds the folder until its input ends."""
    folder = str(Path(amg_plugin.__file__).parents[1])
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [folder, os.environ.get("PYTHONPATH", "")]))}
    started = []

    def of():
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": env}
        started.append(subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], **pipes))
        return started[-1]

    yield of
    for process in started:
        process.kill()
        process.communicate()


def test_another_run_in_the_folder_is_refused_by_process_and_host(start, tmp_path):
    process = start()
    assert process.stdout.readline() == "held\n"
    with pytest.raises(InputError, match=rf"in use by process {process.pid} on .*data\.save_dir"), locked(tmp_path):
        pass
    with pytest.raises(InputError, match="in use"), logged(str(tmp_path), "train"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [LOCK_FILE]


def test_a_run_that_was_killed_is_taken_over_at_once(start, tmp_path):
    process = start()
    process.stdout.readline()
    process.kill()
    process.wait()
    with locked(tmp_path):
        assert str(os.getpid()) in (tmp_path / LOCK_FILE).read_text()


def test_nothing_is_left_when_a_run_ends_or_fails(tmp_path):
    with locked(tmp_path):
        pass
    with pytest.raises(KeyboardInterrupt), locked(tmp_path):
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_of_several_that_start_together_one_goes_on(start):
    processes = [start() for _ in range(4)]
    said = [process.stdout.readline() for process in processes]
    assert said.count("held\n") == 1
    (holder,) = (process for process, line in zip(processes, said, strict=True) if line == "held\n")
    assert all(f"process {holder.pid} " in line for line in said if line != "held\n")


def test_a_link_in_its_place_is_not_followed(tmp_path):
    (tmp_path / "precious").write_text("precious")
    (tmp_path / LOCK_FILE).symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match=LOCK_FILE), locked(tmp_path):
        pass
    assert (tmp_path / "precious").read_text() == "precious"
