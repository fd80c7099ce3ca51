"""The report at the end of a run, which fails for no report."""

from __future__ import annotations

import logging
from pathlib import Path

from yacs.config import CfgNode

from amg_plugin.checkpoint import LAST_CHECKPOINT, Checkpoint, read_checkpoint
from amg_plugin.report.attention import mean_maps
from amg_plugin.report.page import FILE_NAME, write_report
from amg_plugin.report.reading import read_runs
from amg_plugin.runs.details import read_details, write_details
from amg_plugin.runs.result import FILE_NAME as RESULT
from amg_plugin.runs.result import SECTIONS
from amg_plugin.utils.files import read_json

logger = logging.getLogger(__name__)


def report_run(cfg: CfgNode, start: Checkpoint | None = None) -> Path | None:
    """Write ``report.html`` beside the ``result.json`` of a run that has just ended, unless ``amg.report`` is False.

    Args:
        cfg: The run's configuration.
        start: The network that it began with and that its result has a section of; None if it has one section.

    Returns:
        The page; None without one. If it fails, there is a warning.
    """
    if not cfg.amg.report:
        return None
    folder = Path(cfg.data.save_dir)
    try:
        _keep_attention(cfg, folder, start)
        return write_report(folder / FILE_NAME, read_runs([folder]))
    except Exception as error:  # whatever it is, the run has its result
        logger.warning("The report was not written: %s", error)
        logger.debug("traceback of the report", exc_info=True)
        return None


def _keep_attention(cfg: CfgNode, folder: Path, start: Checkpoint | None) -> None:
    """Let the run keep the mean attention of its first and its last network."""
    last = read_checkpoint(folder / LAST_CHECKPOINT)
    if last.spec.reducer is not None:  # which has no fixed positions
        return
    result = read_json(folder / RESULT)
    sections = [name for name in SECTIONS if name in result]
    models = {sections[0]: start, sections[-1]: last} if start is not None else {sections[-1]: last}
    write_details(folder, read_details(folder)["queries"], mean_maps(cfg, models))
