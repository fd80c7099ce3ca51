"""Every network of timm that the plugin accepts, pruned and in each form: plain, fast, ONNX.

Each name of timm is built at a tiny size (three blocks of width 32, patches of 8 pixels) with random weights; the kinds
of its parts stay as the name says. Heads, tokens (variants ``block`` and ``kv``, and ``merge`` where positions are
not rotary) and neurons are pruned at random, and the fast form is compared with the plain network. Names with the same
parts form a structure; the first name of each is exported as ONNX as well, in one of the variants in turn, and run in
ONNX Runtime.

Writes one row per structure and one per reason to refuse a name; leaves with 1 if any difference is above the limit.

Usage:
  python tools/check_networks.py --output docs/results/networks.md
  python tools/check_networks.py --names vit_giant_patch14_dinov2 'aimv2_*' --no-onnx
"""

from __future__ import annotations

import argparse
import random
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from amg_plugin.checkpoint import save_checkpoint
from amg_plugin.deploy.export import ExportOptions, export
from amg_plugin.deploy.fast import fast
from amg_plugin.errors import AMGError, InputError
from amg_plugin.models.build import build_network
from amg_plugin.models.reid import ReIDModel
from amg_plugin.models.spec import ModelSpec
from amg_plugin.pruning import PruningPlan, apply_plan, current_plan
from amg_plugin.utils.environment import versions
from amg_plugin.utils.files import check_output, write_text
from amg_plugin.utils.preprocessing import Preprocessing
from amg_plugin.utils.tables import markdown_table

TINY = {"depth": 3, "embed_dim": 32, "num_heads": 4, "patch_size": 8}
IMAGE = (40, 24)
VARIANTS = ("block", "kv", "merge")
#: Largest difference, relative to the largest feature, of the fast form; exports have limits of their own.
LIMIT = 1e-5


@dataclass
class Structure:
    """Names whose networks have the same parts, and the largest difference of each form."""

    parts: tuple[str, ...]
    names: list[str] = field(default_factory=list)
    fast: float = 0.0
    onnx: float | None = None
    faults: list[str] = field(default_factory=list)


