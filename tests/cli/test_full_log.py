"""A log that fills the disk."""

import logging
import sys
from pathlib import Path

import pytest

from amg_plugin.cli.arguments import logged

FULL = Path("/dev/full")


@pytest.mark.skipif(not FULL.exists(), reason="there is no /dev/full here")
def test_a_run_goes_on_without_its_log_and_says_so_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("time.strftime", lambda *_: "now")
    (tmp_path / "train.log-now").symlink_to(FULL)
    with logged(str(tmp_path), "train"):
        sys.stdout.write("first\n")
        logging.getLogger("amg_plugin.somewhere").info("record")
        sys.stdout.write("last")
    lines = capsys.readouterr().out.splitlines()
    warning = f"The log '{tmp_path / 'train.log-now'}' cannot be written (No space left on device) and ends here."
    assert [line for line in lines if line] == ["first", warning, "record", "last"]
