"""Scores of a checkpoint's network on its training data, for the figure of the network."""

from __future__ import annotations

from torch import Tensor
from yacs.config import CfgNode

from amg_plugin.checkpoint import Checkpoint
from amg_plugin.engine.calibration import build_calibration, scoring_mode
from amg_plugin.plots.attention import lay_out, per_block_norm
from amg_plugin.pruning.cut import prunable_blocks
from amg_plugin.registries.tables import HEAD_SCORERS, TOKEN_SCORERS
from amg_plugin.runs.setup import assemble, prepare, restore_model


def scored_maps(cfg: CfgNode, checkpoint: Checkpoint) -> tuple[Tensor, Tensor]:
    """Score heads and positions as pruning does (``amg.calibration``, ``amg.normalize_entropy``).

    Args:
        cfg: The configuration; its training data is read.
        checkpoint: The network.

    Returns:
        Head entropy ``[blocks, heads]`` and position importance / norm of the block ``[blocks, patches]``, numbered as
        in the dense model, NaN for what the network does not have or what can never be pruned.

    Raises:
        InputError: If the data, or the checkpoint for this data, cannot be used.
    """
    from amg_plugin.data.manager import build_datamanager

    prepare(cfg)
    datamanager = build_datamanager(cfg)
    model = restore_model(checkpoint, cfg, datamanager.num_train_pids)
    engine = assemble(cfg, datamanager, model, [], 1)
    blocks, plan = prunable_blocks(model), checkpoint.plan
    with scoring_mode(model, cfg.amg.calibration.mode):
        entropy = HEAD_SCORERS.load("amg")(model, build_calibration(engine, "score heads"), blocks)
        importance = TOKEN_SCORERS.load("amg")(model, build_calibration(engine, "score tokens"), blocks)
    return (
        lay_out(entropy, blocks, plan.heads, max(plan.num_heads)),
        per_block_norm(lay_out(importance, blocks, plan.tokens, plan.num_patches)),
    )
