"""One file per model: weights, structure, configuration and history.

The layout is a dictionary of the plugin's own, without a ``state_dict`` entry: torchreid's ``load_pretrained_weights``
matches nothing in it, instead of silently keeping the half that fits.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from amg_plugin.errors import AMGError, CheckpointError, PlanError, shown
from amg_plugin.models.build import build_network, differences
from amg_plugin.models.reid import ReIDModel
from amg_plugin.models.saving import save_data
from amg_plugin.models.spec import ModelSpec
from amg_plugin.models.torchreid_state import TorchreidState, is_torchreids, torchreid_state
from amg_plugin.models.vit import unwrap
from amg_plugin.models.weights import check_fit, check_held, load_data, load_strictly, read_harmless
from amg_plugin.pruning import PruningPlan, apply_plan, current_plan
from amg_plugin.registries.formats import file_format
from amg_plugin.registries.imports import stored_imports
from amg_plugin.utils.environment import versions
from amg_plugin.utils.files import kind_of
from amg_plugin.utils.preprocessing import Preprocessing

logger = logging.getLogger(__name__)

FORMAT = "amg_plugin.checkpoint"
VERSION = 1
#: Files of a run in its ``data.save_dir``.
LAST_CHECKPOINT, BEST_CHECKPOINT = "last.pth", "best.pth"
_ENTRIES = {"spec": dict, "plan": dict, "weights": dict, "config": dict, "history": list, "preprocessing": dict}


@dataclass(frozen=True)
class Checkpoint:
    """Contents of a checkpoint file.

    Attributes:
        spec: The dense network.
        plan: What is pruned.
        weights: State dict of the pruned network.
        config: The run's configuration as plain data.
        history: One entry per epoch, evaluation or cut, plain data.
        preprocessing: How images become inputs; None in checkpoints that were saved from Python without it.
        identities: Digest of the training identities; empty in older checkpoints, and where data does not name them.
        versions: Packages that it was made with; empty in older checkpoints.
    """

    spec: ModelSpec
    plan: PruningPlan
    weights: Mapping[str, Tensor]
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    preprocessing: Preprocessing | None = None
    identities: str = ""
    versions: dict[str, Any] = field(default_factory=dict)

    @property
    def latest_scores(self) -> dict[str, dict[str, float]]:
        """mAP and Rank-1 per target of the last evaluation, ``{}`` where the network was trained or cut after it."""
        last = self.history[-1] if self.history else {}
        targets = last.get("targets") if last.get("event") == "test" else None
        scores = {key: _two_scores(value) for key, value in (targets.items() if isinstance(targets, dict) else ())}
        return {str(key): value for key, value in scores.items() if value}

    def knows(self, num_classes: int, identities: str) -> bool:
        """Whether its classifier is for these training identities, as far as that can be known."""
        others = bool(self.identities and identities) and self.identities != identities
        return self.spec.num_classes == num_classes and not others

    def build(self) -> ReIDModel:
        """Rebuild the structure, then load the weights strictly; the network is in eval mode, on the CPU.

        Raises:
            CheckpointError: If structure and weights do not belong together.
        """
        self.check()
        model = apply_plan(build_network(self.spec), self.plan)
        load_strictly(model, self.weights)
        model.preprocessing, model.identities = self.preprocessing, self.identities
        return model.eval()

    def check(self) -> None:
        """Check that structure and weights belong together before memory is spent on either.

        The network is built without memory, and what a description can make long lists of is bounded by the tensors.

        Raises:
            CheckpointError: If they do not.
        """
        check_held(self.weights, "The checkpoint is refused")
        try:
            with torch.device("meta"):  # where timm may fail to read the rates of drop path
                network = build_network(replace(self.spec, drop_path=0.0))
                patches = network.backbone.patch_embed.num_patches
                if patches != self.plan.num_patches:
                    raise PlanError(f"the plan is for {self.plan.num_patches} patches, the model has {patches}")
                outline = apply_plan(network, self.plan).state_dict()
        except Exception as error:  # a damaged description fails anywhere
            raise CheckpointError(f"The checkpoint's structure cannot be rebuilt: {error}") from error
        check_fit(outline, self.weights)

    def check_start(self, spec: ModelSpec) -> None:
        """Check that backbone and necks fit a network that is to be trained on other identities.

        Raises:
            CheckpointError: If image size or structure differ, or it is pruned and the network has a reducer.
        """
        if self.spec.image_size != spec.image_size:
            sizes = ["x".join(map(str, one.image_size)) for one in (self.spec, spec)]
            raise CheckpointError(f"The checkpoint is for images of {sizes[0]} (height x width), not {sizes[1]}.")
        for key, ours, theirs in differences(self.spec, spec, count_cameras=False):
            raise CheckpointError(f"The checkpoint is of another structure: its {key} is {ours!r}, not {theirs!r}.")
        if spec.reducer and not self.plan.is_dense:
            raise CheckpointError("The checkpoint is pruned, but amg.reducer starts from a dense network.")

    def start(self, spec: ModelSpec) -> ReIDModel:
        """A network with this backbone, pruned as it is, these necks and a new classifier; in eval mode, on the CPU.

        What a network learned per camera is new too where its cameras are others.

        Raises:
            CheckpointError: See :meth:`check_start`.
        """
        self.check_start(spec)
        self.check()
        model = apply_plan(build_network(spec), self.plan)
        new = _depends_on(spec, num_classes=spec.num_classes + 1)
        side, own = spec.side_information, self.spec.side_information
        if side and own and side.camera_table != own.camera_table and side.cameras:
            new |= _depends_on(spec, side_information=replace(side, cameras=side.cameras + 1, camera_table={}))
        weights = {name: value for name, value in self.weights.items() if name not in new}
        load_strictly(model, weights, "The checkpoint's backbone and necks do not fit", optional=new)
        logger.info(
            "backbone%s and necks are the checkpoint's; the classifier is new, for %d identities",
            "" if self.plan.is_dense else ", pruned as it is,",
            spec.num_classes,
        )
        return model.eval()


def _two_scores(scores: Any) -> dict[str, float]:
    found = {key: scores.get(key) for key in ("mAP", "rank1")} if isinstance(scores, dict) else {}
    return found if found and all(isinstance(value, float) for value in found.values()) else {}


def _depends_on(spec: ModelSpec, **changes: Any) -> set[str]:
    """Names of the tensors whose shape follows from a field of a description."""
    # Drop path: timm may read its rates from a tensor, which the meta device has none of.
    with torch.device("meta"):
        both = [build_network(replace(one, drop_path=0.0)).state_dict() for one in (spec, replace(spec, **changes))]
    return {name for name, value in both[0].items() if value.shape != both[1][name].shape}


def build_start(
    spec: ModelSpec, pretrained: bool = False, weights: str | Path = "", weights_grid: Sequence[int] = ()
) -> ReIDModel:
    """As :func:`amg_plugin.models.build_network`, whose ``weights`` may also be a checkpoint to start from.

    Raises:
        InputError: If ``weights`` do not fit, or timm has none.
    """
    if weights and is_checkpoint(weights):
        if weights_grid:
            raise CheckpointError(f"amg.weights_grid is not for checkpoints such as '{weights}', which say their grid.")
        return read_checkpoint(weights).start(spec)
    return build_network(spec, pretrained, weights, weights_grid)


def save_checkpoint(
    path: str | Path,
    model: nn.Module,
    *,
    config: Mapping[str, Any] | None = None,
    history: Sequence[Mapping[str, Any]] = (),
    preprocessing: Preprocessing | Mapping[str, Any] | None = None,
) -> None:
    """Write a :class:`ReIDModel`, pruned or not; the file is replaced only once the new one was read back.

    Args:
        path: Where to; folders are made.
        model: The network; DataParallel, DistributedDataParallel, AveragedModel and torch.compile are unwrapped.
        config: The run's configuration, plain data.
        history: Epochs, evaluations and cuts so far, plain data.
        preprocessing: How images become inputs: a :class:`Preprocessing`, or a mapping of its height, width, mean, std
            and interpolation; ``model.preprocessing`` if omitted, which networks of ``build_model`` and ``load_model``
            have. Without it the checkpoint cannot be exported.

    Raises:
        CheckpointError: If ``preprocessing`` is incomplete or impossible.
        DamagedFileError: If the new file does not hold what was written; an older one stays.
        RunError: If the file cannot be written.
    """
    model = unwrap(model)
    preprocessing = preprocessing or model.preprocessing
    if preprocessing and not isinstance(preprocessing, Preprocessing):
        preprocessing = Preprocessing.from_dict(_plain(preprocessing), path)
    content = {
        "format": FORMAT,
        "version": VERSION,
        "spec": model.spec.to_dict(),
        "plan": current_plan(model).to_dict(),
        "weights": {name: value.detach().cpu() for name, value in model.state_dict().items()},
        "config": _plain(config or {}),
        "history": _plain(history),
        "preprocessing": preprocessing.to_dict() if preprocessing else {},
        "identities": model.identities,
        "versions": versions("torch", "timm", "torchreid"),
    }
    save_data(path, content, "checkpoint")


def _plain(value: Any) -> Any:
    """Copy as data that ``weights_only`` reads back: numpy's numbers, which hooks meet often, would refuse to load."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if type(value) in (bool, int, float, str, type(None)):
        return value
    return _plain(value.item()) if getattr(value, "ndim", None) == 0 else str(value)


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint, as data only; also one of torchreid's, whose structure is that of the ``amg`` node in force.

    Raises:
        CheckpointError: If the file is missing, truncated, unsafe, foreign or of another version, or torchreid's and of
            another structure.
    """
    path = Path(path)
    content = _read(path)
    if is_torchreids(content):
        return _torchreids(torchreid_state(content, path), path)
    stored = content["preprocessing"]  # empty if the file was saved from Python without it
    preprocessing = Preprocessing.from_dict(stored, path) if stored else None
    try:
        spec, plan = ModelSpec.from_dict(content["spec"]), PruningPlan.from_dict(content["plan"])
    except AMGError as error:
        raise CheckpointError(f"'{path}' cannot be used: {error}") from error
    return Checkpoint(
        spec,
        plan,
        content["weights"],
        content["config"],
        content["history"],
        preprocessing,
        str(content.get("identities", "")),  # older files have neither this
        dict(content["versions"]) if isinstance(content.get("versions"), dict) else {},  # nor that
    )


def _torchreids(found: TorchreidState, path: Path) -> Checkpoint:
    with torch.device("meta"):
        plan = current_plan(build_network(replace(found.spec, drop_path=0.0)))
    event = {"event": "import", "from": "torchreid", "file": path.name, "epoch": found.epoch}
    pixels = Preprocessing.of_torchreid(found.spec.image_size)
    return Checkpoint(found.spec, plan, found.weights, found.config, [event], pixels)


def is_torchreid_file(path: str | Path) -> bool:
    """Whether a file has the form of torchreid's checkpoints."""
    try:
        return is_torchreids(read_harmless(Path(path), mmap=True))
    except Exception:  # torch raises many types for foreign files
        return False


