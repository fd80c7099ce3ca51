"""The whole state of a run as plain data: taken from an engine, given back to one.

What a run goes on from is a network, the optimisation, the hooks, what was noted so far, random numbers, and the
position: the phase that was at work, and in which hook or after which batch. Everything else (data, teacher, schedule)
follows from the configuration.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from amg_plugin.checkpoint import Checkpoint
from amg_plugin.errors import AMGError, CheckpointError, InputError, RunError, shown
from amg_plugin.models.spec import ModelSpec
from amg_plugin.models.vit import unwrap
from amg_plugin.pruning import PruningPlan, current_plan
from amg_plugin.utils.preprocessing import Preprocessing

if TYPE_CHECKING:
    from amg_plugin.engine.hooks import Engine

FORMAT = "amg_plugin.state"
VERSION = 1
#: Phases that a state can belong to, in their order within an epoch; ``before_run`` comes once.
PHASES = ("before_run", "before_epoch", "steps", "after_epoch", "epoch")
_ENTRIES = {
    "position": dict, "network": dict, "optimisation": dict, "hooks": list, "noted": dict, "numbers": dict,
    "facts": dict,
}  # fmt: skip


@dataclass(frozen=True)
class Position:
    """Where a run stands.

    Attributes:
        epoch: The epoch, from 0.
        phase: One of :data:`PHASES`: the one that is at work; ``"epoch"`` after all of them.
        hook: In phases of hooks, the number of the hook at work; -1 before the first one.
        batch: In ``"steps"``, the batches that are done.
    """

    epoch: int = 0
    phase: str = "before_run"
    hook: int = -1
    batch: int = 0

    def is_past(self, phase: str) -> bool:
        """Whether a phase of the epoch is over."""
        return PHASES.index(self.phase) > PHASES.index(phase)

    def has_begun(self, hook: int) -> bool:
        """Whether a hook was told that the run begins."""
        return self.phase != "before_run" or hook <= self.hook

    def __str__(self) -> str:
        if self.phase == "before_run":
            return "before the first epoch"
        where = {"before_epoch": "before ", "steps": f"after batch {self.batch} of ", "after_epoch": "at the end of "}
        return f"{where.get(self.phase, 'after ')}epoch {self.epoch + 1}"


@dataclass(frozen=True)
class RunState:
    """Plain data that a run goes on from.

    Attributes:
        position: Where it stands.
        network: ``spec``, ``plan`` and ``weights`` as in a checkpoint, ``identities``, ``preprocessing``, the names of
            ``frozen`` parameters, and whether it is in ``training`` mode.
        optimisation: What ``engine.optimisation_state()`` gave.
        hooks: Of each hook, its ``name`` and what ``state()`` gave; nothing if its run had not begun.
        noted: ``history``, ``results`` of the latest evaluation, and ``sums`` of the current epoch.
        numbers: Random states: ``python``, ``numpy``, ``torch``, ``cuda`` (one per device) and ``loader``.
        facts: What the run has to be the same in, and what was found before it; see :mod:`amg_plugin.runs.resuming`.
    """

    position: Position
    network: dict[str, Any]
    optimisation: dict[str, Any]
    hooks: list[dict[str, Any]]
    noted: dict[str, Any]
    numbers: dict[str, Any]
    facts: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The content of a state file."""
        parts = {name: getattr(self, name) for name in _ENTRIES if name != "position"}
        return {"format": FORMAT, "version": VERSION, "position": asdict(self.position), **parts}

    @classmethod
    def from_dict(cls, content: Any, where: object) -> RunState:
        """Read the content of a state file.

        Raises:
            CheckpointError: If it is none, or of another version.
        """
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise CheckpointError(
                f"'{where}' is not the state of a run of amg-reid; torchreid's checkpoints are for its own scripts, "
                "and models are given with --weights."
            )
        if content.get("version") != VERSION:
            raise CheckpointError(f"'{where}' is the state of a run of another release of amg-reid.")
        for name, kind in _ENTRIES.items():
            if not isinstance(content.get(name), kind):
                raise CheckpointError(f"'{where}' cannot be used: its entry '{name}' is missing or no {kind.__name__}.")
        try:
            position = Position(**content["position"])
            position.is_past("before_run")
            places = (position.epoch, 0), (position.hook, -1), (position.batch, 0)
            if not all(type(place) is int and place >= first for place, first in places):
                raise ValueError
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"'{where}' cannot be used: its position is {content['position']}.") from error
        return cls(position, **{name: content[name] for name in _ENTRIES if name != "position"})

    def checkpoint(self) -> Checkpoint:
        """The network as it was.

        Raises:
            CheckpointError: If its description is impossible.
        """
        network = self.network
        try:
            spec, plan = ModelSpec.from_dict(network["spec"]), PruningPlan.from_dict(network["plan"])
            stored = network["preprocessing"]
            pixels = Preprocessing.from_dict(stored, "the state") if stored else None
            return Checkpoint(spec, plan, network["weights"], preprocessing=pixels, identities=network["identities"])
        except (AMGError, KeyError) as error:
            raise CheckpointError(f"The state cannot be used: {error}") from error
        except (AttributeError, TypeError, ValueError) as error:
            raise CheckpointError("The state cannot be used: its network is not described as one.") from error


