"""What is asked for and measured: networks of checkpoints, of exported files, built, or of torchreid."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from amg_plugin import compat
from amg_plugin.bench.subject import IDENTITIES, Subject, exported_file, short_name
from amg_plugin.checkpoint import is_torchreid_file, read_checkpoint
from amg_plugin.deploy.exported_file import ExportInfo
from amg_plugin.deploy.networks import FeatureGraph, deployed, label_inputs
from amg_plugin.errors import CheckpointError, InputError, RunError
from amg_plugin.models.build import build_network
from amg_plugin.models.solve import with_reducer
from amg_plugin.models.spec import ARCHITECTURES, ModelSpec
from amg_plugin.pruning import current_plan
from amg_plugin.pruning.budget import PlanCost
from amg_plugin.pruning.example_plans import example_plan
from amg_plugin.registries import TARGETS
from amg_plugin.registries.formats import FORMATS
from amg_plugin.utils.preprocessing import Preprocessing

#: torchreid's light networks that AMG is compared with.
BACKBONES = ("osnet_x1_0", "osnet_x0_25", "mobilenetv2_x1_0", "resnet50")


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
    if is_torchreid_file(path):
        raise CheckpointError(
            f"'{path}' is a checkpoint of torchreid's, whose structure processes of their own do not know; 'amg-reid "
            "import --from torchreid' makes one of it that says it."
        )
    checkpoint = read_checkpoint(path)
    spec, one = checkpoint.spec, Subject(short_name(path), "checkpoint", checkpoint.spec.image_size, path=path)
    if checkpoint.plan.is_dense and spec.reducer is None:
        return [replace(one, spec=spec.to_dict())]
    dense = _dense(spec)
    return [dense, replace(one, baseline=dense.name)]


def from_exported(path: str, batches: Sequence[int], trusted: bool) -> list[Subject]:
    """The dense network of an exported file, with random weights, and the file, which has to take the batches."""
    file = exported_file(path, batches, trusted)
    spec = ModelSpec.from_dict(file.spec)
    dense = _dense(spec)
    return [dense, replace(file, image_size=spec.image_size, spec=spec.to_dict(), baseline=dense.name)]


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
    spec = ModelSpec(ARCHITECTURES.get(model, model), image_size, IDENTITIES, stride=stride)
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


def write_form(subject: Subject, form: str, path: Path) -> None:
    """Write a network in an export format, for any number of images, as ``amg-reid export --dynamic-batch`` does.

    Raises:
        RunError: If the exporter fails.
    """
    row = FORMATS.row(form)
    network = subject.build()
    info = ExportInfo(
        file_format=form,
        precision="fp32",
        batch=1 if row.batch == "one" else None,
        inputs=("images", *(label_inputs(network) if hasattr(network, "spec") else ())),
        input="network",
        l2_normalize=False,
        feature_dim=getattr(network, "feature_dim", 1),
        preprocessing=Preprocessing(*subject.image_size, (0.0,) * 3, (1.0,) * 3, "bicubic"),
    )
    try:
        row.load("writer")(FeatureGraph(deployed(network), info).eval(), path, info)
    except RunError as error:
        raise RunError(f"{subject.name} cannot be measured in form {form}: {error}") from error
