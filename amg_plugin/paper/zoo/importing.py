"""A fetched file as a network of the plugin, and how it compares with its label."""

from __future__ import annotations

from pathlib import Path

from amg_plugin.models.reid import ReIDModel
from amg_plugin.models.weights import read_state_dict
from amg_plugin.paper import load_la_transformer, load_transreid
from amg_plugin.paper.state_dicts import clean
from amg_plugin.paper.tables import build
from amg_plugin.paper.zoo.entries import ZooEntry
from amg_plugin.pruning import current_plan
from amg_plugin.pruning.cut import prunable_blocks


def import_entry(entry: ZooEntry, path: str | Path) -> ReIDModel:
    """Read the file of an entry, as data only, into the network that it holds.

    Args:
        entry: Which one.
        path: The fetched file.

    Returns:
        The network in eval mode; ``plan`` tells what is pruned.

    Raises:
        CheckpointError: If the file is not a checkpoint of the entry's program or sizes.
    """
    state, spec = clean(read_state_dict(path)), entry.spec
    if entry.family == "la":
        return load_la_transformer(
            state, image_size=spec.image_size, num_heads=entry.num_heads, head_dim=entry.head_dim, parts=spec.parts
        )
    return load_transreid(
        state,
        image_size=spec.image_size,
        stride=spec.stride,
        num_heads=entry.num_heads,
        head_dim=entry.head_dim,
        num_cameras=entry.cameras if "base.sie_embed" in state else 0,
        attention_scale=entry.attention_scale,
    )


def remarks(entry: ZooEntry, model: ReIDModel) -> list[str]:
    """How the network that was found compares with what was published about it, as sentences."""
    plan, blocks = current_plan(model), prunable_blocks(model)
    found = [
        sum(plan.num_heads[block] - len(plan.heads[block]) for block in blocks),
        sum(plan.num_patches - len(plan.tokens[block]) for block in blocks),
    ]
    heads, tokens = sum(plan.num_heads[block] for block in blocks), plan.num_patches * len(blocks)
    fitting = [row.key for row in entry.published if list(build(row)[1:]) == found]
    said = [
        f"{found[0]} of {heads} prunable heads and {found[1]} of {tokens} prunable (block, patch) pairs are removed; "
        + (f"row {fitting[0]} of the published tables" if fitting else f"the label says {entry.rates}")
    ]
    if not plan.heads_known:
        said.append("the file does not record which heads were kept, only how many")
    if model.spec.num_classes != entry.spec.num_classes:
        said.append(f"the file knows {model.spec.num_classes} identities, expected were {entry.spec.num_classes}")
    if entry.cameras and model.spec.side_information is None:
        said.append("the file has no camera embedding")
    return said
