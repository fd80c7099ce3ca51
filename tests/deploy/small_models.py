"""Checkpoints of small networks with weights that matter, one per kind of network."""

from naive_merging import random_merges
from published_state import la_transformer, randomised, transreid

from amg_plugin.checkpoint import save_checkpoint
from amg_plugin.models.build import build_network
from amg_plugin.models.solve import with_reducer
from amg_plugin.models.spec import ModelSpec
from amg_plugin.pruning import apply_plan, current_plan
from amg_plugin.utils.preprocessing import Preprocessing

HEADS = [[0, 2, 3], [1]]
TOKENS = [[0, 2, 3, 5], [1, 2, 7]]
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def plain(arch="vit_tiny_patch16_224", *, heads=None, tokens=None, variant="block", neurons=None, **options):
    """A ViT of two blocks, four heads and eight patches."""
    overrides = {"embed_dim": 32, "depth": 2, "num_heads": 4, "patch_size": 8, **options}
    model = randomised(build_network(ModelSpec(arch, (32, 16), 5, overrides=overrides)))
    plan = current_plan(model).with_variant(variant)
    return apply_plan(model, plan.narrow(heads=heads, tokens=tokens, neurons=neurons))


def merged():
    """A ViT of three blocks whose tokens are merged in groups."""
    overrides = {"embed_dim": 32, "depth": 3, "num_heads": 4, "patch_size": 8}
    model = randomised(build_network(ModelSpec("vit_tiny_patch16_224", (32, 16), 5, overrides=overrides)))
    plan = random_merges(current_plan(model).with_variant("merge"), [1, 2], 0.5)
    return apply_plan(model, plan.narrow(heads=[*HEADS, [1, 2]]))


def with_updates():
    """Tokens that pass around a block get constants, also in the second block, as after a mean over patches."""
    model = plain(tokens=TOKENS)
    apply_plan(model, current_plan(model).with_updates([0, 1]))
    return randomised(model)


NETWORKS = {
    "dense": plain,
    "heads": lambda: plain(heads=HEADS, neurons=[range(5, 68), range(100)]),
    "block": lambda: plain(heads=HEADS, tokens=TOKENS),
    "updates": with_updates,
    "kv": lambda: plain(heads=HEADS, tokens=TOKENS, variant="kv"),
    "transreid": lambda: transreid(
        depth=3, heads=[[0, 2], [1], [0, 1, 2, 3]], tokens=[[0, 3, 5, 20], range(10), range(21)]
    ),
    "merge": merged,
    "la": lambda: la_transformer(tokens=[[0, 3, 5, 11], [1, 3, 4, 15], range(16), [7]]),
}


def reduced(method):
    """A ViT that merges or drops tokens image by image."""
    overrides = {"embed_dim": 32, "depth": 3, "num_heads": 4, "patch_size": 8}
    spec = ModelSpec("vit_tiny_patch16_224", (64, 32), 5, overrides=overrides)
    return randomised(build_network(with_reducer(spec, method, 0.2)))


#: What a graph with constant indices cannot hold; the plugin's own method is compared with them.
REDUCED = {"tome": lambda: reduced("tome"), "evit": lambda: reduced("evit")}
#: OpenVINO's CPU plugin crashes on this one if the number of images is fixed, seen with 2026.4.
FRAGILE = {"fragile": lambda: plain(heads=[[0, 1, 3], [0]], tokens=[range(5), [0, 1, 2, 3, 4, 5, 7]])}


def structured(arch, variant="block", **options):
    """A ViT of another structure, with heads, tokens and neurons pruned."""
    return plain(arch, heads=HEADS, tokens=TOKENS, variant=variant, neurons=[range(5, 20), range(30)], **options)


UNUSUAL = {
    "dynamic_img_size": True,
    "norm_layer": "rmsnorm",
    "scale_attn_norm": True,
    "class_token": False,
    "global_pool": "map",
}
#: Parts of other plain ViTs: gated MLPs, RmsNorm, also over all heads, several image sizes, registers, other pooling.
STRUCTURES = {
    "swiglu": lambda: structured("aimv2_large_patch14_224"),
    "packed_swiglu": lambda: structured("vit_giant_patch14_reg4_dinov2", "kv", **UNUSUAL),
}
#: A class token, registers, rotary positions, a bias without its keys' part.
ROTARY = {"dinov3": lambda: structured("vit_small_patch16_dinov3_qkvb")}
ALL = {**NETWORKS, **REDUCED, **FRAGILE, **STRUCTURES, **ROTARY}


def preprocessing(model):
    return Preprocessing(*model.spec.image_size, MEAN, STD, "bicubic")


#: With places on somebody's disk, which no exported file may name.
CONFIG = {
    "data": {"root": "/secret", "save_dir": "/secret/log", "height": 1},
    "amg": {"weights": "/secret/vit.pth", "distill": {"teacher": "/secret/dense.pth"}},
}


def save(model, path):
    save_checkpoint(path, model, preprocessing=preprocessing(model), config=CONFIG)
    return path
