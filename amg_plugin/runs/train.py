"""Training of the dense model, or of what a checkpoint holds."""

from __future__ import annotations

from typing import Any

from yacs.config import CfgNode

from amg_plugin.checkpoint import Checkpoint
from amg_plugin.data.labels import TrainingCameras
from amg_plugin.data.manager import build_datamanager
from amg_plugin.engine import BestModelHook, ProgressHook, UnfreezingHook
from amg_plugin.pruning import current_plan
from amg_plugin.runs import result as report
from amg_plugin.runs.setup import assemble, build_model, check_buildable, check_identities, fitted, run_arguments


def train(cfg: CfgNode, checkpoint: Checkpoint | None = None) -> dict[str, Any]:
    """Train the dense model of ``cfg``, or go on from ``checkpoint``.

    Returns:
        Sections of the result; the checkpoints are in ``data.save_dir``.

    Raises:
        InputError: If the network, the data or the checkpoint cannot be used.
        RunError: If the loss is not finite.
    """
    arguments = run_arguments(cfg, cfg.train.max_epoch)
    if checkpoint is None:
        check_buildable(cfg)
    else:
        checkpoint = fitted(checkpoint, cfg)
    datamanager = build_datamanager(cfg)
    if checkpoint is None:
        model = build_model(cfg, datamanager.num_train_pids, TrainingCameras.of(datamanager))
    else:
        check_identities(checkpoint, datamanager.num_train_pids)
        model = checkpoint.build()
    shape = report.structure(model, cfg.data.height, cfg.data.width)
    best = BestModelHook(cfg.data.save_dir)
    freezing = [UnfreezingHook(cfg.amg.unfreeze.every)] if cfg.amg.unfreeze.every else []
    engine = assemble(cfg, datamanager, model, [*freezing, ProgressHook(), best], cfg.train.max_epoch)
    engine.run(**arguments)
    # Going on from a pruned checkpoint is fine-tuning; its figures must not pass for those of a dense model.
    name = "reduced" if model.spec.reducer else "dense" if current_plan(model).is_dense else "finetuned"
    return {name: report.section(engine.results, shape), "best": best.best, "history": engine.history}
