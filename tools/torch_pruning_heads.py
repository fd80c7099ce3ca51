"""Heads chosen by Torch-Pruning, the peer that ``compare_methods.py`` sets beside AMG's.

Torch-Pruning (VainF/Torch-Pruning, CVPR 2023) is run, not copied: its pruner takes heads off a copy of the network by
its own Taylor importance, ranked over all blocks; which ones are left is read off its weights. It needs nothing that is
not there already:

    pip install --no-deps --target log/torch_pruning torch-pruning==1.6.1
    PYTHONPATH=log/torch_pruning python tools/compare_methods.py ...
"""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from torch import nn

from amg_plugin.errors import MissingDependencyError, RunError
from amg_plugin.pruning import PruningPlan, apply_plan, current_plan
from amg_plugin.pruning.budget import Goal
from amg_plugin.pruning.scorers import Calibration


def cut_heads(model: nn.Module, calibration: Calibration, goal: Goal) -> PruningPlan:
    """Prune the heads that Torch-Pruning chooses, so many that the saving comes closest to a goal; gives the plan.

    Raises:
        MissingDependencyError: If Torch-Pruning is not installed.
        RunError: If it leaves a block without heads.
    """
    plan = current_plan(model)
    one_less = plan.narrow(heads=[range(count - (block == 0)) for block, count in enumerate(plan.heads_per_block)])
    before = goal.cost.saving(plan)
    # A head costs the same in every block as long as no tokens are gone.
    count = round((goal.saving - before) / (goal.cost.saving(one_less) - before))
    kept = kept_heads(model, calibration, count)
    if not all(kept):
        raise RunError(f"Torch-Pruning leaves no head in block {kept.index([])}; give a smaller --balance.")
    plan = plan.narrow(heads=kept)
    apply_plan(model, plan)
    return plan


def kept_heads(model: nn.Module, calibration: Calibration, count: int) -> list[list[int]]:
    """Per block, the heads that Torch-Pruning keeps when it removes ``count`` in all; the model stays as it is."""
    pruning = _package()
    for batch in calibration.batches():
        calibration.loss(batch).backward()  # its importance reads the gradients of the weights
    gradients = {name: parameter.grad for name, parameter in model.backbone.named_parameters()}
    model.zero_grad(set_to_none=True)
    backbone = copy.deepcopy(model.backbone)
    for name, parameter in backbone.named_parameters():
        parameter.grad = gradients[name]
    heads = {block.attn.qkv: block.attn.num_heads for block in backbone.blocks}
    total = sum(heads.values())
    others = [one for one in backbone.modules() if isinstance(one, nn.Linear | nn.Conv2d) and one not in heads]
    images = torch.zeros(1, 3, *backbone.patch_embed.img_size, device=next(backbone.parameters()).device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the class token, which is none of the layers to prune
        pruner = pruning.pruner.BasePruner(
            backbone,
            images,
            importance=pruning.importance.GroupTaylorImportance(),
            global_pruning=True,
            pruning_ratio=0.5,  # of single dimensions, which prune_head_dims and ignored_layers leave alone
            num_heads=heads,
            prune_num_heads=True,
            prune_head_dims=False,
            head_pruning_ratio=(count - 0.5) / total,  # it rounds what is left down
            ignored_layers=others,
        )
        pruner.step()
    blocks = zip(backbone.blocks, model.backbone.blocks, strict=True)
    return [_left(after.attn.qkv.weight, before.attn) for after, before in blocks]


def _left(weight: torch.Tensor, attention: nn.Module) -> list[int]:
    """Which heads of an attention have their first row of query weights among those that are left."""
    rows = attention.qkv.weight[:: attention.head_dim][: attention.num_heads]
    return [head for head, row in enumerate(rows) if (weight == row).all(1).any()]


def _package() -> Any:
    try:
        import torch_pruning
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            "The method torch_pruning needs the package torch-pruning: see tools/torch_pruning_heads.py."
        ) from error
    return torch_pruning
