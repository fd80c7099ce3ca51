"""Parity files of the published format, made out of the plugin's own small networks."""

from __future__ import annotations

import copy
import json

import torch
from published_state import CAMERAS, la_vit_state, randomised, transreid, transreid_state
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from amg_plugin.models.la_transformer import part_averages
from amg_plugin.models.vit import build_backbone
from amg_plugin.paper.accounting import published_accounting
from amg_plugin.pruning import apply_plan, current_plan, select_heads, select_tokens
from amg_plugin.pruning.scorers import Calibration, entropy_of_heads, importance_of_tokens


def _inputs(height, width, classes):
    generator = torch.Generator().manual_seed(2)
    tensors = {}
    for batch in range(2):
        tensors[f"input.{batch}"] = torch.randn(4, 3, height, width, generator=generator)
        tensors[f"pid.{batch}"] = torch.randint(classes, (4,), generator=generator)
        tensors[f"camid.{batch}"] = torch.randint(CAMERAS, (4,), generator=generator)
    return tensors


def _score(model, tensors, logits, blocks):
    def loss(batch):
        return F.cross_entropy(logits(model, batch), tensors[f"pid.{batch}"])

    return Calibration(batches=lambda: (0, 1), forward=lambda batch: logits(model, batch), loss=loss)


def transreid_numbers():
    """Tensors and facts of family ``transreid``."""
    dense = transreid()
    tensors, blocks, patches = _inputs(64, 40, 5), [0, 1, 2], 21

    def logits(model, batch):
        return model(tensors[f"input.{batch}"], tensors[f"camid.{batch}"])[0][0]

    def scored(model, scorer):
        model = copy.deepcopy(model).train()
        return scorer(model, _score(model, tensors, logits, blocks), blocks)

    entropy = scored(dense, entropy_of_heads)
    heads = select_heads(entropy, 3, 0.005)
    fewer_heads = apply_plan(copy.deepcopy(dense), current_plan(dense).narrow(heads=[*heads, range(4)]))
    importance = scored(fewer_heads, importance_of_tokens)
    tokens = select_tokens(importance, 20, 0.015)
    both = apply_plan(copy.deepcopy(fewer_heads), current_plan(fewer_heads).narrow(tokens=[*tokens, range(patches)]))
    for tag, model in (("dense", dense), ("heads", fewer_heads), ("heads_tokens", both)):
        tensors |= {f"{tag}.state.{name}": value for name, value in transreid_state(model).items()}
        with torch.no_grad():
            tensors[f"{tag}.features"] = model.eval()(tensors["input.0"], tensors["camid.0"])
            outputs = copy.deepcopy(model).train()(tensors["input.0"], tensors["camid.0"])
        for name, values in zip(("logits", "embeddings"), outputs, strict=True):
            tensors |= {f"{tag}.{name}.{number}": value for number, value in enumerate(values)}
    tensors |= {"head_entropy": torch.stack(entropy).float(), "token_score": torch.stack(importance).float()}
    facts = {
        "family": "transreid", "image_size": [64, 40], "patch_size": 16, "stride": [8, 12], "embed_dim": 32, "depth": 4,
        "num_heads": 4, "head_dim": 8, "num_cameras": CAMERAS, "num_classes": 5, "sie_coefficient": 3.0, "shift_num": 5,
        "shuffle_groups": 2, "divide_length": 4, "layer_norm_eps": 1e-6, "num_patches": patches, "neck_feat": "before",
        "head.num_to_prune": 3, "head.layer_growth": 0.005, "head.kept": heads, "token.num_to_prune": 20,
        "token.layer_decay": 0.015, "token.kept": tokens,
        "flops.dense": _flops(dense), "flops.heads_tokens": _flops(both),
    }  # fmt: skip
    return tensors, facts


def la_vit_numbers():
    """Tensors and facts of family ``la_vit``."""
    tensors, patches = _inputs(64, 64, 5), 16
    overrides = {"embed_dim": 32, "depth": 4, "num_heads": 4, "num_classes": 5}
    dense = randomised(build_backbone("vit_base_patch16_224", image_size=(64, 64), overrides=overrides))

    def scored(scorer):
        model = copy.deepcopy(dense).train()
        calibration = _score(model, tensors, lambda vit, batch: vit(tensors[f"input.{batch}"]), range(4))
        return scorer(model, calibration, range(4))

    entropy, importance = scored(entropy_of_heads), scored(importance_of_tokens)
    tokens = select_tokens(importance, 20, 0.03)
    plan = current_plan(dense).with_variant("kv").narrow(tokens=tokens)
    pruned = apply_plan(copy.deepcopy(dense), plan)
    for tag, vit in (("dense", dense), ("tokens", pruned)):
        tensors |= {f"{tag}.state.{name}": value for name, value in la_vit_state(vit).items()}
        with torch.no_grad():
            tensors[f"{tag}.tokens"] = vit.forward_features(tensors["input.0"])
            tensors[f"{tag}.logits"] = vit(tensors["input.0"])
        tensors[f"{tag}.part_features"] = part_averages(tensors[f"{tag}.tokens"], 1, 4)
    tensors |= {"head_entropy": torch.stack(entropy).float(), "token_score": torch.stack(importance).float()}
    facts = {
        "family": "la_vit", "image_size": [64, 64], "patch_size": 16, "embed_dim": 32, "depth": 4, "num_heads": 4,
        "head_dim": 8, "num_classes": 5, "num_patches": patches, "parts": 4, "layer_norm_eps": 1e-6,
        "head.num_to_prune": 3, "head.layer_growth": 0.02, "head.kept": select_heads(entropy, 3, 0.02),
        "token.num_to_prune": 20, "token.layer_decay": 0.03, "token.kept": tokens,
        "flops.dense": _flops(dense), "flops.tokens": _flops(pruned),
    }  # fmt: skip
    return tensors, facts


PARITY = {"transreid": transreid_numbers, "la_vit": la_vit_numbers}


def _flops(model: nn.Module):
    counted = published_accounting(model)
    return [counted["macs"], counted["attention_macs"]]


def write(folder, tensors, facts):
    """Write the pair; the paths of both files."""
    files = folder / "parity.safetensors", folder / "parity.json"
    save_file({name: value.clone().contiguous() for name, value in tensors.items()}, files[0])
    files[1].write_text(json.dumps(facts))
    return files
