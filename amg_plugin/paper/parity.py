"""Parity with the published programs: numbers that they produced against those of the plugin.

A parity file is a pair: tensors (inputs, published state dicts, outputs) and a .json with sizes and choices. Everything
is recomputed with the plugin's own readers, recorders, scores and selection.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from amg_plugin.errors import CheckpointError, shown
from amg_plugin.models.build import build_network
from amg_plugin.models.la_transformer import part_averages
from amg_plugin.models.spec import ModelSpec, ReducerSpec
from amg_plugin.models.weights import load_strictly
from amg_plugin.paper import load_la_vit, load_transreid
from amg_plugin.paper.accounting import published_accounting
from amg_plugin.pruning import current_plan, select_heads, select_tokens
from amg_plugin.pruning.cut import prunable_blocks
from amg_plugin.pruning.scorers import Calibration, entropy_of_heads, importance_of_tokens
from amg_plugin.utils.files import read_json

#: Allowed difference of every real number; relative, but for head entropies, which are bits.
TOLERANCE = 1e-4
#: Allowed difference of features after token merging.
MERGING_TOLERANCE = 1e-5
#: Tags that a file of each family must hold, and the one whose model the token scores belong to.
TAGS = {"transreid": ("dense", "heads", "heads_tokens"), "la_vit": ("dense", "tokens"), "tome": ()}
SCORED = {"transreid": "heads", "la_vit": "dense"}
#: Entries that the .json of each family must hold.
_SHARED = ("image_size", "patch_size", "num_heads", "head_dim", "layer_norm_eps")
_TRANSREID = ("stride", "num_cameras", "sie_coefficient", "shift_num", "shuffle_groups", "divide_length")
_COMMON = (*_SHARED, "depth", "num_patches", "head.num_to_prune", "head.layer_growth", "head.kept",
           "token.num_to_prune", "token.layer_decay", "token.kept", "flops.dense")  # fmt: skip
FACTS = {
    "transreid": (*_COMMON, *_TRANSREID, "neck_feat", "flops.heads_tokens"),
    "la_vit": (*_COMMON, "parts", "flops.tokens"),
    "tome": ("arch", "image_size", "embed_dim", "depth", "num_heads", "tokens_leaving"),
}


@dataclass(frozen=True)
class Comparison:
    """One quantity of a parity file.

    Attributes:
        quantity: Its name in the file, or what was compared.
        difference: Largest difference; 0 or infinity where only equality counts.
        tolerance: Largest difference allowed.
        note: What else there is to say.
    """

    quantity: str
    difference: float
    tolerance: float = TOLERANCE
    note: str = ""

    @property
    def passed(self) -> bool:
        """Whether the difference is allowed; not a number is not."""
        return self.difference <= self.tolerance

    def __str__(self) -> str:
        measure = f"largest difference {self.difference:.2e} (allowed {self.tolerance:.0e})"
        if self.tolerance == 0:
            measure = "equal" if self.passed else "different"
        note = f"; {self.note}" if self.note else ""
        return f"{'ok  ' if self.passed else 'FAIL'}  {self.quantity}: {measure}{note}"


class _ParityFile:
    """The two halves of a parity file; what is missing or wrong in one of them is a CheckpointError."""

    def __init__(self, tensors: str | Path, facts: str | Path) -> None:
        self.tensor_file, self.fact_file = Path(tensors), Path(facts)
        try:
            self.tensors = load_file(self.tensor_file)
            self.facts = read_json(self.fact_file)
        except Exception as error:  # safetensors' reader raises types of its own
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise CheckpointError(
                f"The parity file '{self.tensor_file}' with '{self.fact_file}' cannot be read: {reason}."
            ) from error
        if not isinstance(self.facts, dict):
            raise CheckpointError(f"The parity file '{self.fact_file}' holds no dictionary.")
        self.family = self.fact("family")
        if not isinstance(self.family, str) or self.family not in TAGS:
            raise CheckpointError(
                f"The family of '{self.fact_file}' is {shown(self.family)}; allowed: {', '.join(TAGS)}."
            )
        for name in FACTS[self.family]:
            self.fact(name)
        present = {name.split(".state.")[0] for name in self.tensors if ".state." in name}
        self.tags = [*TAGS[self.family], *sorted(present - set(TAGS[self.family]))]
        # Calibration batches, at least the two that must be there.
        self.batches = next(number for number in count(2) if f"input.{number}" not in self.tensors)

    def fact(self, name: str) -> Any:
        """An entry of the .json."""
        if name not in self.facts:
            raise CheckpointError(f"The parity file '{self.fact_file}' lacks the key '{name}'.")
        return self.facts[name]

    def tensor(self, name: str) -> Tensor:
        """An entry of the .safetensors."""
        if name not in self.tensors:
            raise CheckpointError(f"The parity file '{self.tensor_file}' lacks the key '{name}'.")
        return self.tensors[name]

    def state(self, tag: str) -> dict[str, Tensor]:
        """The published state dict of a model; without a tag the only one."""
        prefix = f"{tag}.state.".lstrip(".")
        state = {name.removeprefix(prefix): value for name, value in self.tensors.items() if name.startswith(prefix)}
        if not state:
            raise CheckpointError(f"The parity file '{self.tensor_file}' lacks the keys '{prefix}*'.")
        return state

    def labels(self, batch: int) -> Tensor | None:
        """Camera labels of a batch, if the model has cameras."""
        return self.tensor(f"camid.{batch}") if self.facts.get("num_cameras") else None

    def build(self, tag: str) -> nn.Module:
        """The plugin's model of a tag, in eval mode."""
        arguments = {name: self.fact(name) for name in _SHARED}
        try:
            if self.family == "la_vit":
                return load_la_vit(self.state(tag), **arguments)
            arguments |= {name: self.fact(name) for name in _TRANSREID}
            arguments |= {name: self.facts[name] for name in ("num_views", "attention_scale") if name in self.facts}
            model = load_transreid(self.state(tag), **arguments)
        except CheckpointError as error:
            raise CheckpointError(f"'{tag}.state' of '{self.tensor_file}' cannot be used: {error}") from error
        model.spec = replace(model.spec, neck_feat=self.fact("neck_feat"))
        return model


