"""Structure and cost of a checkpoint's network, block by block."""

from __future__ import annotations

from typing import Any

from amg_plugin.checkpoint import Checkpoint
from amg_plugin.models import complexity
from amg_plugin.models.spec import ModelSpec
from amg_plugin.models.vit import backbone_of
from amg_plugin.utils.tables import text_table


def describe(checkpoint: Checkpoint) -> dict[str, Any]:
    """Structure and counted cost of the checkpoint's network."""
    model, spec, plan = checkpoint.build(), checkpoint.spec, checkpoint.plan
    counted = complexity.count(model, *spec.image_size)
    tokens = getattr(model, "tokens_per_block", None) or plan.tokens_per_block
    blocks = [
        {
            "heads": list(plan.heads[index]),
            "tokens": tokens[index],
            "macs": counted["macs_by_module"][f"backbone.blocks.{index}"],
            "params": sum(p.numel() for p in block.parameters()),
        }
        for index, block in enumerate(backbone_of(model).blocks)
    ]
    return {
        "spec": spec.to_dict(),
        "variant": plan.variant,
        "num_heads": list(plan.num_heads),
        "num_patches": plan.num_patches,
        "plan_digest": plan.digest,
        "macs": counted["macs"],
        "params": counted["params"],
        "blocks": blocks,
        "preprocessing": checkpoint.preprocessing.to_dict() if checkpoint.preprocessing else {},
    }


def _published_parts(spec: ModelSpec) -> list[str]:
    """What the network has of TransReID and LA-Transformer, a line each."""
    lines = []
    if side := spec.side_information:
        known = ", ".join(f"{name} {' '.join(map(str, numbers))}" for name, numbers in side.camera_table.items())
        sizes = f"{side.cameras} cameras, {side.views} views" if side.views else f"{side.cameras} cameras"
        lines.append(
            f"side information: {sizes} ({known or 'data set not recorded'}), coefficient {side.coefficient:g}"
        )
    if spec.jigsaw:
        lines.append(f"jigsaw patch module: {spec.jigsaw.parts} parts; the last block is never pruned")
    if spec.head == "parts":
        lines.append(f"part classifiers: {spec.parts}")
    return lines


def render(checkpoint: Checkpoint, content: dict[str, Any]) -> str:
    """The description as text."""
    spec, plan = checkpoint.spec, checkpoint.plan
    rows = [
        [
            str(index),
            f"{len(block['heads'])}/{plan.num_heads[index]}",
            " ".join(map(str, block["heads"])),
            f"{block['tokens']}/{plan.num_patches}",
            f"{block['macs'] / 1e6:.1f}",
            f"{block['params'] / 1e3:.0f}",
        ]
        for index, block in enumerate(content["blocks"])
    ]
    height, width = spec.image_size
    heads, tokens = sum(plan.heads_per_block), sum(block["tokens"] for block in content["blocks"])
    how = f"token variant {plan.variant}"
    if spec.reducer:
        how = f"reducer {spec.reducer.method} (tokens that enter a block; which ones depends on the image)"
    summary = [
        f"{spec.arch}, {height}x{width}, stride {spec.stride or 'patch'}, {spec.num_classes} training identities",
        *_published_parts(spec),
        f"{how}; heads {heads}/{sum(plan.num_heads)}; tokens {tokens}/{plan.num_patches * plan.depth}",
        f"{content['macs']:,} MACs and {content['params']:,} parameters without the classifier",
        f"plan {plan.digest[:16]}",
    ]
    table = text_table(["block", "heads", "kept heads", "tokens", "M MACs", "k params"], rows)
    return "\n".join([*summary, "", table])
