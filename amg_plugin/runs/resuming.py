"""Whether a run begins, goes on or is refused, and what it has to be the same in to go on."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from yacs.config import CfgNode

from amg_plugin.checkpoint import BEST_CHECKPOINT, Checkpoint, read_checkpoint
from amg_plugin.config import from_plain_dict, to_plain_dict
from amg_plugin.config.rules import value_of
from amg_plugin.config.schema import KEYS
from amg_plugin.data.identities import list_digest
from amg_plugin.engine.state import RunState
from amg_plugin.engine.state_files import TEACHER_FILE, StateKeeper, has_state, newest_state, read_state
from amg_plugin.errors import CheckpointError, InputError, shown
from amg_plugin.runs import result as report
from amg_plugin.utils.environment import versions
from amg_plugin.utils.files import kind_of, read_json, replacing, sha256

logger = logging.getLogger(__name__)

#: Keys that no figure depends on; a run may go on with others.
FREE = (
    "data.save_dir", "data.root", "data.workers", "model.resume", "train.print_freq", "amg.cache_images",
    "amg.cache_gb", "amg.check_images", "amg.report", "amg.imports",
)  # fmt: skip
#: Keys, or nodes, that decide what the network is.
NETWORK = (
    "model.name", "data.height", "data.width", "data.sources", "data.combineall", "loss.name", "amg.arch", "amg.stride",
    "amg.image_size", "amg.override", "amg.neck_feat", "amg.head", "amg.parts", "amg.sie", "amg.jpm", "amg.reducer",
    "amg.token_variant", "amg.schedule", "amg.final_epochs", "amg.target_macs_saving", "amg.target_latency_saving",
    "amg.balance",
)  # fmt: skip
#: What pruning finds before it begins, in place of what was asked for.
FOUND = ("amg.target_macs_saving", "amg.target_latency_saving", "amg.balance", "amg.schedule")
COMMAND = "the command"
_FACTS = {"command": str, "asked": dict, "config": dict, "kept": dict, "versions": dict, "weights": str, "threads": int}
_PACKAGES = ("torch", "torchvision", "timm", "torchreid", "numpy")


@dataclass(frozen=True)
class Difference:
    """What a run began with, and what it is asked to go on with."""

    name: str
    before: Any
    now: Any

    @property
    def changes_network(self) -> bool:
        """Whether the network would be another one."""
        return any(self.name == key or self.name.startswith(f"{key}.") for key in (*NETWORK, COMMAND))

    def __str__(self) -> str:
        return f"{self.name} was {shown(self.before)} and is {shown(self.now)}"


@dataclass
class Start:
    """How a run begins.

    Attributes:
        cfg: Its configuration; with what was found, if it goes on.
        keeper: Saves its states, and holds the one to go on from.
        state: That one, or None.
        anyway: Whether differences that leave the network as it is are accepted.
        notes: What its log has to say.
    """

    cfg: CfgNode
    keeper: StateKeeper
    state: RunState | None = None
    anyway: bool = False
    notes: list[str] = field(default_factory=list)

    def open(self) -> None:
        """Log what was noted before there was a log, and remove what another run has left."""
        for note in self.notes:
            logger.info("%s", note)
        self.keeper.clear()

    @property
    def kept(self) -> dict[str, Any]:
        """What a command keeps for the time after an interruption; may be added to before the run begins."""
        return self.keeper.facts["kept"]

    @property
    def typed(self) -> tuple[list[str], str | None]:
        """The words and the configuration file that the run began with."""
        return tuple(self.kept.get("typed", ([], None)))

    def first_network(self) -> Checkpoint | None:
        """The network that the run began with, if it is its own teacher; None otherwise."""
        path = self.keeper.folder / TEACHER_FILE
        return read_checkpoint(path) if kind_of(path) else None

    def found(self, cfg: CfgNode, **kept: Any) -> None:
        """Keep the configuration with what was found, and how."""
        self.cfg = cfg
        self.keeper.facts["config"] = to_plain_dict(cfg)
        self.kept.update(kept)

    def accept(self, differences: list[Difference], say: Callable[[str], None] = logger.warning) -> None:
        """Refuse to go on with other things than those that the run began with, or say which they are.

        Raises:
            InputError: If there are any, and nobody wants to go on anyway or the network would be another one.
        """
        found = [one for one in differences if one.before != one.now]
        network = [one.name for one in found if one.changes_network]
        if found and (network or not self.anyway):
            way = "--resume-anyway goes on like that"
            if network:
                way = f"--resume-anyway does not help, as the network depends on {', '.join(network)}"
            raise InputError(
                f"The run in '{self.cfg.data.save_dir}' began otherwise: {'; '.join(map(str, found))}. Give what it "
                f"began with; {way}, and --overwrite starts anew."
            )
        for one in found:
            say(f"The run goes on, although {one}.")

    def check_data(self, datamanager: Any) -> None:
        """Check that the data is what the run began with, or keep what it is.

        Raises:
            InputError: If it is not.
        """
        digest = data_digest(datamanager)
        if self.state is not None:
            before = self.state.facts.get("data", digest)  # unknown before the data was read
            self.accept([Difference("the list of images (SHA-256)", before, digest)], logger.warning)
        self.keeper.facts["data"] = digest


def begin(
    cfg: CfgNode, command: str, weights: str | None, *, resume: bool, anyway: bool, overwrite: bool
) -> Start | None:
    """Decide how a run begins.

    Args:
        cfg: Its configuration; ``model.resume`` may name a state.
        command: ``train`` or ``prune``.
        weights: The checkpoint that it starts from, if there is one.
        resume: Whether to go on with what ``data.save_dir`` holds.
        anyway: Accept differences that leave the network as it is.
        overwrite: Replace what the folder holds.

    Returns:
        How; None if it has ended already.

    Raises:
        InputError: If the folder holds a run that has not ended, or that cannot go on like this.
    """
    folder, named = Path(cfg.data.save_dir), cfg.model.resume
    if (resume or named) and overwrite:
        raise InputError("--overwrite starts anew and --resume goes on; give one of them.")
    facts = {"command": command, "asked": to_plain_dict(cfg), "weights": _digest_of(weights), **_environment()}
    facts |= {"config": facts["asked"], "kept": {}}
    if not (resume or named):
        if has_state(folder) and not overwrite:
            raise InputError(
                f"'{folder}' holds a run that was interrupted: --resume goes on with it, --overwrite starts anew."
            )
        return Start(cfg, StateKeeper(folder, facts))
    notes: list[str] = []
    state = _with_facts(read_state(named) if named else newest_state(folder, notes.append))
    if state is None:
        if kind_of(folder / report.FILE_NAME):
            _check_finished(cfg, command, folder)
            return None
        notes.append(f"Nothing is saved in '{folder}' yet: the run starts from the beginning.")
        return Start(cfg, StateKeeper(folder, facts), notes=notes)
    start = Start(cfg, StateKeeper(folder, {**facts, "kept": state.facts["kept"]}, state), state, anyway, notes)
    start.accept(_differences(state.facts, facts), notes.append)
    if (before := state.facts["threads"]) != facts["threads"]:
        notes.append(f"The run had {before} threads and has {facts['threads']} now: last digits may differ.")
    start.cfg = _with_found(cfg, state.facts)
    start.keeper.facts["config"] = to_plain_dict(start.cfg)
    if named:
        _bring(Path(named).parent, folder)
    notes.append(f"The run goes on {state.position}.")
    return start


def saved_config(folder: str | Path, resume: str = "") -> dict[str, Any] | None:
    """The configuration of what a folder holds, or of a named state; None without one."""
    state = _with_facts(read_state(resume) if resume else newest_state(folder))
    if state is not None:
        return state.facts["asked"]
    path = Path(folder) / report.FILE_NAME
    content = read_json(path, "result") if kind_of(path) else {}
    return content.get("config") if isinstance(content, dict) else None


def _with_facts(state: RunState | None) -> RunState | None:
    """The state itself, if it holds what this module has put there; a file from outside need not."""
    for name, kind in _FACTS.items() if state else ():
        if not isinstance(state.facts.get(name), kind):
            raise CheckpointError(f"The state of the run cannot be used: '{name}' in its facts is missing or damaged.")
    return state


def data_digest(datamanager: Any) -> str:
    """SHA-256 of the lists of images of all parts, in order, as :func:`amg_plugin.data.identities.list_digest`."""
    lists = {"train": datamanager.train_loader.dataset.train}
    for name, parts in datamanager.test_loader.items():
        lists |= {f"{name} {part}": loader.dataset.data for part, loader in parts.items()}
    return hashlib.sha256(json.dumps({part: list_digest(items) for part, items in lists.items()}).encode()).hexdigest()


def _digest_of(weights: str | None) -> str:
    """Which checkpoint the run starts from; empty without one, and where it is gone."""
    return sha256(weights) if weights and kind_of(weights) == "file" else ""


def _environment() -> dict[str, Any]:
    return {"versions": versions(*_PACKAGES), "threads": torch.get_num_threads()}


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Difference]:
    pairs = [(COMMAND, before["command"], now["command"])]
    pairs += _changed_keys(before["asked"], now["asked"])
    if now["weights"]:
        pairs.append(("the checkpoint of --weights (SHA-256)", before["weights"], now["weights"]))
    ours, theirs = ({k: v for k, v in one["versions"].items() if k != "python"} for one in (before, now))
    pairs += [(f"the version of {name}", ours.get(name), version) for name, version in theirs.items()]
    return [Difference(*pair) for pair in pairs]


def _changed_keys(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    ours, theirs = from_plain_dict(before), from_plain_dict(now)
    return [(key, value_of(ours, key), value_of(theirs, key)) for key in KEYS if key not in FREE]


def _check_finished(cfg: CfgNode, command: str, folder: Path) -> None:
    """Refuse to take the result of another run for this one's."""
    result = read_json(folder / report.FILE_NAME, "result")
    if not isinstance(result, dict) or not isinstance(result.get("config"), dict):
        raise InputError(f"'{folder / report.FILE_NAME}' is not the result of a run; give another folder.")
    pairs = [(COMMAND, result.get("command"), command), *_changed_keys(result["config"], to_plain_dict(cfg))]
    skipped = FOUND if {"latency", "balance"} & set(result) else ()
    found = [Difference(*pair) for pair in pairs if pair[0] not in skipped and pair[1] != pair[2]]
    if found:
        raise InputError(
            f"The run in '{folder}' has ended, and was another one: {'; '.join(map(str, found))}. Give another folder "
            "as data.save_dir, or --overwrite to start anew."
        )


def _with_found(cfg: CfgNode, facts: Mapping[str, Any]) -> CfgNode:
    """The configuration that is asked for, with what was found before the run was interrupted."""
    asked, found = from_plain_dict(facts["asked"]), from_plain_dict(facts["config"])
    cfg = cfg.clone()
    cfg.defrost()
    for key in FOUND:
        if value_of(asked, key) != value_of(found, key):
            node, _, name = key.rpartition(".")
            value_of(cfg, node)[name] = value_of(found, key)
    cfg.model.resume = ""
    cfg.freeze()
    return cfg


def _bring(source: Path, folder: Path) -> None:
    """Copy what a state needs beside it."""
    if source.resolve() == folder.resolve():
        return
    for name in (BEST_CHECKPOINT, TEACHER_FILE):
        if kind_of(source / name) == "file":
            with replacing(folder / name) as draft:
                draft.write_bytes((source / name).read_bytes())
