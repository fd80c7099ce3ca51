"""Calibration passes over the training set, for scoring."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from amg_plugin.data.seeding import CALIBRATION, SeededSampler, begin
from amg_plugin.models.vit import temporarily, unwrap
from amg_plugin.pruning.scorers import Calibration
from amg_plugin.utils import processes, stopping
from amg_plugin.utils.finite import check_finite

if TYPE_CHECKING:
    from amg_plugin.engine.hooked import HookedEngine


def calibration_loader(engine: HookedEngine, augment: bool = False) -> DataLoader:
    """A loader of the training images in an order of its own: without augmentation, unless that is wanted."""
    loader = engine.train_loader
    dataset, sampler = loader.dataset, loader.sampler
    if not augment:
        dataset = copy.copy(dataset)
        dataset.transform, dataset.k_tfm = engine.datamanager.transform_te, 1
    if isinstance(sampler, SeededSampler):
        sampler = sampler.other(purpose=CALIBRATION)
    return DataLoader(
        dataset,
        batch_size=loader.batch_size,
        sampler=sampler,
        num_workers=loader.num_workers,
        pin_memory=loader.pin_memory,
        drop_last=loader.drop_last,
        generator=torch.Generator().manual_seed(engine.cfg.train.seed),
    )


def build_calibration(
    engine: HookedEngine, label: str, images: int = 0, network: nn.Module | None = None
) -> Calibration:
    """What scorers may run, as ``amg.calibration`` says.

    Args:
        engine: The engine, whose training data and task loss are used.
        label: What the progress bar says.
        images: Instead of what ``amg.calibration`` says, plain images in batches that hold at least so many, as far as
            there are.
        network: A copy of the engine's network to run in its place.

    Where several processes share a run, each gets its slices of the batches, and losses are shares of the global one.
    Features and losses that are NaN or infinite end the pass with a RunError that names their images.
    """
    options, model = engine.cfg.amg.calibration, unwrap(engine.model if network is None else network)
    loader = calibration_loader(engine, options.augment and not images)
    wanted = math.ceil(images / (loader.batch_size * processes.world())) if images else options.batches
    length = min(wanted, len(loader)) if wanted else len(loader)

    number = 0

    def checked(values: Tensor, what: str) -> Tensor:
        names, rows = engine.batch["impath"], values.detach().float().cpu()
        where = f"{what} in batch {number} of '{label}' before epoch {engine.epoch + 1}"
        check_finite((rows if rows.ndim else rows.repeat(len(names))).numpy(), where, names)
        return values

    def batches() -> Iterator[tuple[Tensor, Tensor, tuple[Tensor | None, ...]]]:
        nonlocal number
        number = 0
        begin(loader, engine.epoch)  # every pass over the same images in the same order
        for data in tqdm(islice(loader, length), total=length, desc=label, leave=False, disable=None):
            number += 1
            stopping.check()
            images, pids = engine.parse_data_for_train(data)
            yield images.to(engine.device), pids.to(engine.device), engine.labels_for(model)

    def forward(batch: tuple[Tensor, Tensor, tuple[Tensor | None, ...]]) -> Tensor:
        images, _, labels = batch
        return checked(model.embed(images, *labels), "features")

    def loss(batch: tuple[Tensor, Tensor, tuple[Tensor | None, ...]]) -> Tensor:
        images, pids, labels = batch
        whole = checked(engine.task_loss(*processes.gather((model.training_outputs(images, *labels), pids))), "losses")
        return whole / processes.world()  # gradients are those of the sum over the processes

    return Calibration(
        batches=batches,
        forward=forward,
        loss=loss,
        reduce=processes.reducer(),
        seed=engine.cfg.train.seed,
        normalize_entropy=engine.cfg.amg.normalize_entropy,
    )


@contextmanager
def scoring_mode(model: nn.Module, mode: str) -> Iterator[None]:
    """Put the network into ``"train"`` or ``"eval"`` mode; modes and running statistics are restored.

    Meanwhile float32 is float32: neither autocast nor TF32, which a GPU takes for convolutions unless told otherwise.
    """
    products = [torch.backends.cudnn.conv, torch.backends.cuda.matmul]
    device = next(model.parameters()).device.type
    statistics = {
        name: value.clone() for name, value in model.named_buffers() if "running" in name or "tracked" in name
    }
    try:
        with (
            temporarily("training", mode == "train", model.modules()),
            temporarily("fp32_precision", "ieee", products),
            torch.autocast(device, enabled=False),
        ):
            yield
    finally:
        with torch.no_grad():
            for name, value in model.named_buffers():
                if name in statistics:
                    value.copy_(statistics[name])
