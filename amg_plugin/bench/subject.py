"""A network that is measured, as plain data, so that a process of its own can build or open it.

Light: where a file of another runtime is measured on a device without PyTorch, nothing here needs it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amg_plugin import compat
from amg_plugin.deploy.exported_file import open_exported
from amg_plugin.errors import InputError
from amg_plugin.registries.formats import file_size

if TYPE_CHECKING:
    from torch import nn

#: Classes of networks with random weights.
IDENTITIES = 751


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
        from amg_plugin.checkpoint import read_checkpoint
        from amg_plugin.models.build import build_network
        from amg_plugin.models.spec import ModelSpec
        from amg_plugin.pruning import PruningPlan, apply_plan

        if self.kind == "checkpoint":
            return read_checkpoint(self.path).build()
        if self.kind == "backbone":
            create = compat.torchreid().models.build_model
            return create(self.name, num_classes=IDENTITIES, loss="softmax", pretrained=False).eval()
        model = build_network(ModelSpec.from_dict(self.spec)).eval()
        return apply_plan(model, PruningPlan.from_dict(self.plan)) if self.plan else model

    def describe(self) -> dict[str, Any]:
        """Counted cost.

        Returns:
            ``macs`` and ``params`` as everywhere else, ``macs_fast`` of the fast form, ``bytes`` of the weights or
            of the exported file; all without classifier. Of a file, only ``bytes`` is known where torch is not
            installed.
        """
        if self.kind == "exported" and not compat.is_installed("torch"):
            return {"macs": None, "macs_fast": None, "params": None, "bytes": file_size(self.path)}
        from amg_plugin.deploy.fast import fast, has_fast_form
        from amg_plugin.models import complexity

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


def short_name(path: str) -> str:
    """A file as tables call it: its folder's name and its own."""
    return "/".join(Path(path).parts[-2:])


def exported_file(path: str, batches: Sequence[int], trusted: bool) -> Subject:
    """A file of ``amg-reid export``, which has to take the batches.

    Raises:
        InputError: If it does not.
        CheckpointError: If it cannot be opened.
    """
    info = open_exported(path, trusted=trusted).info
    if info.batch is not None and set(batches) != {info.batch}:
        raise InputError(
            f"'{path}' takes {info.batch} image per call, not --batch {' '.join(map(str, batches))}; "
            "export it with --dynamic-batch."
        )
    made_of = {"spec": info.spec, "plan": info.plan, "form": info.file_format, "precision": info.precision}
    return Subject(short_name(path), "exported", info.image_size, path=path, **made_of)
