"""What a shell is told that asks how a line may go on."""

import os
import subprocess
import sys

import pytest

from amg_plugin.cli.main import COMMANDS

pytest.importorskip("argcomplete", reason="argcomplete is not installed (extra [completion])")


@pytest.fixture
def complete(tmp_path):
    def asked(line):
        answer = tmp_path / "answer"
        asking = {
            "_ARGCOMPLETE": "1",
            "_ARGCOMPLETE_IFS": "\n",
            "_ARGCOMPLETE_STDOUT_FILENAME": str(answer),
            "COMP_LINE": line,
            "COMP_POINT": str(len(line)),
        }
        # A process of its own, as the shell starts it: argcomplete ends it, and takes file descriptors as they come.
        subprocess.run([sys.executable, "-m", "amg_plugin"], env={**os.environ, **asking}, capture_output=True)
        return [word.strip() for word in answer.read_text(encoding="utf-8").split("\n")]

    return asked


def test_commands_are_completed(complete):
    assert set(COMMANDS) <= set(complete("amg-reid "))


@pytest.mark.parametrize(
    "line, word",
    [
        ("amg-reid test --wei", "--weights"),
        ("amg-reid train --config-file market1501/vit_sm", "market1501/vit_small"),
        ("amg-reid train amg.target_m", "amg.target_macs_saving"),
    ],
)
def test_options_configurations_and_keys_are_completed(complete, line, word):
    assert word in complete(line)


def test_completion_loads_nothing_heavy():
    code = "import sys; from amg_plugin.cli import completion; completion.parser(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
