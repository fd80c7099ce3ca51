"""The report at the end of a run."""

import logging

from amg_plugin.checkpoint import read_checkpoint
from amg_plugin.config import from_plain_dict
from amg_plugin.report.ending import report_run


def ended(run, folder, **amg):
    """The configuration of a finished run whose files lie in another folder."""
    config = {**run.result["config"], "data": {**run.result["config"]["data"], "save_dir": str(folder)}}
    return from_plain_dict({**config, "amg": {**config["amg"], "report": True, **amg}})


def test_a_report_that_fails_is_a_warning(trained, tmp_path, caplog):
    (tmp_path / "result.json").write_text("{}", encoding="utf-8")
    with caplog.at_level(logging.WARNING, "amg_plugin"):
        assert report_run(ended(trained, tmp_path)) is None
    assert "The report was not written" in caplog.text


def test_without_amg_report_nothing_is_written(trained, tmp_path):
    assert report_run(ended(trained, tmp_path, report=False)) is None
    assert list(tmp_path.iterdir()) == []


def test_training_keeps_the_attention_of_its_network(trained, tmp_path):
    for name in ("result.json", "details.json", "last.pth"):
        (tmp_path / name).write_bytes((trained.folder / name).read_bytes())
    page = report_run(ended(trained, tmp_path)).read_text(encoding="utf-8")
    assert read_checkpoint(tmp_path / "last.pth").plan.is_dense
    assert page.count('aria-label="mean attention of block') == trained.result["config"]["amg"]["override"]["depth"]
    assert "Where blocks look" in page
