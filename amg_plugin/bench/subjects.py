"""What is asked for and measured: networks as plain data, so that a process of its own can build them."""

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
from amg_plugin.models.solve import with_reducer
from amg_plugin.models.spec import ARCHITECTURES, ModelSpec
from amg_plugin.pruning import PruningPlan, apply_plan, current_plan
from amg_plugin.pruning.budget import PlanCost
from amg_plugin.pruning.example_plans import example_plan
from amg_plugin.registries import TARGETS
from amg_plugin.registries.formats import NETWORK_FORMS, file_format, file_size, forms

#: torchreid's light networks that AMG is compared with.
BACKBONES = ("osnet_x1_0", "osnet_x0_25", "mobilenetv2_x1_0", "resnet50")
_IDENTITIES = 751
_SIZE = (256, 128)


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

    to_dict = asdict

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
            create = compat.torchreid().models.build_model
            return create(self.name, num_classes=_IDENTITIES, loss="softmax", pretrained=False).eval()
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
        macs, params = counted["macs"], counted["params"]
        return {"macs": macs, "macs_fast": counted_fast["macs"], "params": params, "bytes": size}


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


def _short_name(path: str) -> str:
    """A file as tables call it: its folder's name and its own."""
    return "/".join(Path(path).parts[-2:])


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
    spec, one = checkpoint.spec, Subject(_short_name(path), "checkpoint", checkpoint.spec.image_size, path=path)
    if checkpoint.plan.is_dense and spec.reducer is None:
        return [replace(one, spec=spec.to_dict())]
    dense = _dense(spec)
    return [dense, replace(one, baseline=dense.name)]


def _from_exported(path: str, batches: Sequence[int], trusted: bool) -> list[Subject]:
    """The dense network of an exported file, with random weights, and the file, which has to take the batches."""
    info = open_exported(path, trusted=trusted).info
    if info.batch is not None and set(batches) != {info.batch}:
        raise InputError(
            f"'{path}' takes {info.batch} image per call, not --batch {' '.join(map(str, batches))}; "
            "export it with --dynamic-batch."
        )
    spec = ModelSpec.from_dict(info.spec)
    dense = _dense(spec)
    made_of = {"spec": spec.to_dict(), "plan": info.plan, "form": info.file_format, "precision": info.precision}
    return [dense, Subject(_short_name(path), "exported", spec.image_size, dense.name, path, **made_of)]


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
    subjects = [dense := _dense(spec)]
    cost = PlanCost.of(network) if reducers else None
    for words in plans:
        plan = example_plan(full, grid, parse_rates(words))
        name = f"{words}{'' if variant == 'block' else f' {variant}'} {_title(spec)}"
        pruned = Subject(name, "structure", image_size, dense.name, spec=spec.to_dict(), plan=plan.to_dict())
        subjects.append(pruned)
        for method in reducers:
            reduced = with_reducer(spec, method, cost.saving(plan)).to_dict()
            subjects.append(replace(pruned, name=f"{method} like {name}", spec=reduced, plan={}))
    return subjects


def parse_rates(words: str) -> dict[str, float]:
    """``head25-token25``, ``head40`` or ``token12.5-neuron30`` as rates of heads, tokens and neurons.

    Raises:
        InputError: If the words are something else.
    """
    share = r"(\d+(?:\.\d+)?)"
    found = re.fullmatch(rf"(?:-head{share})?(?:-token{share})?(?:-neuron{share})?", f"-{words}")
    if found is None or not any(found.groups()):
        raise InputError(
            f"--plan '{words}' is not understood; write, for example, head25-token25, head40 or token30-neuron20."
        )
    return {target: float(rate or 0) / 100 for target, rate in zip(TARGETS, found.groups(), strict=True)}


def _dense(spec: ModelSpec) -> Subject:
    """The dense network without a reducer, with random weights."""
    spec = replace(spec, reducer=None)
    return Subject(f"dense {_title(spec)}", "structure", spec.image_size, spec=spec.to_dict())


def _title(spec: ModelSpec) -> str:
    height, width = spec.image_size
    stride = f" stride {spec.stride}" if spec.stride != 0 else ""
    return f"{spec.arch} {height}x{width}{stride}{' jigsaw' if spec.jigsaw else ''}"


@dataclass(frozen=True)
class Request:
    """Networks and forms as the command line names them, option by option; ``forms=None`` is what suits all of them."""

    checkpoints: Sequence[str] = ()
    model: Sequence[str] = ()
    plan: Sequence[str] = ()
    variant: str = "block"
    reducers: Sequence[str] = ()
    stride: int = 0
    height: int | None = None
    width: int | None = None
    backbones: Sequence[str] = ()
    forms: Sequence[str] | None = None
    batch: Sequence[int] = (1,)
    trusted: bool = False

    def _check(self) -> None:
        """Check what can be known without opening a file."""
        built, sized = bool(self.model or self.backbones), not (self.height is None and self.width is None)
        faults = {
            "--plan needs --model, the network that it prunes.": self.plan and not self.model,
            "--reducers needs --plan, whose MACs they are brought to.": self.reducers and not self.plan,
            "There is nothing to measure: give checkpoints, --model or --backbones.": not (self.checkpoints or built),
            "--variant and --stride are for --model; a checkpoint has its own.": (
                not self.model and (self.variant != "block" or self.stride)
            ),
            "--height and --width are for --model and --backbones; a checkpoint has a size of its own.": (
                sized and not built
            ),
            f"--height {self.image_size[0]} --width {self.image_size[1]} is impossible; allowed are numbers from 1.": (
                min(self.image_size) < 1
            ),
        }
        for sentence, applies in faults.items():
            if applies:
                raise InputError(sentence)

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of what has no checkpoint."""
        return tuple(usual if n is None else n for n, usual in zip((self.height, self.width), _SIZE, strict=True))

    def chosen_forms(self) -> tuple[str, ...]:
        """The forms to measure in.

        Raises:
            InputError: If one is unknown, or an exported file runs in none of them.
        """
        if unknown := set(self.forms or ()) - set(forms()):
            raise InputError(f"--forms '{min(unknown)}' is unknown; allowed are {', '.join(forms())}.")
        formats = {path: file_format(path) if Path(path).is_file() else None for path in self.checkpoints}
        if self.forms is not None:
            for path, found in formats.items():
                if found not in (None, *self.forms):
                    said = f"'{path}' runs in the form {found} only: add it to --forms, or leave --forms out."
                    raise InputError(said)
            return tuple(dict.fromkeys(self.forms))
        in_torch = self.model or self.backbones or not formats or None in formats.values()
        return tuple(dict.fromkeys([*(NETWORK_FORMS if in_torch else ()), *filter(None, formats.values())]))

    def subjects(self) -> list[Subject]:
        """The networks, each with its dense one.

        Raises:
            InputError: If something given cannot be measured.
        """
        self._check()
        groups = [
            _from_exported(path, self.batch, self.trusted)
            if Path(path).is_file() and file_format(path)
            else from_checkpoint(path)
            for path in self.checkpoints
        ]
        reducers = list(dict.fromkeys(self.reducers))
        groups += [
            from_structure(model, self.plan, self.image_size, self.stride, self.variant, reducers)
            for model in self.model
        ]
        return joined([*groups, [from_backbone(name, self.image_size) for name in self.backbones]])