def build(name: str, variant: str | None = None) -> ReIDModel:
    """The network of a name at a tiny size, with weights that matter; pruned in a variant if one is given."""
    model = build_network(ModelSpec(name, IMAGE, 5, overrides=TINY)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for key, value in model.state_dict().items():
            if value.is_floating_point():
                noise = torch.randn(value.shape, generator=generator)
                scale = value[0].numel() ** -0.5 if value.ndim in (2, 4) else 0.3
                around_1 = "norm" in key and value.ndim == 1
                value.copy_(noise.exp() if "running_var" in key else scale * noise + around_1)
    return model if variant is None else apply_plan(model, pruned(current_plan(model), variant))


def pruned(plan: PruningPlan, variant: str) -> PruningPlan:
    """Half of the heads, tokens and neurons of a plan, chosen at random."""
    chosen = random.Random(0)

    def half(totals: Iterable[int]) -> list[list[int]]:
        return [sorted(chosen.sample(range(total), total // 2)) for total in totals]

    plan = plan.with_variant(variant).narrow(heads=half(plan.num_heads), neurons=half(plan.num_neurons))
    if variant != "merge":
        return plan.narrow(tokens=half([plan.num_patches] * plan.depth))
    alone = [[position] for position in range(plan.num_patches)]
    pairs = [group for first, second in zip(alone[::2], alone[1::2], strict=False) for group in [first + second]]
    pairs += alone[-1:] if plan.num_patches % 2 else []
    groups = [alone, *[pairs] * (plan.depth - 1)]
    return plan.merge([[group[0] for group in block] for block in groups], groups)


def variants(vit: VisionTransformer) -> tuple[str, ...]:
    """In which ways tokens of a ViT are pruned."""
    return VARIANTS if getattr(vit, "rope", None) is None else VARIANTS[:2]


def parts_of(vit: VisionTransformer) -> tuple[str, ...]:
    """What tells the structure of a ViT from others, the first block for all."""
    block, found = vit.blocks[0], []
    for path in ("norm_pre", "norm", "fc_norm", "attn_pool", "patch_embed.norm", "blocks.0.norm1", "rope"):
        part = vit.get_submodule(path) if path not in ("attn_pool", "rope") else getattr(vit, path, None)
        if part is not None and not isinstance(part, nn.Identity):
            found.append(f"{path.removeprefix('blocks.0.')} {type(part).__name__}")
    for path in ("attn.q_norm", "attn.norm", "mlp.norm", "mlp", "mlp.act"):
        part = block.get_submodule(path)
        if not isinstance(part, nn.Identity):
            found.append(f"{path} {type(part).__name__}")
    biases = {"qkv": block.attn.packed()[1], "proj": block.attn.proj.bias, "fc2": block.mlp.fc2.bias}
    without = [name for name, bias in {**biases, "patch": vit.patch_embed.proj.bias}.items() if bias is None]
    found += ["layer scale"] if block.layer_scale(1) is not None else []
    found += ["separate projections"] if block.attn.qkv is None else []
    found += [f"no bias in {', '.join(without)}"] if without else []
    found += [f"{vit.num_prefix_tokens} prefix tokens", "class token" if vit.has_class_token else vit.global_pool]
    found += ["no position for prefix tokens"] if vit.no_embed_class and vit.num_prefix_tokens else []
    found += ["dynamic_img_size"] if vit.dynamic_img_size else []
    return (type(vit).__name__, *found)


@torch.no_grad()
def fast_difference(model: ReIDModel) -> float:
    """Largest difference of the fast form, packed and not, relative to the largest feature."""
    images = torch.randn(3, 3, *IMAGE, generator=torch.Generator().manual_seed(1))
    expected = model(images)
    forms = [fast(model, pack=False), fast(model)]
    return max(((form(images) - expected).abs().max() / expected.abs().max()).item() for form in forms)


def onnx_difference(model: ReIDModel) -> float:
    """The same of an ONNX file in ONNX Runtime; raises AMGError if it cannot be written, or differs too much."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint, output = Path(folder, "model.pth"), Path(folder, "model.onnx")
        save_checkpoint(checkpoint, model, preprocessing=Preprocessing.of_torchreid(IMAGE))
        outcome = export(checkpoint, ExportOptions("onnx", output, dynamic_batch=True))
    return outcome["comparison"]["relative_difference"]


def refusal(error: AMGError) -> str:
    """The reason for which a name is refused, without what is its own."""
    reason = str(error).split("; allowed")[0]
    if re.search("does not take a plain ViT's arguments|timm cannot build", reason):
        return "it does not take a plain ViT's arguments (sizes, depth, heads)"
    return reason


def check(names: Sequence[str], with_onnx: bool) -> tuple[list[Structure], Counter[str]]:
    """Build, prune and compare; gives the structures and how often a reason refused a name."""
    structures: dict[tuple[str, ...], Structure] = {}
    refused: Counter[str] = Counter()
    for name in names:
        try:
            vit = build(name).backbone
        except AMGError as error:
            refused[refusal(error)] += 1
            continue
        structure = structures.setdefault(parts_of(vit), Structure(parts_of(vit)))
        structure.names.append(name)
        for variant in (None, *variants(vit)):
            try:
                difference = fast_difference(build(name, variant))
            except Exception as error:  # whatever it is, it is what this script looks for
                structure.faults.append(f"{name}, {variant or 'dense'}: {type(error).__name__}: {error}")
                continue
            structure.fast = max(structure.fast, difference)
            if not difference <= LIMIT:
                structure.faults.append(f"{name}, {variant or 'dense'}: {difference:.1e}")
    for turn, structure in enumerate(structures.values() if with_onnx else ()):
        try:
            possible = variants(build(structure.names[0]).backbone)
            variant = possible[turn % len(possible)]
            structure.onnx = onnx_difference(build(structure.names[0], variant))
        except Exception as error:
            structure.faults.append(f"{structure.names[0]}, {variant}, ONNX: {type(error).__name__}: {error}")
    return list(structures.values()), refused


def report(structures: Sequence[Structure], refused: Counter[str]) -> str:
    """The page in Markdown."""
    accepted = sum(len(structure.names) for structure in structures)
    faults = [fault for structure in structures for fault in structure.faults]
    used = versions("torch", "timm", "onnx", "onnxruntime")
    packages = ", ".join(f"{name} {version}" for name, version in used.items())
    rows = [
        [
            structure.names[0],
            str(len(structure.names)),
            "; ".join(structure.parts),
            f"{structure.fast:.0e}",
            "" if structure.onnx is None else f"{structure.onnx:.0e}",
        ]
        for structure in sorted(structures, key=lambda one: -len(one.names))
    ]
    lines = [
        "# Networks of timm",
        "",
        "Generated by `tools/check_networks.py`; do not edit.",
        "",
        f"{accepted} names of timm in {len(structures)} structures are accepted, {refused.total()} are refused, "
        f"{len(faults)} fail. {packages}.",
        "",
        "Each name was built at a tiny size with random weights; half of its heads, tokens (`block`, `kv`, and `merge`",
        "where positions are not rotary) and neurons were pruned at random. *fast* is the largest difference of the",
        "fast form from the plain network, relative to the largest feature, over all names of the structure, dense and",
        "in the variants. *onnx* is that of an ONNX file of the first name, in one variant, in ONNX Runtime.",
        "",
        markdown_table(["first name", "names", "parts", "fast", "onnx"], rows, left=(0, 2)),
        "",
        "## All names",
        "",
        *(f"- {', '.join(f'`{name}`' for name in structure.names)}" for structure in structures),
        "",
        "## Refused",
        "",
        markdown_table(["reason", "names"], [[reason, str(count)] for reason, count in refused.most_common()]),
    ]
    return "\n".join([*lines, *(["", "## Failed", "", *(f"- {fault}" for fault in faults)] if faults else []), ""])


def main() -> int:
    """Check the networks and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", nargs="+", default=["*"], help="names of timm or patterns (default: all)")
    parser.add_argument("--no-onnx", action="store_true", help="do not export, which takes seconds a structure")
    parser.add_argument("--output", type=Path, help="Markdown file (default: print)")
    options = parser.parse_args()
    if options.output is not None:
        check_output(options.output)
    torch.set_num_threads(1)
    names = [name for name in timm.list_models() if any(fnmatch(name, pattern) for pattern in options.names)]
    if not names:
        raise InputError(f"timm has no model named {', '.join(options.names)}.")
    structures, refused = check(names, not options.no_onnx)
    text = report(structures, refused)
    if options.output is None:
        print(text)
    else:
        write_text(options.output, text)
    return int(any(structure.faults for structure in structures))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except AMGError as error:
        print(f"check_networks: error: {error}", file=sys.stderr)
        sys.exit(error.exit_status)