def check_parity(tensors: str | Path, facts: str | Path) -> list[Comparison]:
    """Compare everything that a parity file holds.

    Args:
        tensors: The .safetensors file.
        facts: The .json file.

    Returns:
        One entry per quantity.

    Raises:
        CheckpointError: If a key is missing or a state dict cannot be used.
    """
    file = _ParityFile(tensors, facts)
    if file.family == "tome":
        return _merging(file)
    checked = []
    for tag in file.tags:
        model = file.build(tag)
        outputs = _transreid_outputs if file.family == "transreid" else _la_outputs
        checked += [_compare(f"{tag}.{name}", value, file) for name, value in outputs(file, model)]
        checked += _structure(file, tag, model)
    return [*checked, *_head_scores(file), *_token_scores(file)]


def _merging(file: _ParityFile) -> list[Comparison]:
    """Features of a ViT that merges tokens, and how many patches its last tokens stand for."""
    overrides = {name: file.fact(name) for name in ("embed_dim", "depth", "num_heads")}
    reducer = ReducerSpec("tome", file.fact("tokens_leaving"))
    spec = ModelSpec(file.fact("arch"), file.fact("image_size"), 1, overrides=overrides, reducer=reducer)
    model = build_network(spec)
    load_strictly(model.backbone, file.state(""), f"The state dict in '{file.tensor_file}' does not fit")
    sizes: list[Tensor] = []
    model.backbone.blocks[-1].register_forward_hook(lambda block, inputs, outputs: sizes.append(outputs[1]))
    with torch.no_grad():
        features = model.eval().embed(file.tensor("input"))
    return [
        replace(_compare("features", features, file), tolerance=MERGING_TOLERANCE),
        _equal("sizes", sizes[0].tolist(), file.tensor("sizes").tolist()),
    ]


def _compare(name: str, found: Tensor, file: _ParityFile) -> Comparison:
    expected = file.tensor(name)
    if found.shape != expected.shape:
        return Comparison(name, math.inf, note=f"shape {tuple(found.shape)} instead of {tuple(expected.shape)}")
    return Comparison(name, _relative(found, expected))


def _relative(found: Tensor, expected: Tensor) -> float:
    """Largest difference, as a share of the largest value."""
    difference, largest = (found.double() - expected.double()).abs().max().item(), expected.abs().max().item()
    return difference / largest if largest else difference


def _equal(name: str, found: Any, expected: Any) -> Comparison:
    same = found == expected
    return Comparison(name, 0.0 if same else math.inf, 0.0, "" if same else f"{found} instead of {expected}")


def _transreid_outputs(file: _ParityFile, model: nn.Module) -> list[tuple[str, Tensor]]:
    images, labels = file.tensor("input.0"), file.labels(0)
    with torch.no_grad():
        found = [("features", model.eval()(images, labels))]
        logits, embeddings = model.train()(images, labels)
    for name, values in (("logits", logits), ("embeddings", embeddings)):
        values = values if isinstance(values, list) else [values]
        found += [(f"{name}.{number}", value) for number, value in enumerate(values)]
    return found


