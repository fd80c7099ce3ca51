"""What is measured: networks as plain data, so that a process of its own can build them."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

from torch import nn

from amg_plugin import compat
from amg_plugin.checkpoint import read_checkpoint
from amg_plugin.deploy.exported_file import open_exported
from amg_plugin.deploy.fast import fast, has_fast_form
from amg_plugin.errors import InputError
from amg_plugin.models import complexity
from amg_plugin.models.build import build_network
from amg_plugin.models.reducers.solve import with_reducer
from amg_plugin.models.spec import ARCHITECTURES, ModelSpec
from amg_plugin.pruning import PruningPlan, apply_plan, current_plan
from amg_plugin.pruning.budget import PlanCost
from amg_plugin.pruning.example_plans import example_plan
from amg_plugin.registries.formats import file_size

#: torchreid's light networks that AMG is compared with.
BACKBONES = ("osnet_x1_0", "osnet_x0_25", "mobilenetv2_x1_0", "resnet50")
_IDENTITIES = 751


@dataclass(frozen=True)
class Subject:
    """A network to measure.

    Attributes:
        name: What tables call it.
        kind: ``"checkpoint"`` (weights from a file), ``"structure"`` (random weights), ``"backbone"`` (of torchreid,
            random weights), ``"exported"`` (a file of another runtime; the description is what it was made of).
        image_size: (height, width) in pixels.
        baseline: Name of the dense network that savings are relative to; empty if there is none.
        path: File of a checkpoint or an exported one.
        spec: Description of the dense network of a structure, an exported file or a dense checkpoint.
        plan: What is pruned from it; empty for nothing.
        form: The only form that it runs in; empty if it runs in all of them.
        precision: ``"fp32"``, or that of an exported file.
    """

    name: str
    kind: str
    image_size: tuple[int, int]
    baseline: str = ""
    path: str = ""
    spec: dict[str, Any] = field(default_factory=dict)
    plan: dict[str, Any] = field(default_factory=dict)
    form: str = ""
    precision: str = "fp32"

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    def runs_as(self, form: str) -> bool:
        """Whether it can be measured in a form."""
        return self.form in ("", form)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Subject:
        """Inverse of :meth:`to_dict`."""
        return cls(**{**data, "image_size": tuple(data["image_size"])})

    def build(self) -> nn.Module:
        """The network in eval mode, on the CPU."""
        if self.kind == "checkpoint":
            return read_checkpoint(self.path).build()
        if self.kind == "backbone":
            return _backbone(self.name).eval()
        model = build_network(ModelSpec.from_dict(self.spec)).eval()
        return apply_plan(model, PruningPlan.from_dict(self.plan)) if self.plan else model

    def describe(self) -> dict[str, Any]:
        """Counted cost.

        Returns:
            ``macs`` and ``params`` as everywhere else, ``macs_fast`` of the fast form, ``bytes`` of the weights or
            of the exported file; all without classifier.
        """
        model = self.build()
        try:
            counted = complexity.count(model, *self.image_size)
        except RuntimeError as error:  # what a layer says to a size that is too small
            height, width = self.image_size
            raise InputError(f"{self.name} does not run on images of {height}x{width}: {error}") from error
        counted_fast = complexity.count(fast(model, pack=False), *self.image_size) if has_fast_form(model) else counted
        size = file_size(self.path) if self.kind == "exported" else 4 * counted["params"]
        return {
            "macs": counted["macs"],
            "macs_fast": counted_fast["macs"],
            "params": counted["params"],
            "bytes": size,
        }


def joined(groups: Sequence[Sequence[Subject]]) -> list[Subject]:
    """All subjects in one list: equal ones once, different ones of one name numbered.

    A dense checkpoint is the baseline of what was pruned from a network like it, in place of random weights.

    Args:
        groups: Lists in which baselines are named before what refers to them.
    """
    found: dict[str, Subject] = {}
    dense: dict[str, Subject] = {}
    for one in chain.from_iterable(groups):
        if one.kind == "checkpoint" and not one.baseline:
            dense.setdefault(_network(one), one)
    for group in groups:
        names: dict[str, str] = {}
        for original in group:
            random = original.kind == "structure" and not original.baseline
            subject = dense.get(_network(original), original) if random else original
            subject = replace(subject, baseline=names.get(subject.baseline, subject.baseline))
            name, number = subject.name, 1
            while found.setdefault(subject.name, subject) != subject:
                number += 1
                subject = replace(subject, name=f"{name} ({number})")
            names[original.name] = subject.name
    return list(found.values())


def _network(subject: Subject) -> str:
    return json.dumps(subject.spec, sort_keys=True)


def short_name(path: str) -> str:
    """A file as tables call it: its folder's name and its own."""
    return "/".join(Path(path).parts[-2:])


def _backbone(name: str) -> nn.Module:
    return compat.torchreid().models.build_model(name, num_classes=_IDENTITIES, loss="softmax", pretrained=False)


