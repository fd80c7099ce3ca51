"""Model cards: what a checkpoint or an exported file says of itself, in the Markdown that model hubs read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import yaml

from amg_plugin.checkpoint import Checkpoint, read_checkpoint
from amg_plugin.deploy.exported_file import ExportInfo, open_exported
from amg_plugin.deploy.networks import as_checkpoint
from amg_plugin.errors import CheckpointError
from amg_plugin.models import complexity
from amg_plugin.models.build import build_network
from amg_plugin.pruning import apply_plan, current_plan
from amg_plugin.registries.formats import file_format
from amg_plugin.utils.places import plain_values, without_folders
from amg_plugin.utils.tables import markdown_table

UNKNOWN = "not recorded"
_TASK = "image-feature-extraction"


@dataclass(frozen=True)
class Described:
    """What is known of a file.

    Attributes:
        name: Its name without a folder.
        checkpoint: Network, plan, configuration and preprocessing.
        metrics: Scores per target of the network as it is in the file, empty if they are not recorded.
        history: Epochs, evaluations and cuts.
        versions: Packages that made it.
        info: What an exported file adds.
    """

    name: str
    checkpoint: Checkpoint
    metrics: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    history: Sequence[Mapping[str, Any]] = ()
    versions: Mapping[str, Any] = field(default_factory=dict)
    info: ExportInfo | None = None


def card(path: str | Path, *, trusted: bool = False) -> str:
    """The model card of a checkpoint or of an exported file.

    Args:
        path: The file.
        trusted: As of :func:`amg_plugin.deploy.exported_file.open_exported`.

    Raises:
        InputError: If the file cannot be read.
    """
    described = _read(Path(path), trusted)
    try:
        return _written(described)
    except (KeyError, TypeError, ValueError, AttributeError) as error:  # values of any type fail anywhere
        raise CheckpointError(f"'{path}' describes itself in a way that no card can be made of: {error!r}.") from error


def _read(path: Path, trusted: bool) -> Described:
    if file_format(path) is None:
        found = read_checkpoint(path)
        return Described(path.name, found, found.latest_scores, found.history, found.versions)
    info = open_exported(path, trusted=trusted).info
    return Described(path.name, as_checkpoint(info), info.source.get("metrics", {}), (), info.versions, info)


def _written(of: Described) -> str:
    title = f"{without_folders(of.checkpoint.spec.arch)}, {'dense' if of.checkpoint.plan.is_dense else 'pruned'}"
    parts = [
        f"---\n{yaml.safe_dump(_front_matter(of, title), sort_keys=False, allow_unicode=True)}---",
        f"# {_text(title)}",
        "A vision transformer for person re-identification: it turns an image of a person into features, and images "
        f"of the same person get similar ones. The file is `{_code(of.name)}`, made by [torchreid]"
        "(https://github.com/KaiyangZhou/deep-person-reid) with the plugin amg_plugin.",
        _section("Figures", _figures(of)),
        _section("Network", _table(_network(of))),
        _section("Preprocessing", _preprocessing(of)),
        _section("Training data", _table(_data(of))),
        _section("How it was made", _table(_made(of))),
        _section("Use", _use(of)),
        _section("Licence", _licence(of)),
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(of: Described, title: str) -> dict[str, Any]:
    """What model hubs read, in YAML."""
    data = of.checkpoint.config.get("data", {})
    matter: dict[str, Any] = {
        "license": "unknown",
        "library_name": "amg_plugin",
        "pipeline_tag": _TASK,
        "tags": ["person-re-identification", "vision-transformer", "torchreid"],
    }
    matter["tags"] += [] if of.checkpoint.plan.is_dense else ["pruning"]
    matter["tags"] += [of.info.file_format, of.info.precision] if of.info else []
    matter |= {"datasets": sources} if (sources := plain_values(data.get("sources", []))) else {}
    if not of.metrics:
        return matter
    results = [
        {
            "task": {"type": _TASK, "name": "person re-identification"},
            "dataset": {"type": without_folders(target), "name": without_folders(target)},
            "metrics": [
                {"type": kind, "name": f"{name} %", "value": round(100 * float(scores[kind]), 2)}
                for kind, name in (("mAP", "mAP"), ("rank1", "Rank-1"))
            ],
        }
        for target, scores in of.metrics.items()
    ]
    return {**matter, "metrics": ["mAP", "rank1"], "model-index": [{"name": title, "results": results}]}


def _figures(of: Described) -> str:
    if not of.metrics:
        return f"The scores of the network as it is in the file are {UNKNOWN}."
    rows = [
        [_text(without_folders(target)), *(f"{100 * float(scores[kind]):.1f}" for kind in ("rank1", "mAP"))]
        for target, scores in of.metrics.items()
    ]
    whose = "of the checkpoint that the file was exported from" if of.info else "that the file was saved with"
    test = of.checkpoint.config.get("test", {})
    how = f"{test.get('dist_metric', UNKNOWN)} distance" + (
        ", normalised features" * bool(test.get("normalize_feature"))
    )
    return f"{markdown_table(['data set', 'Rank-1 %', 'mAP %'], rows)}\n\nScores {whose}; {_text(how)}, not re-ranked."


def _network(of: Described) -> list[tuple[str, str]]:
    spec, plan = of.checkpoint.spec, of.checkpoint.plan
    with torch.device("meta"):  # counted without weights
        model = apply_plan(build_network(replace(spec, drop_path=0.0)), plan)
    own = plain_values({**spec.overrides, "head": spec.head if spec.head != "bnneck" else ""})
    counted, now = complexity.count(model, *spec.image_size), current_plan(model)
    rows = [
        (
            "architecture",
            ", ".join([f"{spec.arch} of timm", *(f"{key} {value}" for key, value in own.items() if value)]),
        ),
        ("image size", f"{spec.image_size[0]} x {spec.image_size[1]} (height x width)"),
        ("heads", f"{sum(plan.heads_per_block)} of {sum(plan.num_heads)}"),
        ("tokens", f"{sum(plan.tokens_per_block)} of {plan.num_patches * plan.depth}, variant {plan.variant}"),
        ("neurons", f"{sum(now.neurons_per_block)} of {sum(now.num_neurons)}"),
        ("parameters", f"{counted['params']:,} without the classifier"),
        ("MACs", f"{counted['macs']:,} for an image, without the classifier"),
        ("features", f"{model.feature_dim} numbers, taken {spec.neck_feat} the neck"),
        ("plan", plan.digest[:16]),
    ]
    if spec.reducer:
        rows.insert(5, ("reducer", spec.reducer.method))
    if of.info:
        rows += [("file format", of.info.file_format), ("precision", of.info.precision),
                 ("features of length 1", "yes" if of.info.l2_normalize else "no"),
                 ("images per call", str(of.info.batch or "any"))]  # fmt: skip
    return rows


def _preprocessing(of: Described) -> str:
    stored = of.checkpoint.preprocessing
    if stored is None:
        return f"How images become inputs is {UNKNOWN}."
    rows = [
        ("size", f"{stored.height} x {stored.width} (height x width), {stored.interpolation}"),
        ("mean, of values from 0 to 1", ", ".join(f"{value:g}" for value in stored.mean)),
        ("standard deviation", ", ".join(f"{value:g}" for value in stored.std)),
    ]
    if of.info:
        rows.append(("what the file takes", f"{of.info.input} (see docs/export.md)"))
    return _table(rows)


def _data(of: Described) -> list[tuple[str, str]]:
    data = of.checkpoint.config.get("data", {})
    return [
        ("data sets", ", ".join(plain_values(data.get("sources", []))) or UNKNOWN),
        ("identities", str(of.checkpoint.spec.num_classes)),
        ("digest of their names", of.checkpoint.identities[:16] or UNKNOWN),
        ("augmentation", ", ".join(data.get("transforms", [])) or UNKNOWN),
    ]


def _made(of: Described) -> list[tuple[str, str]]:
    config, amg = of.checkpoint.config, of.checkpoint.config.get("amg", {})
    train, cuts = config.get("train", {}), [entry for entry in of.history if entry.get("event") == "cut"]
    start = UNKNOWN
    if config:
        timm = "timm's pretrained weights" if config.get("model", {}).get("pretrained") else "random weights"
        start = without_folders(amg["weights"]) if amg.get("weights") else timm
    cut = UNKNOWN if not of.history and not of.checkpoint.plan.is_dense else f"{len(cuts)} cuts" if cuts else "none"
    by_target = {entry["target"] for entry in cuts}
    scorers = [f"{target[:-1]} scorer {amg.get(f'{target[:-1]}_scorer', UNKNOWN)}" for target in sorted(by_target)]
    epochs = sum(entry.get("event") == "epoch" for entry in of.history)
    rows = [
        ("weights of the backbone at first", start),
        ("epochs in this run", str(epochs) if epochs else UNKNOWN),
        ("pruning in this run", ", ".join([cut, *scorers])),
        ("distillation", _said(amg.get("distill", {}).get("enabled")) if cuts else "no"),
        ("optimiser", f"{train['optim']}, learning rate {train['lr']:g}" if train else UNKNOWN),
        ("loss", str(config.get("loss", {}).get("name", UNKNOWN))),
        ("seed", str(train.get("seed", UNKNOWN))),
        ("versions", ", ".join(f"{name} {version}" for name, version in of.versions.items()) or UNKNOWN),
    ]
    if of.info is None:
        return rows
    # The file knows the configuration of its checkpoint, not its history.
    source = of.info.source
    rows[1:4] = [("epochs and cuts", UNKNOWN)]
    return [*rows, ("exported from", f"{source.get('name', UNKNOWN)}, SHA-256 {source.get('sha256', UNKNOWN)}")]


def _said(value: Any) -> str:
    return {True: "yes", False: "no"}.get(value, UNKNOWN)


def _use(of: Described) -> str:
    loader = f'FeatureExtractor("{_code(of.name)}")'
    return f'```python\nimport amg_plugin\n\nfeatures = amg_plugin.{loader}(["person.jpg"])  # [1, D]\n```'


def _licence(of: Described) -> str:
    return (
        f"The licence of the weights is {UNKNOWN}. They depend on the terms of the training data, of which many sets "
        "are for research only, and on the licence of the weights that training began with. amg_plugin itself is under "
        "the MIT licence. Whoever publishes the file puts the licence in the first line of this card."
    )


def _section(title: str, text: str) -> str:
    return f"## {title}\n\n{text}"


def _table(rows: Sequence[tuple[str, str]]) -> str:
    return markdown_table(["", ""], [[name, _text(value)] for name, value in rows], left=(0, 1))


def _text(value: str) -> str:
    """A value out of a file as text of a document, whatever it holds."""
    words = " ".join(str(value).split())
    return "".join(f"\\{letter}" if letter in "\\`*[]<>|#" else letter for letter in words)


def _code(value: str) -> str:
    return " ".join(value.split()).replace("`", "'").replace('"', "'")