def capture(engine: Engine, position: Position, facts: Mapping[str, Any], optimizer: bool = True) -> RunState:
    """The state of a run, copied off its device.

    Args:
        engine: The engine.
        position: Where it stands.
        facts: What the command wants to be kept.
        optimizer: False where the hook at work builds the optimiser anew.

    Raises:
        RunError: If something is neither a tensor, a number, a text nor a container of those.
    """
    model, copy = unwrap(engine.model), engine.device.type != "cpu"  # what is written aside must not change meanwhile
    network = {
        "spec": model.spec.to_dict(),
        "plan": current_plan(model).to_dict(),
        "weights": dict(model.state_dict()),
        "identities": model.identities,
        "preprocessing": model.preprocessing.to_dict() if model.preprocessing else {},
        "frozen": [name for name, value in model.named_parameters() if not value.requires_grad],
        "training": model.training,
    }
    hooks = []
    for number, hook in enumerate(engine.hooks):
        name = type(hook).__name__
        begun = position.has_begun(number)
        hooks.append({"name": name, "state": plain(hook.state(), f"the hook {name}", copy) if begun else {}})
    noted = {"history": engine.history, "results": engine.results, "sums": vars(engine.sums)}
    return RunState(
        position,
        plain(network, "the network", copy),
        plain(engine.optimisation_state(optimizer), "the optimiser", copy),
        hooks,
        plain(noted, "the history", copy),
        {**random_numbers(), "loader": engine.loader_numbers(position)},
        plain(facts, "the run", copy),
    )


def restore(engine: Engine, state: RunState) -> None:
    """Give a state to an engine that was assembled around its network; random numbers come last.

    Raises:
        InputError: If the run has other hooks, the optimiser is another one, or the state is damaged.
    """
    try:
        names, saved = [type(hook).__name__ for hook in engine.hooks], [one["name"] for one in state.hooks]
        if names != saved:
            raise InputError(f"The run has the hooks {', '.join(names)}, but its state those of {', '.join(saved)}.")
        _give(engine, state)
    except AMGError:
        raise
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(
            f"The run cannot take up its state, whose optimiser or hooks are other ones, or whose entries are damaged "
            f"({type(error).__name__}: {shown(str(error))})."
        ) from error


def _give(engine: Engine, state: RunState) -> None:
    position, model = state.position, unwrap(engine.model)
    engine.history[:] = state.noted["history"]
    engine.results = state.noted["results"]
    vars(engine.sums).update(state.noted["sums"])
    model.train(state.network["training"])
    frozen = set(state.network["frozen"])
    for name, value in model.named_parameters():
        value.requires_grad_(name not in frozen)
    engine.restore_optimisation(state.optimisation)
    for number, (hook, one) in enumerate(zip(engine.hooks, state.hooks, strict=True)):
        if position.has_begun(number):
            hook.restore(engine, one["state"])
    set_random_numbers(state.numbers)
    engine.set_loader_numbers(state.numbers["loader"])


def plain(value: Any, where: str, copy: bool = False) -> Any:
    """Data that ``weights_only`` reads back, tensors on the CPU.

    Args:
        value: Tensors, numbers, texts and containers of them.
        where: Where it comes from, for the message.
        copy: Whether tensors on the CPU are copied, too.

    Raises:
        RunError: If it holds anything else.
    """
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=copy)
    if isinstance(value, Mapping):
        return {plain(key, where): plain(item, where, copy) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [plain(item, where, copy) for item in value]
        return tuple(items) if type(value) is tuple else items
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, bool | int | float | str | None):
        return value
    raise RunError(
        f"The state of {where} cannot be saved: it holds something of type {type(value).__name__}, and only tensors, "
        "numbers, texts and containers of them are read back."
    )


def random_numbers() -> dict[str, Any]:
    """The states of Python's, numpy's and torch's random numbers."""
    version, words, gauss = random.getstate()
    kind, keys, *rest = np.random.get_state()
    return {
        "python": [version, torch.tensor(words), gauss],
        "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), *map(float, rest)],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }


def set_random_numbers(states: Mapping[str, Any]) -> None:
    """Go on with the random numbers of :func:`random_numbers`; those of devices that are not here are left out."""
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words.tolist()), gauss))
    kind, keys, place, has_gauss, cached = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), int(place), int(has_gauss), cached))
    torch.set_rng_state(states["torch"])
    if torch.cuda.is_available():
        for number, one in enumerate(states["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(one, number)