def from_backbone(name: str, image_size: tuple[int, int]) -> Subject:
    """A network of torchreid by its name.

    Raises:
        InputError: If torchreid has no such network.
    """
    if name not in compat.model_factory() or name in ARCHITECTURES:
        raise InputError(f"--backbones '{name}' is not a network of torchreid; for example {', '.join(BACKBONES)}.")
    return Subject(name=name, kind="backbone", image_size=image_size)


def from_checkpoint(path: str) -> list[Subject]:
    """The dense network of a checkpoint, with random weights, and the checkpoint itself.

    Raises:
        CheckpointError: If the file cannot be used.
    """
    checkpoint = read_checkpoint(path)
    spec = checkpoint.spec
    if checkpoint.plan.is_dense and spec.reducer is None:
        return [Subject(short_name(path), "checkpoint", spec.image_size, path=path, spec=spec.to_dict())]
    dense = _dense(spec)
    return [dense, Subject(short_name(path), "checkpoint", spec.image_size, baseline=dense.name, path=path)]


def from_exported(path: str, batches: Sequence[int]) -> list[Subject]:
    """The dense network of an exported file, with random weights, and the file.

    Args:
        path: A file of ``amg-reid export``.
        batches: Numbers of images that it has to take.

    Raises:
        CheckpointError: If the file cannot be used.
        InputError: If it takes another number of images.
        MissingDependencyError: If its runtime is missing.
    """
    info = open_exported(path).info
    if info.batch is not None and set(batches) != {info.batch}:
        raise InputError(
            f"'{path}' takes {info.batch} image per call, not --batch {' '.join(map(str, batches))}; "
            "export it with --dynamic-batch."
        )
    spec = ModelSpec.from_dict(info.spec)
    dense = _dense(spec)
    name = short_name(path)
    made_of = {"spec": spec.to_dict(), "plan": info.plan, "form": info.file_format, "precision": info.precision}
    return [
        dense,
        Subject(name, "exported", spec.image_size, baseline=dense.name, path=path, **made_of),
    ]


def from_structure(
    model: str,
    plans: list[str],
    image_size: tuple[int, int],
    stride: int = 0,
    variant: str = "block",
    reducers: Sequence[str] = (),
) -> list[Subject]:
    """A dense network with random weights, what is left of it at given rates, and reducers that save as many MACs.

    Args:
        model: ``vit_amg``, ``vit_amg_small``, ``vit_amg_tiny``, or a name of timm's.
        plans: Rates as words, for example ``head25-token25``.
        image_size: (height, width) in pixels.
        stride: Patch stride; 0 means the patch size.
        variant: ``"block"`` or ``"kv"``.
        reducers: Out of ``"tome"`` and ``"evit"``; each is measured with every plan, at the same counted MACs.

    Raises:
        InputError: If a name or a rate is impossible.
        ConfigError: If a reducer cannot save as much.
    """
    spec = ModelSpec(ARCHITECTURES.get(model, model), image_size, _IDENTITIES, stride=stride)
    network = build_network(spec)
    full, grid = current_plan(network).with_variant(variant), network.backbone.patch_embed.grid_size
    dense = _dense(spec)
    subjects = [dense]
    cost = PlanCost.of(network, complexity.count(network, *image_size)["macs"]) if reducers else None
    for words in plans:
        heads, tokens = parse_rates(words)
        plan = example_plan(full, grid, heads, tokens)
        name = f"{words}{'' if variant == 'block' else f' {variant}'} {_title(spec)}"
        subjects.append(
            Subject(name, "structure", image_size, baseline=dense.name, spec=spec.to_dict(), plan=plan.to_dict())
        )
        for method in reducers:
            reduced = with_reducer(spec, method, cost.saving(plan)).to_dict()
            name_of_it = f"{method} like {name}"
            subjects.append(Subject(name_of_it, "structure", image_size, baseline=dense.name, spec=reduced))
    return subjects


def parse_rates(words: str) -> tuple[float, float]:
    """``head25-token25``, ``head40`` or ``token12.5`` as rates of heads and tokens.

    Raises:
        InputError: If the words are something else.
    """
    found = re.fullmatch(r"(?:head(\d+(?:\.\d+)?))?-?(?:token(\d+(?:\.\d+)?))?", words)
    if not words or found is None or not any(found.groups()) or words.startswith("-") or words.endswith("-"):
        raise InputError(f"--plan '{words}' is not understood; write, for example, head25-token25, head40 or token30.")
    heads, tokens = (float(share or 0) / 100 for share in found.groups())
    return heads, tokens


def _dense(spec: ModelSpec) -> Subject:
    """The dense network without a reducer, with random weights."""
    spec = replace(spec, reducer=None)
    return Subject(f"dense {_title(spec)}", "structure", spec.image_size, spec=spec.to_dict())


def _title(spec: ModelSpec) -> str:
    stride = "" if spec.stride == 0 else f" stride {spec.stride}"
    kind = "" if not spec.jigsaw else " jigsaw"
    return f"{spec.arch} {spec.image_size[0]}x{spec.image_size[1]}{stride}{kind}"
