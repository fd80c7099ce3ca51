"""A latency target for ``amg-reid prune``: measured before, turned into a target in MACs, compared afterwards."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm
from yacs.config import CfgNode

from amg_plugin.bench import latency
from amg_plugin.checkpoint import Checkpoint, read_checkpoint
from amg_plugin.data.checks.folders import check_dataset_folder
from amg_plugin.plugin.registry import register
from amg_plugin.pruning.cut import PruningRules
from amg_plugin.runs.setup import check_fits
from amg_plugin.utils.tables import text_table

logger = logging.getLogger(__name__)

Say = Callable[[str], None]


def resolve(
    cfg: CfgNode, checkpoint: Checkpoint, say: Say, *, data: bool = True
) -> tuple[CfgNode, dict[str, Any] | None]:
    """Measure what ``amg.target_latency_saving`` takes.

    Args:
        cfg: The configuration.
        checkpoint: The model that will be pruned.
        say: Gets the table of what was measured.
        data: Look first whether the data sets are there.

    Returns:
        The configuration with ``amg.target_macs_saving`` in place of the target, and what was measured for
        ``result.json``; the configuration as it is and None where there is no such target.

    Raises:
        ConfigError: If the target cannot be met.
        InputError: If it cannot be measured here as ``amg.latency`` says.
        RunError: If measuring fails.
    """
    target = cfg.amg.target_latency_saving
    if not target:
        return cfg, None
    check_fits(checkpoint, cfg)
    if data:
        _check_files(cfg)
    options, plan = cfg.amg.latency, checkpoint.plan
    settings = latency.settings_of(options)
    plan = plan if plan.prunes_tokens else plan.with_variant(cfg.amg.token_variant)
    plans = latency.candidates(checkpoint.spec, plan, target, cfg.amg.balance, PruningRules.from_config(cfg.amg))
    with _bar(settings.total_rounds) as progress:
        found, environment = latency.timings(checkpoint.spec, plans, settings, progress)
    say(_table(target, options, found))
    saving = round(latency.macs_saving_for(target, found), 4)
    say(f"amg.target_latency_saving {target:g} takes amg.target_macs_saving {saving:g}.\n")
    cfg = cfg.clone()
    cfg.defrost()
    cfg.amg.target_macs_saving, cfg.amg.target_latency_saving = saving, 0.0
    cfg.freeze()
    measured = {"target": target, "target_macs_saving": saving, "balance": dict(cfg.amg.balance),
                **dict(options), "expected": [one.to_dict() for one in found], "environment": environment}  # fmt: skip
    return cfg, measured


def compare(measured: dict[str, Any], cfg: CfgNode, pruned: Checkpoint, say: Say) -> dict[str, Any]:
    """Measure the pruned network and say whether the target was met: what :func:`resolve` gave, with ``reached``."""
    settings = latency.settings_of(cfg.amg.latency)
    with _bar(settings.total_rounds) as progress:
        (reached,), _ = latency.timings(pruned.spec, [pruned.plan], settings, progress)
    low, high = reached.quartiles
    say(
        f"latency saved by the pruned model: {reached.time_saved:.1%} (quartiles {low:.1%} to {high:.1%}), target "
        f"{measured['target']:.1%}\n"
    )
    if abs(reached.time_saved - measured["target"]) > latency.TOLERANCE:
        logger.warning(
            "amg.target_latency_saving %g was missed: the pruned model saves %.3f of the latency; blocks lose other "
            "shares than was expected, or the machine was busy in between",
            measured["target"],
            reached.time_saved,
        )
    return {**measured, "reached": reached.to_dict()}


def _check_files(cfg: CfgNode) -> None:
    """Find what is missing before anything is measured; reading it is left to the run."""
    register()
    for name in dict.fromkeys((*cfg.data.sources, *cfg.data.targets)):
        check_dataset_folder(name, cfg.data.root)
    if cfg.amg.distill.enabled and cfg.amg.distill.teacher:
        read_checkpoint(cfg.amg.distill.teacher)


@contextmanager
def _bar(total: int) -> Iterator[Callable[[str, int], None]]:
    with tqdm(total=total, disable=None, leave=False) as bar:

        def progress(what: str, finished: int) -> None:
            bar.set_description(f"latency: {what}", refresh=not finished)
            bar.update(finished)

        yield progress


def _table(target: float, options: Any, found: list[Any]) -> str:
    header = ["MACs saved", "time saved", "quartiles"]
    rows = [
        [f"{one.macs_saved:.1%}", f"{one.time_saved:.1%}", f"{one.quartiles[0]:.1%} to {one.quartiles[1]:.1%}"]
        for one in found
    ]
    head = (
        f"amg.target_latency_saving {target:g}, form {options.form} on {options.device}, {options.threads} thread"
        f"{'s' * (options.threads > 1)}, batch {options.batch}; example plans with random weights, median of "
        f"{options.rounds} rounds against the dense network:"
    )
    return f"{head}\n\n{text_table(header, rows)}\n"
