"""The program as a process: what its help costs, and how it ends when something outside ends it."""

import json
import os
import signal
import subprocess
import sys

import pytest
from torchreid_layouts import PACKAGE_HOME

from amg_plugin.cli.main import COMMANDS, main

posix = pytest.mark.skipif(sys.platform == "win32", reason="signals and pipes are those of POSIX")

PROGRAM = [sys.executable, "-m", "amg_plugin"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(PACKAGE_HOME)}

HELPS = """
import contextlib, io, json, sys
from amg_plugin.cli.main import COMMANDS, main

heavy = {}
for words in (["--version"], ["configs"], *([name, "--help"] for name in COMMANDS), ["--help"]):
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
        main(words)
    heavy[" ".join(words)] = [name for name in ("torch", "numpy", "torchreid", "timm") if name in sys.modules]
print(json.dumps(heavy))
"""


@pytest.fixture(scope="module")
def heavy():
    words = [sys.executable, "-c", HELPS]
    outcome = subprocess.run(words, capture_output=True, text=True, env=ENVIRONMENT, check=False)
    assert outcome.returncode == 0, outcome.stderr
    return json.loads(outcome.stdout)


@pytest.mark.parametrize("words", ["--version", "--help", "configs", *(f"{name} --help" for name in COMMANDS)])
def test_neither_torch_nor_numpy_is_imported(heavy, words):
    assert heavy[words] == []


COMMAND = """
import signal, sys, types
from amg_plugin.__main__ import console_main
from amg_plugin.cli.main import COMMANDS

def run(args):
    import working

sys.modules["slow"] = types.SimpleNamespace(add_arguments=lambda parser: None, run=run)
COMMANDS["slow"] = "slow"
sys.argv[1:] = ["slow"]
console_main()
"""

UNFINISHED = """
import tempfile, time
with tempfile.TemporaryDirectory(dir="."):
    print("at work", flush=True)
    time.sleep(60)
"""
FAILING_AS_IMPORTS_DO = """
import time
try:
    print("at work", flush=True)
    time.sleep(60)
except BaseException:
    raise ImportError("half of it is missing")
"""


@posix
@pytest.mark.parametrize(
    ("work", "number", "status", "said"),
    [
        (UNFINISHED, signal.SIGTERM, 143, ""),
        (UNFINISHED, signal.SIGINT, 130, "amg-reid: interrupted\n"),
        (FAILING_AS_IMPORTS_DO, signal.SIGINT, 130, "amg-reid: interrupted\n"),
    ],
    ids=["terminated", "interrupted", "interrupted while it imports"],
)
def test_a_command_that_is_ended_leaves_no_traceback_and_no_unfinished_files(tmp_path, work, number, status, said):
    (tmp_path / "working.py").write_text(work, encoding="utf-8")
    environment = {**ENVIRONMENT, "PYTHONPATH": f"{PACKAGE_HOME}{os.pathsep}{tmp_path}", "PYTHONDONTWRITEBYTECODE": "1"}
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment, "cwd": tmp_path}
    with subprocess.Popen([sys.executable, "-c", COMMAND], preexec_fn=_like_in_a_terminal, **options) as process:
        assert process.stdout.readline() == "at work\n"
        process.send_signal(number)
        _, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (status, said)
    assert [path.name for path in tmp_path.iterdir()] == ["working.py"]


def _like_in_a_terminal() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a suite in the background has SIGINT ignored


@posix
@pytest.mark.parametrize(("word", "unbuffered"), [("--help", ""), ("configs", ""), ("configs", "1")])
def test_an_output_that_nobody_reads_ends_quietly(word, unbuffered):
    reading, writing = os.pipe()
    os.close(reading)
    environment = {**ENVIRONMENT, "PYTHONUNBUFFERED": unbuffered}
    options = {"stdout": writing, "stderr": subprocess.PIPE, "text": True, "env": environment, "check": False}
    outcome = subprocess.run([*PROGRAM, word], **options)
    os.close(writing)
    assert (outcome.returncode, outcome.stderr) == (141, "")


@posix
@pytest.mark.parametrize("descriptor", [1, 2])
def test_a_closed_standard_stream_is_no_error(descriptor):
    options = {"capture_output": True, "text": True, "env": ENVIRONMENT, "check": False}
    outcome = subprocess.run([*PROGRAM, "configs"], preexec_fn=lambda: os.close(descriptor), **options)
    assert (outcome.returncode, outcome.stderr) == (0, "")


def test_the_callers_handling_of_signals_stays(amg_reid):
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    assert amg_reid("configs").status == 0
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_a_broken_pipe_that_is_not_the_output_is_an_error(monkeypatch):
    def run(args):
        raise BrokenPipeError

    monkeypatch.setattr("amg_plugin.cli.configs.run", run)
    with pytest.raises(BrokenPipeError):
        main(["configs"])
