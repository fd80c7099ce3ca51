"""Multiply-accumulate operations and parameters, counted on what really runs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

#: Modules that a re-ID system does not run when it extracts features.
CLASSIFIERS = (
    "classifier", "head", "head_dist", "classifiers", "local_classifiers", "classifier_global", "classifier_local"
)  # fmt: skip


def count(model: nn.Module, height: int, width: int) -> dict[str, Any]:
    """Count one forward pass in eval mode over one image.

    Matrix products, convolutions and the two attention products are counted, by torch's own counter; norms, softmax
    and additions are not. Fused attention is switched off while counting, since some releases of torch count it as 0
    on the CPU.

    Args:
        model: Any network that takes images ``[1, 3, height, width]``; DataParallel is unwrapped.
        height: Image height in pixels.
        width: Image width in pixels.

    Returns:
        ``{"macs": int, "params": int, "macs_by_module": {name: int}}``, without the classifier.
    """
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        model = model.module
    reference = next(model.parameters())
    image = torch.zeros(1, 3, height, width, device=reference.device, dtype=reference.dtype)
    with _evaluating(model), explicit_attention(model), torch.no_grad(), FlopCounterMode(display=False) as counter:
        if getattr(model, "uses_cameras", False):
            model(image, *torch.zeros(2, 1, dtype=torch.int64, device=image.device))
        else:
            model(image)
    by_module = {}
    for full_name, operations in counter.get_flop_counts().items():
        name = "" if "." not in full_name else full_name.split(".", 1)[1]
        if full_name != "Global" and not is_classifier(name):
            by_module[name] = sum(operations.values()) // 2
    total = counter.get_total_flops() // 2
    total -= sum(
        sum(operations.values()) // 2
        for full_name, operations in counter.get_flop_counts().items()
        if "." in full_name and is_classifier(full_name.split(".", 1)[1])
    )
    by_module.pop("", None)
    return {"macs": total, "params": count_parameters(model), "macs_by_module": by_module}


def count_parameters(model: nn.Module) -> int:
    """Number of parameters without the classifier."""
    return sum(value.numel() for name, value in model.named_parameters() if not is_classifier(name.rsplit(".", 1)[0]))


def is_classifier(name: str) -> bool:
    """Whether a module, by its full name, belongs to a classifier."""
    return re.fullmatch(rf"(backbone\.)?({'|'.join(CLASSIFIERS)})(\..+)?", name) is not None


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    learning = [value for value in model.parameters() if value.requires_grad]
    model.eval()
    for value in learning:  # torch's counter stumbles over views of them
        value.requires_grad_(False)
    try:
        yield
    finally:
        for value in learning:
            value.requires_grad_(True)
        for module, training in modes:
            module.training = training


@contextmanager
def explicit_attention(model: nn.Module) -> Iterator[None]:
    """Replace fused attention by its separate products for the time being."""
    fused = [module for module in model.modules() if getattr(module, "fused_attn", False)]
    for module in fused:
        module.fused_attn = False
    try:
        yield
    finally:
        for module in fused:
            module.fused_attn = True
