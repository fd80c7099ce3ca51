"""Multiply-accumulate operations and parameters: counted on what really runs, and in closed form for searches."""

from __future__ import annotations

import re
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from timm.models.vision_transformer import Block
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from amg_plugin.models.vit import temporarily, unwrap

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
    model = unwrap(model)
    reference = next(model.parameters())
    image = torch.zeros(1, 3, height, width, device=reference.device, dtype=reference.dtype)
    evaluating = temporarily("training", False, model.modules())
    frozen = temporarily("requires_grad", False, model.parameters())  # torch's counter fails on views of parameters
    first = torch.zeros(1, dtype=torch.int64, device=image.device)
    labels = (first, first) if getattr(model, "uses_cameras", False) else ()
    with evaluating, frozen, explicit_attention(model), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(image, *labels)
    counts = {  # by full name, in front of which torch puts the class of the network
        name.partition(".")[2]: sum(operations.values()) // 2
        for name, operations in counter.get_flop_counts().items()
        if name != "Global"
    }
    classifiers = {name: macs for name, macs in counts.items() if is_classifier(name)}
    return {
        "macs": counter.get_total_flops() // 2 - sum(classifiers.values()),
        "params": count_parameters(model),
        "macs_by_module": {name: macs for name, macs in counts.items() if name and name not in classifiers},
    }


def count_parameters(model: nn.Module) -> int:
    """Number of parameters without the classifier."""
    return sum(value.numel() for name, value in model.named_parameters() if not is_classifier(name.rsplit(".", 1)[0]))


def count_constants(model: nn.Module) -> int:
    """Number of values in the constant updates of carried tokens: buffers, which are no parameters and not trained."""
    return sum(value.numel() for name, value in model.named_buffers() if name.endswith("token_update"))


def is_classifier(name: str) -> bool:
    """Whether a module, by its full name, belongs to a classifier."""
    return re.fullmatch(rf"(backbone\.)?({'|'.join(CLASSIFIERS)})(\..+)?", name) is not None


def explicit_attention(model: nn.Module) -> AbstractContextManager[None]:
    """Replace fused attention by its separate products for the time being."""
    return temporarily("fused_attn", False, model.modules())


@dataclass(frozen=True)
class BlockCost:
    """What one block of a plain ViT costs, as a function of what it keeps: :func:`count` in closed form.

    Attributes:
        width, head_dim: Width of the embedding and of a head.
        inward: Linear maps from the embedding to the width of all heads per query: query, and gate if there is one.
        layers: Linear maps between the embedding and a hidden unit of the MLP: 2, or 3 where it is gated.
        head_params, neuron_params: Parameters that a head and a hidden unit own.
    """

    width: int
    head_dim: int
    inward: int
    layers: int
    head_params: int
    neuron_params: int

    @classmethod
    def of(cls, block: Block) -> BlockCost:
        """Read the sizes of a block, pruned or not."""
        attention, mlp = block.attn, block.mlp
        hidden = mlp.fc2.in_features
        common = ("proj.bias", "q_norm.", "k_norm.")  # what no single head owns
        tensors = [value for name, value in attention.named_parameters() if not name.startswith(common)]
        linears = [module for module in mlp.modules() if isinstance(module, nn.Linear)]
        unowned = 0 if mlp.fc2.bias is None else mlp.fc2.bias.numel()
        return cls(
            width=attention.proj.out_features,
            head_dim=attention.head_dim,
            inward=1 + (attention.gate is not None),
            layers=sum(linear.weight.numel() for linear in linears) // (hidden * attention.proj.out_features),
            head_params=sum(value.numel() for value in tensors) // attention.num_heads,
            neuron_params=(sum(value.numel() for value in mlp.parameters()) - unowned) // hidden,
        )

    def macs(self, heads: int, neurons: int, queries: int, keys: int, rows: int) -> int:
        """Operations of one image, of whose tokens some are queries, some are keys and some pass the MLP (rows)."""
        across = heads * self.head_dim
        linear = queries * (self.inward + 1) + keys * 2  # query (and gate), output; key and value
        return linear * self.width * across + 2 * queries * keys * across + rows * self.layers * self.width * neurons