def is_checkpoint(path: str | Path) -> bool:
    """Whether a file is a checkpoint of the plugin, of whatever version."""
    try:
        content = load_data(Path(path), mmap=True)
    except Exception:  # torch raises many types for foreign files
        return False
    return isinstance(content, dict) and content.get("format") == FORMAT


def _read(path: Path) -> dict[str, Any]:
    """The entries of a checkpoint, each of its kind."""
    if (kind := kind_of(path)) == "folder":
        raise CheckpointError(f"The checkpoint '{path}' is a folder; give a file in it, such as {BEST_CHECKPOINT}.")
    if not kind:
        raise CheckpointError(f"The checkpoint '{path}' does not exist; give a file written by amg-reid.")
    if (exported := file_format(path)) is not None:
        raise CheckpointError(
            f"'{path}' is an exported file ({exported}), not a checkpoint; 'amg-reid test' and "
            "amg_plugin.FeatureExtractor take those of 'amg-reid export'."
        )
    try:
        content = read_harmless(path)
    except CheckpointError:
        raise
    except Exception as error:  # torch raises many types for truncated and foreign files
        raise CheckpointError(
            f"'{path}' cannot be read ({type(error).__name__}): it is truncated, or not an amg-reid checkpoint."
        ) from error
    if is_torchreids(content):
        return content
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"'{path}' is not an amg-reid checkpoint; plain weight files go into amg.weights.")
    if content.get("version") != VERSION:
        raise CheckpointError(
            f"'{path}' has format version {shown(content.get('version'))}; this release reads version {VERSION}."
        )
    for name, kind in _ENTRIES.items():
        if name not in content:
            raise CheckpointError(f"'{path}' lacks its entry '{name}'.")
        if not isinstance(content[name], kind):
            found = f"its entry '{name}' is a {type(content[name]).__name__} instead of a {kind.__name__}"
            raise CheckpointError(f"'{path}' cannot be used: {found}.")
    if not all(isinstance(entry, dict) for entry in content["history"]):
        raise CheckpointError(f"'{path}' cannot be used: an entry of its history is not a dictionary.")
    stored_imports(content["config"], f"'{path}'")
    return content


def load_model(path: str | Path) -> ReIDModel:
    """Rebuild the network of a checkpoint, pruned structure included, in eval mode on the CPU.

    Raises:
        CheckpointError: If the file or its structure is wrong.
    """
    return read_checkpoint(path).build()