def _la_outputs(file: _ParityFile, model: nn.Module) -> list[tuple[str, Tensor]]:
    images = file.tensor("input.0")
    with torch.no_grad():
        tokens = model.eval().forward_features(images)
        parts = part_averages(tokens, model.num_prefix_tokens, file.fact("parts"))
        return [("tokens", tokens), ("part_features", parts), ("logits", model(images))]


def _structure(file: _ParityFile, tag: str, model: nn.Module) -> list[Comparison]:
    """Sizes, kept heads (their number), kept tokens and the published accounting."""
    plan, blocks, removed = current_plan(model), prunable_blocks(model), tag.split("_")
    heads, expected_heads = [plan.heads_per_block[block] for block in blocks], [file.fact("num_heads")] * len(blocks)
    tokens, expected_tokens = [list(plan.tokens[block]) for block in blocks], [[*range(plan.num_patches)]] * len(blocks)
    optional: dict[str, Any] = {}
    if "heads" in removed:
        expected_heads, optional["head.kept_per_layer"] = [len(kept) for kept in file.fact("head.kept")], heads
    if "tokens" in removed:
        expected_tokens = file.fact("token.kept")
        optional["token.kept_per_layer_with_cls"] = [len(kept) + 1 for kept in tokens]
    checked = [
        _equal(f"{tag}.depth", plan.depth, file.fact("depth")),
        _equal(f"{tag}.num_patches", plan.num_patches, file.fact("num_patches")),
        _equal(f"{tag} number of kept heads", heads, expected_heads),
        _equal(f"{tag} kept tokens", tokens, expected_tokens),
        *(_equal(f"{tag} {name}", found, file.fact(name)) for name, found in optional.items() if name in file.facts),
    ]
    if f"flops.{tag}" in file.facts:
        counted = published_accounting(model)
        found = [counted["macs"], counted["attention_macs"]]
        checked.append(_equal(f"flops.{tag}", found, file.fact(f"flops.{tag}")))
    return checked


def _calibration(file: _ParityFile, model: nn.Module, losses: list[float]) -> Calibration:
    """Both batches in training mode, with the cross entropy of the global (or only) classifier."""

    def logits(batch: int) -> Tensor:
        if file.family == "la_vit":
            return model(file.tensor(f"input.{batch}"))
        found = model(file.tensor(f"input.{batch}"), file.labels(batch))[0]
        return found[0] if isinstance(found, list) else found

    def loss(batch: int) -> Tensor:
        value = F.cross_entropy(logits(batch), file.tensor(f"pid.{batch}"))
        losses.append(value.item())
        return value

    return Calibration(batches=lambda: range(file.batches), forward=logits, loss=loss)


def _head_scores(file: _ParityFile) -> list[Comparison]:
    model = file.build("dense").train()
    found = entropy_of_heads(model, _calibration(file, model, []), prunable_blocks(model))
    return [
        _scores("head_entropy", found, file, lambda ours, theirs: (ours - theirs.double()).abs().max().item()),
        _selected("head.kept", file, select_heads, found, "head.num_to_prune", "head.layer_growth"),
    ]


def _token_scores(file: _ParityFile) -> list[Comparison]:
    model, losses = file.build(SCORED[file.family]).train(), []
    found = importance_of_tokens(model, _calibration(file, model, losses), prunable_blocks(model))
    checked = [
        _scores("token_score", found, file, _relative),
        _selected("token.kept", file, select_tokens, found, "token.num_to_prune", "token.layer_decay"),
    ]
    if "token.losses" in file.facts:
        published = torch.tensor(file.fact("token.losses"), dtype=torch.float64)
        checked.append(Comparison("token.losses", _relative(torch.tensor(losses, dtype=torch.float64), published)))
    return checked


def _scores(
    name: str, found: Sequence[Tensor], file: _ParityFile, measure: Callable[[Tensor, Tensor], float]
) -> Comparison:
    """Compare block by block; token scores relative to the largest of their block."""
    shapes, expected = [tuple(values.shape) for values in found], file.tensor(name)
    if shapes != [tuple(values.shape) for values in expected]:
        return Comparison(name, math.inf, note=f"shapes {shapes} instead of {tuple(expected.shape)}")
    differences = torch.tensor([measure(ours, theirs) for ours, theirs in zip(found, expected, strict=True)])
    return Comparison(name, differences.max().item())  # max keeps NaN


def _selected(
    name: str, file: _ParityFile, select: Callable[..., list[list[int]]], scores: list[Tensor], total: str, weight: str
) -> Comparison:
    try:
        found: Any = select(scores, file.fact(total), file.fact(weight))
    except ValueError as error:  # scores that are not finite
        found = str(error)
    return _equal(name, found, file.fact(name))
