"""Figures of checkpoints: one of the whole network, or one of each image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor
from yacs.config import CfgNode

from amg_plugin.checkpoint import Checkpoint
from amg_plugin.deploy.images import as_image, normalized, unit_input
from amg_plugin.engine.calibration import build_calibration, scoring_mode
from amg_plugin.errors import CheckpointError
from amg_plugin.models.vit import backbone_of
from amg_plugin.plots.attention import attention_of_images, check_comparable, lay_out, per_block_norm, spread
from amg_plugin.plots.figures import ModelMaps, draw_image, draw_model
from amg_plugin.pruning.cut import prunable_blocks
from amg_plugin.registries import HEAD_SCORERS, TOKEN_SCORERS
from amg_plugin.runs.setup import assemble, check_identities, fitted, prepare
from amg_plugin.utils.preprocessing import Preprocessing

#: What torchreid takes where a checkpoint does not say.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def check_drawable(checkpoint: Checkpoint, dense: Checkpoint | None) -> None:
    """Check that figures can be made of a checkpoint, and of the one before pruning.

    Raises:
        CheckpointError: A network chooses tokens for each image, or the two do not belong together.
        PlanError: The second cannot have been pruned to the first.
    """
    for given in (checkpoint, dense):
        if given is not None and given.spec.reducer is not None:
            raise CheckpointError(
                f"A network with the reducer '{given.spec.reducer.method}' chooses tokens for each image and has "
                "no fixed positions to draw; figures are made of networks that AMG prunes, and of dense ones."
            )
    if dense is None:
        return
    check_comparable(dense.plan, checkpoint.plan)
    if (dense.spec.arch, dense.spec.image_size) != (checkpoint.spec.arch, checkpoint.spec.image_size):
        raise CheckpointError(
            f"--dense is {dense.spec.arch} for images of {dense.spec.image_size}, but the checkpoint "
            f"{checkpoint.spec.arch} for {checkpoint.spec.image_size}; give the one that it was pruned from."
        )


def figures_of_images(
    checkpoint: Checkpoint, dense: Checkpoint | None, files: Sequence[Path], name: str
) -> Iterator[Figure]:
    """Yield a figure for each file: what each block keeps and where its heads look.

    Raises:
        DataError: A file is not a readable image.
    """
    model = checkpoint.build()
    dense_model = dense and dense.build()
    pruned = not checkpoint.plan.is_dense
    for file in files:
        image = as_image(file)
        picture, inputs = prepared(image, checkpoint)
        after = attention_of_images(model, inputs)[0]
        before = dense and attention_of_images(dense_model, prepared(image, dense)[1])[0]
        note = "" if before or not pruned else "--dense would show the mean before pruning"
        yield draw_image(
            picture,
            after,
            before,
            title=f"Attention in {file.name}",
            subtitle=_summary(checkpoint, name, note),
            after_title="mean\nafter" if pruned else "mean",
        )


def figure_of_network(
    checkpoint: Checkpoint, dense: Checkpoint | None, name: str, calibration: CfgNode | None = None
) -> Figure:
    """The figure of a network: heads and positions that each block keeps.

    Raises:
        InputError: The data, or the checkpoint for this data, cannot be used.
    """
    entropy = importance = None
    note = ""
    if calibration is not None:
        scored = dense or checkpoint
        entropy, importance = scored_maps(calibration, scored)
        note = f"scores of the {'dense' if scored.plan.is_dense else 'pruned'} network on its training data"
    grid = tuple(backbone_of(checkpoint.build()).patch_embed.grid_size)
    return draw_model(
        ModelMaps(checkpoint.plan, grid, entropy, importance),
        title="Heads and positions that are kept",
        subtitle=_summary(checkpoint, name, note),
    )


def scored_maps(cfg: CfgNode, checkpoint: Checkpoint) -> tuple[Tensor, Tensor]:
    """Score heads and positions as pruning does (``amg.calibration``, ``amg.normalize_entropy``).

    Returns:
        Head entropy ``[blocks, heads]`` and position importance / norm of the block ``[blocks, patches]``, numbered as
        in the dense model, NaN for what the network does not have or what can never be pruned.

    Raises:
        InputError: If the data, or the checkpoint for this data, cannot be used.
    """
    from amg_plugin.data.manager import build_datamanager

    prepare(cfg)
    checkpoint = fitted(checkpoint, cfg)
    datamanager = build_datamanager(cfg)
    check_identities(checkpoint, datamanager)
    model = checkpoint.build()
    engine = assemble(cfg, datamanager, model, [], 1)
    blocks, plan = prunable_blocks(model), checkpoint.plan
    with scoring_mode(model, cfg.amg.calibration.mode):
        entropy = HEAD_SCORERS.load("amg")(model, build_calibration(engine, "score heads"), blocks)
        importance = TOKEN_SCORERS.load("amg")(model, build_calibration(engine, "score tokens"), blocks)
    shares = [spread(plan, block) for block in range(plan.depth)]
    importance = [
        values.cpu()[shares[block][1]] / shares[block][2] for block, values in zip(blocks, importance, strict=True)
    ]
    positions = [where.tolist() for where, _, _ in shares]
    return (
        lay_out(entropy, blocks, plan.heads, max(plan.num_heads)),
        per_block_norm(lay_out(importance, blocks, positions, plan.num_patches)),
    )


def prepared(image: Image.Image, checkpoint: Checkpoint) -> tuple[np.ndarray, Tensor]:
    """The image as evaluation resizes it, uint8 ``[height, width, 3]``, and the input ``[1, 3, height, width]``."""
    height, width = checkpoint.spec.image_size
    stored = checkpoint.preprocessing or Preprocessing(height, width, _MEAN, _STD, "bilinear")
    stored = replace(stored, height=height, width=width)
    image = image.resize((width, height), Image.Resampling[stored.interpolation.upper()])
    return np.asarray(image), torch.from_numpy(normalized(unit_input(image, stored), stored))[None]


def _summary(checkpoint: Checkpoint, name: str, note: str = "") -> str:
    plan, spec = checkpoint.plan, checkpoint.spec
    heads, tokens = sum(plan.heads_per_block), sum(plan.tokens_per_block)
    neurons = f", {sum(plan.neurons_per_block)} of {sum(plan.num_neurons)} neurons" if plan.neurons else ""
    return (
        f"{Path(name).parent.name}/{Path(name).name}: {spec.arch}, {spec.image_size[0]}x{spec.image_size[1]}; "
        f"{heads} of {sum(plan.num_heads)} heads, {tokens} of {plan.num_patches * plan.depth} positions "
        f"(variant {plan.variant}){neurons}\n{note}"
    )
