"""A dense ViT with masks, written out naively, to compare physically pruned models with.

Only the weights and a few numbers are taken from the timm model; nothing of the package and nothing of timm's forward
pass is used. A removed head is a block of zeros in the attention's output, a removed neuron a zero among the hidden
units of the MLP; a removed token is a masked key (variant ``kv``) or a token carried around the block (variant
``block``).
"""

from __future__ import annotations

import copy
import random
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import timm
import torch
from timm.layers import Attention, GluMlp, SwiGLU, SwiGLUPacked
from torch import Tensor, nn
from torch.nn import functional as F

from amg_plugin.models.vit import build_backbone, make_prunable

DEPTH, WIDTH, HEADS = 3, 32, 4


@dataclass(frozen=True)
class Case:
    """One architecture at a size that a test can afford."""

    arch: str
    patch: int = 16
    stride: int = 0
    overrides: dict[str, Any] = field(default_factory=dict)
    attention: dict[str, Any] = field(default_factory=dict)


CASES = {
    "vit": Case("vit_tiny_patch16_224"),
    "distilled": Case("deit_tiny_distilled_patch16_224"),
    "layer_scale": Case("vit_small_patch14_dinov2", patch=14),
    "registers": Case("vit_small_patch14_reg4_dinov2", patch=14),
    "no_class_token": Case("vit_base_patch16_gap_224"),
    "norm_before_blocks": Case("vit_base_patch16_clip_224"),
    "scale_norm": Case("beit3_base_patch16_224"),
    "qk_norm": Case("vit_tiny_patch16_224", overrides={"qk_norm": True}),
    "no_qkv_bias": Case("vit_tiny_patch16_224", overrides={"qkv_bias": False}),
    "gated": Case("vit_tiny_patch16_224", attention={"gated": True}),
    "gated_scale_norm": Case("vit_tiny_patch16_224", attention={"gated": True, "scale_norm": True}),
    "heads_of_other_width": Case("vit_tiny_patch16_224", attention={"attn_head_dim": 5}),
    "overlapping_patches": Case("vit_tiny_patch16_224", stride=12),
    "gated_mlp": Case("vit_tiny_patch16_224", overrides={"mlp_layer": GluMlp, "act_layer": "sigmoid"}),
    "packed_swiglu": Case("vit_tiny_patch16_224", overrides={"mlp_layer": SwiGLUPacked, "act_layer": "silu"}),
    "dinov3": Case("vit_small_patch16_dinov3_qkvb", stride=12),
    "eva02": Case("eva02_base_patch14_224", patch=14, overrides={"scale_attn_inner": True}),
    "rotary": Case("vit_small_patch16_rope_ape_224"),
    "swiglu_norm": Case(
        "vit_tiny_patch16_224", overrides={"mlp_layer": SwiGLU, "act_layer": "silu", "scale_mlp_norm": True}
    ),
}


