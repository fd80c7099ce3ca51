"""What commands print, log and say in errors steers no terminal and has an end."""

import io
import logging
import sys

import pytest

from amg_plugin.cli.arguments import logged
from amg_plugin.cli.main import main
from amg_plugin.cli.output import Printable
from amg_plugin.errors import LONGEST_MESSAGE, AMGError, InputError, shown

RED = "\x1b[31mred\x1b[0m"


def test_control_characters_are_spelled_out_and_lines_stay():
    stream = io.StringIO()
    print("a\tb", RED, "\r\x08\x9b2J \u202e \ud800", "ünï", file=Printable(stream))
    assert stream.getvalue() == "a\tb \\x1b[31mred\\x1b[0m \\r\\x08\\x9b2J \\u202e \\ud800 ünï\n"


def test_prints_and_records_of_a_run_are_printable_in_its_log_too(tmp_path, capsys):
    with logged(str(tmp_path), "test"):
        sys.stdout.write(f"{RED}\n")
        logging.getLogger("amg_plugin.somewhere").info("record %s", RED)
    (log,) = tmp_path.iterdir()
    for text in (log.read_text(encoding="utf-8"), capsys.readouterr().out):
        assert "\x1b" not in text
        assert text.count("\\x1b[31mred") == 2


@pytest.mark.parametrize(
    "value", [RED, 10**5000, "x" * 10**6, [["a" * 500] * 500] * 500], ids=["escapes", "number", "text", "lists"]
)
def test_values_in_messages_are_cut_off(value):
    assert len(shown(value)) < 600
    message = str(InputError(f"The value is {shown(value)}."))
    assert len(message) < LONGEST_MESSAGE
    assert "\x1b" not in message


def test_a_long_message_keeps_its_beginning_and_its_end():
    message = str(AMGError("begin " + "word " * 10_000 + "end"))
    assert message.startswith("begin word") and message.endswith("word end")
    assert len(message) < LONGEST_MESSAGE + 10
    assert len(str(AMGError("x" * 10**6))) < 600


@pytest.mark.parametrize(
    "words",
    [
        ["inspect", RED],
        ["inspect", "x" * 300],
        ["inspect", "/".join(["y" * 200] * 50)],
        ["train", "--config-file", "~nobody/\udc80"],
        ["test", "--weights", "x" * 300 + ".onnx"],
        ["export", "a.pth", "--format", "torchscript", "--output", "x" * 300 + ".pt"],
    ],
    ids=lambda words: words[0],
)
def test_names_that_no_file_can_have_are_refused_in_one_sentence(words, capsys):
    assert main(words) == 2
    said = capsys.readouterr().err
    assert said.startswith("amg-reid: error: ") and said.count("\n") == 1
    assert "\x1b" not in said


def test_a_full_disk_is_said_to_be_one(monkeypatch, capsys):
    def full(args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("amg_plugin.cli.inspect.run", full)
    assert main(["inspect", "any.pth"]) == 1
    assert "The disk is full" in capsys.readouterr().err
