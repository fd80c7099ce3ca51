"""Parity with the published programs: numbers that they produced against those of the plugin.

A parity file is a pair: tensors (inputs, published state dicts, outputs) and a .json with sizes and choices. Everything
is recomputed with the plugin's own readers, recorders, scores and selection.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from amg_plugin.errors import CheckpointError
from amg_plugin.models.build import build_network
from amg_plugin.models.la_transformer import part_averages
from amg_plugin.models.reducers.spec import ReducerSpec
from amg_plugin.models.spec import ModelSpec
from amg_plugin.models.weights import load_strictly
from amg_plugin.paper import load_la_vit, load_transreid
from amg_plugin.paper.accounting import published_accounting
from amg_plugin.pruning import current_plan, select_heads, select_tokens
from amg_plugin.pruning.cut import prunable_blocks
from amg_plugin.pruning.scorers import Calibration, entropy_of_heads, importance_of_tokens

#: Allowed difference of every real number; relative, but for head entropies, which are bits.
TOLERANCE = 1e-4
#: Allowed difference of features after token merging.
MERGING_TOLERANCE = 1e-5
#: Tags that a file of each family must hold, and the one whose model the token scores belong to.
TAGS = {"transreid": ("dense", "heads", "heads_tokens"), "la_vit": ("dense", "tokens"), "tome": ()}
SCORED = {"transreid": "heads", "la_vit": "dense"}
#: Entries that the .json of each family must hold.
_COMMON = ("image_size", "patch_size", "depth", "num_heads", "head_dim", "num_patches", "layer_norm_eps",
           "head.num_to_prune", "head.layer_growth", "head.kept",
           "token.num_to_prune", "token.layer_decay", "token.kept", "flops.dense")  # fmt: skip
FACTS = {
    "transreid": (*_COMMON, "stride", "num_cameras", "sie_coefficient", "shift_num", "shuffle_groups", "divide_length",
                  "neck_feat", "flops.heads_tokens"),
    "la_vit": (*_COMMON, "parts", "flops.tokens"),
    "tome": ("arch", "image_size", "embed_dim", "depth", "num_heads", "tokens_leaving"),
}  # fmt: skip


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
        measure = "equal" if self.tolerance == 0 and self.passed else f"largest difference {self.difference:.2e}"
        if self.tolerance == 0 and not self.passed:
            measure = "different"
        allowed = f" (allowed {self.tolerance:.0e})" if self.tolerance else ""
        note = f"; {self.note}" if self.note else ""
        return f"{'ok  ' if self.passed else 'FAIL'}  {self.quantity}: {measure}{allowed}{note}"


class ParityFile:
    """The two halves of a parity file.

    Args:
        tensors: The .safetensors file.
        facts: The .json file.

    Raises:
        CheckpointError: If one of them is missing or unreadable, the family is unknown, or an entry is missing.
    """

    def __init__(self, tensors: str | Path, facts: str | Path) -> None:
        self.tensor_file, self.fact_file = Path(tensors), Path(facts)
        try:
            self.tensors = load_file(self.tensor_file)
            self.facts = json.loads(self.fact_file.read_text(encoding="utf-8"))
        except Exception as error:  # safetensors' reader raises types of its own
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise CheckpointError(
                f"The parity file '{self.tensor_file}' with '{self.fact_file}' cannot be read: {reason}."
            ) from error
        if not isinstance(self.facts, dict) or self.fact("family") not in TAGS:
            raise CheckpointError(
                f"The family of '{self.fact_file}' is {self.facts.get('family')!r}; allowed: {', '.join(TAGS)}."
                if isinstance(self.facts, dict)
                else f"The parity file '{self.fact_file}' holds no dictionary."
            )
        for name in FACTS[self.family]:
            self.fact(name)

    @property
    def family(self) -> str:
        """Which program the numbers come from."""
        return self.facts["family"]

    @property
    def tags(self) -> list[str]:
        """The models of the file, those that must be there first."""
        present = {name.split(".state.")[0] for name in self.tensors if ".state." in name}
        required = TAGS[self.family]
        return [*required, *sorted(present - set(required))]

    @property
    def batches(self) -> int:
        """Number of calibration batches, at least the two that must be there."""
        count = 2
        while f"input.{count}" in self.tensors:
            count += 1
        return count

    def fact(self, name: str) -> Any:
        """An entry of the .json.

        Raises:
            CheckpointError: If it is missing.
        """
        if name not in self.facts:
            raise CheckpointError(f"The parity file '{self.fact_file}' lacks the key '{name}'.")
        return self.facts[name]

    def tensor(self, name: str) -> Tensor:
        """A tensor.

        Raises:
            CheckpointError: If it is missing.
        """
        if name not in self.tensors:
            raise CheckpointError(f"The parity file '{self.tensor_file}' lacks the key '{name}'.")
        return self.tensors[name]

    def state(self, tag: str) -> dict[str, Tensor]:
        """The published state dict of a model; without a tag the only one.

        Raises:
            CheckpointError: If there is none.
        """
        prefix = f"{tag}.state.".lstrip(".")
        state = {name.removeprefix(prefix): value for name, value in self.tensors.items() if name.startswith(prefix)}
        if not state:
            raise CheckpointError(f"The parity file '{self.tensor_file}' lacks the keys '{prefix}*'.")
        return state

    def labels(self, batch: int) -> Tensor | None:
        """Camera labels of a batch, if the model has cameras."""
        if self.family != "transreid" or not self.fact("num_cameras"):
            return None
        return self.tensor(f"camid.{batch}")

    def build(self, tag: str) -> nn.Module:
        """The plugin's model of a tag, in eval mode.

        Raises:
            CheckpointError: If its state dict is wrong.
        """
        common = ("image_size", "num_heads", "head_dim", "patch_size", "layer_norm_eps")
        arguments = {name: self.fact(name) for name in common}
        try:
            if self.family == "la_vit":
                return load_la_vit(self.state(tag), **arguments)
            own = ("stride", "num_cameras", "sie_coefficient", "shift_num", "shuffle_groups", "divide_length")
            arguments |= {name: self.fact(name) for name in own}
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
    file = ParityFile(tensors, facts)
    if file.family == "tome":
        return _merging(file)
    checked = []
    for tag in file.tags:
        model = file.build(tag)
        outputs = _transreid_outputs if file.family == "transreid" else _la_outputs
        checked += [_compare(f"{tag}.{name}", value, file) for name, value in outputs(file, model)]
        checked += _structure(file, tag, model)
    return [*checked, *_head_scores(file), *_token_scores(file)]


def _merging(file: ParityFile) -> list[Comparison]:
    """Features of a ViT that merges tokens, and how many patches its last tokens stand for."""
    overrides = {name: file.fact(name) for name in ("embed_dim", "depth", "num_heads")}
    reducer = ReducerSpec("tome", file.fact("tokens_leaving"))
    model = build_network(
        ModelSpec(file.fact("arch"), file.fact("image_size"), 1, overrides=overrides, reducer=reducer)
    )
    load_strictly(model.backbone, file.state(""), f"The state dict in '{file.tensor_file}' does not fit")
    sizes: list[Tensor] = []
    model.backbone.blocks[-1].register_forward_hook(lambda block, inputs, outputs: sizes.append(outputs[1]))
    with torch.no_grad():
        features = model.eval().embed(file.tensor("input"))
    return [
        replace(_compare("features", features, file), tolerance=MERGING_TOLERANCE),
        _equal("sizes", sizes[0].tolist(), file.tensor("sizes").tolist()),
    ]


def _compare(name: str, found: Tensor, file: ParityFile) -> Comparison:
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


def _transreid_outputs(file: ParityFile, model: nn.Module) -> list[tuple[str, Tensor]]:
    images, labels = file.tensor("input.0"), file.labels(0)
    with torch.no_grad():
        found = [("features", model.eval()(images, labels))]
        logits, embeddings = model.train()(images, labels)
    for name, values in (("logits", logits), ("embeddings", embeddings)):
        values = values if isinstance(values, list) else [values]
        found += [(f"{name}.{number}", value) for number, value in enumerate(values)]
    return found


def _la_outputs(file: ParityFile, model: nn.Module) -> list[tuple[str, Tensor]]:
    images = file.tensor("input.0")
    with torch.no_grad():
        tokens = model.eval().forward_features(images)
        parts = part_averages(tokens, model.num_prefix_tokens, file.fact("parts"))
        return [("tokens", tokens), ("part_features", parts), ("logits", model(images))]


def _structure(file: ParityFile, tag: str, model: nn.Module) -> list[Comparison]:
    """Sizes, kept heads (their number), kept tokens and the published accounting."""
    plan, blocks = current_plan(model), prunable_blocks(model)
    sizes = {"depth": plan.depth, "num_patches": plan.num_patches}
    checked = [_equal(f"{tag}.{name}", value, file.fact(name)) for name, value in sizes.items()]
    heads = [plan.heads_per_block[block] for block in blocks]
    tokens = [list(plan.tokens[block]) for block in blocks]
    removed = tag.split("_")
    if "heads" in removed:
        checked.append(_equal(f"{tag} number of kept heads", heads, [len(kept) for kept in file.fact("head.kept")]))
        if "head.kept_per_layer" in file.facts:
            checked.append(_equal(f"{tag} head.kept_per_layer", heads, file.fact("head.kept_per_layer")))
    else:
        checked.append(_equal(f"{tag} number of kept heads", heads, [file.fact("num_heads")] * len(blocks)))
    if "tokens" in removed:
        checked.append(_equal(f"{tag} kept tokens", tokens, file.fact("token.kept")))
        lengths = [model_tokens + 1 for model_tokens in map(len, tokens)]
        if "token.kept_per_layer_with_cls" in file.facts:
            expected = file.fact("token.kept_per_layer_with_cls")
            checked.append(_equal(f"{tag} token.kept_per_layer_with_cls", lengths, expected))
    else:
        checked.append(_equal(f"{tag} kept tokens", tokens, [list(range(plan.num_patches))] * len(blocks)))
    if f"flops.{tag}" in file.facts or tag in (TAGS[file.family][0], TAGS[file.family][-1]):
        counted = published_accounting(model)
        found = [counted["macs"], counted["attention_macs"]]
        checked.append(_equal(f"flops.{tag}", found, file.fact(f"flops.{tag}")))
    return checked


def _calibration(file: ParityFile, model: nn.Module, losses: list[float]) -> Calibration:
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


def _head_scores(file: ParityFile) -> list[Comparison]:
    model = file.build("dense").train()
    found = entropy_of_heads(model, _calibration(file, model, []), prunable_blocks(model))
    expected = file.tensor("head_entropy")
    chosen = _selected(select_heads, found, file.fact("head.num_to_prune"), file.fact("head.layer_growth"))
    return [
        _scores("head_entropy", found, expected, lambda a, b: (a - b.double()).abs().max().item()),
        _equal("head.kept", chosen, file.fact("head.kept")),
    ]


def _token_scores(file: ParityFile) -> list[Comparison]:
    model, losses = file.build(SCORED[file.family]).train(), []
    found = importance_of_tokens(model, _calibration(file, model, losses), prunable_blocks(model))
    expected = file.tensor("token_score")
    chosen = _selected(select_tokens, found, file.fact("token.num_to_prune"), file.fact("token.layer_decay"))
    checked = [
        _scores("token_score", found, expected, _relative),
        _equal("token.kept", chosen, file.fact("token.kept")),
    ]
    if "token.losses" in file.facts:
        published = torch.tensor(file.fact("token.losses"), dtype=torch.float64)
        checked.append(Comparison("token.losses", _relative(torch.tensor(losses, dtype=torch.float64), published)))
    return checked


def _scores(
    name: str, found: Sequence[Tensor], expected: Tensor, measure: Callable[[Tensor, Tensor], float]
) -> Comparison:
    """Compare block by block; token scores relative to the largest of their block."""
    shapes = [tuple(values.shape) for values in found]
    if shapes != [tuple(values.shape) for values in expected]:
        return Comparison(name, math.inf, note=f"shapes {shapes} instead of {tuple(expected.shape)}")
    differences = torch.tensor([measure(ours, theirs) for ours, theirs in zip(found, expected, strict=True)])
    return Comparison(name, differences.max().item())  # max keeps NaN


def _selected(select: Callable[..., list[list[int]]], scores: list[Tensor], count: int, weight: float) -> Any:
    try:
        return select(scores, count, weight)
    except ValueError as error:  # scores that are not finite
        return str(error)