def build_tiny(case: Case | str = "vit", seed: int = 0, depth: int = DEPTH) -> nn.Module:
    """A dense prunable model of ``case`` in eval mode, with weights so large that every part of it matters."""
    case = CASES[case] if isinstance(case, str) else case
    model = (
        _with_attention(case, depth)
        if case.attention
        else build_backbone(
            case.arch,
            image_size=(5 * case.patch, 3 * case.patch),
            stride=case.stride,
            overrides={"depth": depth, "embed_dim": WIDTH, "num_heads": HEADS, **case.overrides},
        )
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim in (2, 4):
                fan_in = parameter[0].numel()
                parameter.copy_(noise / fan_in**0.5)
            elif "norm" in name and name.endswith("weight"):
                parameter.copy_(1 + 0.3 * noise)
            else:
                parameter.copy_(0.5 * noise)
    return model.eval()


def _with_attention(case: Case, depth: int) -> nn.Module:
    """No name of timm has these options of its attention: the modules are put in by hand."""
    plain = timm.create_model(
        case.arch,
        img_size=(5 * case.patch, 3 * case.patch),
        num_classes=0,
        depth=depth,
        embed_dim=WIDTH,
        num_heads=HEADS,
    )
    norm = partial(nn.LayerNorm, eps=1e-6)
    for block in plain.blocks:
        block.attn = Attention(WIDTH, num_heads=HEADS, qkv_bias=True, norm_layer=norm, **case.attention)
    return make_prunable(plain)


def images_for(model: nn.Module, batch: int = 3, seed: int = 1) -> Tensor:
    """Random images of the model's size and precision."""
    generator = torch.Generator().manual_seed(seed)
    height, width = model.patch_embed.img_size
    dtype = next(model.parameters()).dtype
    return torch.randn(batch, 3, height, width, generator=generator).to(dtype)


def random_choice(sizes: list[int], keep: float, seed: int) -> list[list[int]]:
    """Per block, an ascending random subset of about ``keep`` of the indices, at least one; block 1 keeps one only."""
    generator = random.Random(seed)
    chosen = []
    for block, size in enumerate(sizes):
        count = 1 if block == 1 else max(1, round(keep * size))
        chosen.append(sorted(generator.sample(range(size), count)))
    return chosen


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest feature."""
    return ((actual - expected).abs().max() / expected.abs().max()).item()


class MaskedViT:
    """The dense model with masks for heads and tokens.

    Args:
        model: A dense timm ViT; its state is copied.
    """

    def __init__(self, model: nn.Module) -> None:
        self.state = copy.deepcopy(model.state_dict())
        self.depth = len(model.blocks)
        self.num_heads = model.blocks[0].attn.num_heads
        self.patch = model.patch_embed.patch_size[0]
        self.stride = model.patch_embed.proj.stride[0]
        self.prefix_names = [name for name in ("cls_token", "dist_token", "reg_token") if name in self.state]
        self.embeds_prefix = not model.no_embed_class
        self.eps = model.blocks[0].norm1.eps
        self.activation = type(model.blocks[0].mlp.act).__name__
        self.gate_last = getattr(model.blocks[0].mlp, "gate_last", False)
        rope = getattr(model, "rope", None)
        self.rope = None if rope is None else copy.deepcopy(rope).float().get_embed(shape=model.patch_embed.grid_size)
        self.halves = rope is not None and model.blocks[0].attn.rotate_half

    def __call__(
        self,
        images: Tensor,
        heads: list[list[int]],
        tokens: list[list[int]],
        variant: str,
        key_factors: list[Tensor] | None = None,
        neurons: list[list[int]] | None = None,
        constants: list[Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """All tokens ``[B, N, D]`` before the last norm, and features ``[B, D]``.

        ``key_factors`` scale the columns of the attention after the softmax, per block ``[N]``; the maps themselves
        are kept in ``maps``, per block ``[B, H, N, N]``. ``constants``, per block ``[N, D]`` with the prefix, are added
        to tokens that are carried around a block. Without ``neurons`` every block keeps all of them.
        """
        self.maps, self.key_factors = [], key_factors
        x = self._embed(images)
        prefix = x.shape[1] - self._patches
        for block in range(self.depth):
            takes_part = torch.zeros(x.shape[1], dtype=torch.bool)
            takes_part[:prefix] = True
            takes_part[[prefix + position for position in tokens[block]]] = True
            attended = x + self._scale(block, 1, self._attention(block, x, heads[block], takes_part))
            done = attended + self._scale(block, 2, self._mlp(block, attended, neurons))
            around = x if constants is None else x + constants[block]
            x = torch.where(takes_part[None, :, None], done, around) if variant == "block" else done
        return x, self._features(x, prefix)

    def _embed(self, images: Tensor) -> Tensor:
        patches = F.unfold(images, self.patch, stride=self.stride).transpose(1, 2)
        weight = self.state["patch_embed.proj.weight"].flatten(1)
        x = patches @ weight.T
        if "patch_embed.proj.bias" in self.state:
            x = x + self.state["patch_embed.proj.bias"]
        self._patches = x.shape[1]
        prefix = [self.state[name].expand(len(images), -1, -1) for name in self.prefix_names]
        if "pos_embed" not in self.state:
            x = torch.cat([*prefix, x], dim=1)
        elif self.embeds_prefix:
            x = torch.cat([*prefix, x], dim=1) + self.state["pos_embed"]
        else:
            x = torch.cat([*prefix, x + self.state["pos_embed"]], dim=1)
        return self._norm("norm_pre", x)

    def _attention(self, block: int, x: Tensor, kept_heads: list[int], visible: Tensor) -> Tensor:
        name = f"blocks.{block}.attn"
        y = self._norm(f"blocks.{block}.norm1", x)
        qkv = self._qkv(name, y)
        head_dim = qkv.shape[-1] // 3 // self.num_heads
        outputs, maps = [], []
        for head in range(self.num_heads):
            q, k, v = (
                qkv[..., start : start + head_dim]
                for start in (part * self.num_heads * head_dim + head * head_dim for part in range(3))
            )
            q, k = self._norm(f"{name}.q_norm", q), self._norm(f"{name}.k_norm", k)
            q, k = self._rotated(q), self._rotated(k)
            logits = torch.einsum("bqd,bkd->bqk", q, k) / head_dim**0.5
            exponent = torch.exp(logits - logits.amax(-1, keepdim=True)) * visible
            attention = exponent / exponent.sum(-1, keepdim=True)
            maps.append(attention)
            if self.key_factors is not None:
                attention = attention * self.key_factors[block]
            out = torch.einsum("bqk,bkd->bqd", attention, v)
            outputs.append(out if head in kept_heads else torch.zeros_like(out))
        self.maps.append(torch.stack(maps, dim=1))
        mask = torch.zeros(self.num_heads, head_dim, dtype=x.dtype)
        mask[kept_heads] = 1
        out = self._norm(f"{name}.norm", torch.cat(outputs, dim=-1)) * mask.flatten()
        if f"{name}.gate.weight" in self.state:
            out = out / (1 + torch.exp(-self._linear(f"{name}.gate", y)))
        return self._linear(f"{name}.proj", out)

    def _qkv(self, name: str, y: Tensor) -> Tensor:
        if f"{name}.q_proj.weight" in self.state:
            return torch.cat([self._linear(f"{name}.{part}_proj", y) for part in "qkv"], dim=-1)
        out = self._linear(f"{name}.qkv", y)
        if f"{name}.q_bias" in self.state:  # keys have none
            query, value = self.state[f"{name}.q_bias"], self.state[f"{name}.v_bias"]
            out = out + torch.cat([query, torch.zeros_like(query), value])
        return out

    def _rotated(self, x: Tensor) -> Tensor:
        """Patch tokens ``[B, N, d]`` with pairs of columns turned by the angles of their positions, prefix as it is."""
        if self.rope is None:
            return x
        out, prefix, width = x.clone(), x.shape[1] - len(self.rope), x.shape[-1]
        sines, cosines = self.rope.to(x.dtype).split(width, dim=-1)
        for number in range(width // 2):
            first, second = (number, number + width // 2) if self.halves else (2 * number, 2 * number + 1)
            a, b, sine, cosine = x[:, prefix:, first], x[:, prefix:, second], sines[:, first], cosines[:, first]
            out[:, prefix:, first] = a * cosine - b * sine
            out[:, prefix:, second] = b * cosine + a * sine
        return out

    def _mlp(self, block: int, x: Tensor, neurons: list[list[int]] | None) -> Tensor:
        name = f"blocks.{block}.mlp"
        y, count = self._norm(f"blocks.{block}.norm2", x), self.state[f"{name}.fc2.weight"].shape[1]
        if f"{name}.fc1_g.weight" in self.state:
            hidden = self._activated(self._linear(f"{name}.fc1_g", y)) * self._linear(f"{name}.fc1_x", y)
        else:
            hidden = self._linear(f"{name}.fc1", y)
            if hidden.shape[-1] == 2 * count:
                gate, hidden = hidden.split(count, -1)[:: -1 if self.gate_last else 1]
                hidden = hidden * self._activated(gate)
            else:
                hidden = self._activated(hidden)
        mask = torch.zeros(count, dtype=x.dtype)
        mask[list(range(count) if neurons is None else neurons[block])] = 1
        return self._linear(f"{name}.fc2", self._norm(f"{name}.norm", hidden * mask) * mask)

    def _activated(self, x: Tensor) -> Tensor:
        if self.activation == "GELU":
            return x * 0.5 * (1 + torch.erf(x / 2**0.5))
        return (x if self.activation == "SiLU" else 1) / (1 + torch.exp(-x))

    def _scale(self, block: int, number: int, x: Tensor) -> Tensor:
        name = f"blocks.{block}"
        return x * self.state.get(f"{name}.ls{number}.gamma", self.state.get(f"{name}.gamma_{number}", 1))

    def _linear(self, name: str, x: Tensor) -> Tensor:
        out = x @ self.state[f"{name}.weight"].T
        return out + self.state[f"{name}.bias"] if f"{name}.bias" in self.state else out

    def _norm(self, name: str, x: Tensor) -> Tensor:
        if f"{name}.weight" not in self.state:
            return x
        centred = x - x.mean(-1, keepdim=True)
        x = centred / (centred.square().mean(-1, keepdim=True) + self.eps).sqrt()
        return x * self.state[f"{name}.weight"] + self.state[f"{name}.bias"]

    def _features(self, x: Tensor, prefix: int) -> Tensor:
        x = self._norm("norm", x)
        if "dist_token" in self.state:
            return (x[:, 0] + x[:, 1]) / 2
        pooled = x[:, 0] if "cls_token" in self.state else x[:, prefix:].mean(1)
        return self._norm("fc_norm", pooled)
