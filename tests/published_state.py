"""State dicts in the form of the published programs, made out of the plugin's own small networks.

The forward direction (our names and patch positions to theirs) is written down here on its own, so that the readers
are not tested against themselves.
"""

from __future__ import annotations

import torch

from amg_plugin.models.build import build_network
from amg_plugin.models.spec import ModelSpec
from amg_plugin.pruning import apply_plan, current_plan

ARCH = "vit_base_patch16_224"
TINY = {"embed_dim": 32, "depth": 4, "num_heads": 4}
CAMERAS = 3


def randomised(model):
    """Give every parameter and statistic values that matter."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                value.copy_(0.3 * torch.randn(value.shape, generator=generator))
                if name.endswith("running_var"):
                    value.abs_().add_(0.5)
    return model.eval()


def transreid(*, heads=None, tokens=None, jigsaw=True, cameras=CAMERAS, stride=(8, 12), **options):
    """A small TransReID network of 7 x 3 overlapping patches, pruned as told."""
    spec = ModelSpec(
        ARCH,
        (64, 40),
        5,
        stride=stride,
        loss="triplet",
        neck_feat="before",
        overrides={**TINY, **options},
        side_information={"cameras": cameras} if cameras else None,
        jigsaw={} if jigsaw else None,
    )
    model = randomised(build_network(spec))
    return _pruned(model, heads, tokens, "block")


def la_transformer(*, heads=None, tokens=None, parts=4):
    """A small LA-Transformer of 16 patches, pruned as told."""
    spec = ModelSpec(ARCH, (64, 64), 5, overrides=TINY, head="parts", parts=parts)
    return _pruned(randomised(build_network(spec)), heads, tokens, "kv")


def _pruned(model, heads, tokens, variant):
    plan = current_plan(model).with_variant(variant)
    return apply_plan(model, plan.narrow(heads=heads, tokens=tokens))


def masks_of(plan, *, moved):
    """Token masks, class token first, in the order in which the tokens arrive at each block."""
    order, masks = list(range(plan.num_patches + 1)), []
    for kept in plan.tokens:
        held = {0, *(position + 1 for position in kept)}
        masks.append(torch.tensor([token in held for token in order]))
        if moved:
            order = sorted(order, key=lambda token: token not in held)
    return masks


def transreid_state(model):
    """What TransReID's program would have saved of ``model``, tensors that it never uses included."""
    ours, last = model.state_dict(), len(model.backbone.blocks) - 1
    jigsaw = model.jigsaw is not None
    width = model.backbone.embed_dim
    state = {}
    for name, value in ours.items():
        if name.startswith("backbone."):
            state["base." + name.removeprefix("backbone.")] = value
        elif name == "side_information.embedding":
            state["base.sie_embed"] = value[:, None]
        elif name.startswith("jigsaw."):
            place = name.removeprefix("jigsaw.").replace("block.", "0.", 1).replace("norm.", "1.", 1)
            place = place if name.startswith("jigsaw.block.") else "1." + name.removeprefix("jigsaw.norm.")
            state["b2." + place] = value
        elif name.startswith("local_"):
            kind, number, rest = name.removeprefix("local_").split(".", 2)
            state[f"{kind[:-1]}_{int(number) + 1}.{rest}"] = value
        else:
            state[name] = value
    for number, mask in enumerate(masks_of(current_plan(model), moved=True)):
        state[f"base.blocks.{number}.attn.token_index"] = mask
    if jigsaw:
        prefix = f"base.blocks.{last}."
        for name in [name for name in state if name.startswith(prefix)]:
            state["b1.0." + name.removeprefix(prefix)] = state[name]
            state[name] = torch.zeros_like(state[name])
        state["b2.0.attn.token_index"] = state["b1.0.attn.token_index"]
        for name in ("weight", "bias"):
            state[f"b1.1.{name}"] = state[f"base.norm.{name}"]
            state[f"base.norm.{name}"] = torch.zeros(width)
    state["base.fc.weight"], state["base.fc.bias"] = torch.zeros(7, width), torch.zeros(7)
    return state


def la_vit_state(vit, prefix=""):
    """What the LA program would have saved of its ViT."""
    state = {prefix + name: value for name, value in vit.state_dict().items()}
    for number, mask in enumerate(masks_of(current_plan(vit), moved=False)):
        state[f"{prefix}blocks.{number}.attn.token_index"] = mask
    return state


def la_transformer_state(model):
    """What the LA program would have saved of ``model``."""
    state = la_vit_state(model.backbone, "model.")
    state["cls_token"], state["pos_embed"] = state["model.cls_token"], state["model.pos_embed"]
    state["model.head.weight"], state["model.head.bias"] = torch.zeros(7, 32), torch.zeros(7)
    places = {"reduce": "add_block.0", "norm": "add_block.1", "classify": "classifier.0"}
    for name, value in model.state_dict().items():
        if name.startswith("classifiers."):
            _, number, layer, rest = name.split(".", 3)
            state[f"classifier{number}.{places[layer]}.{rest}"] = value
    return state
