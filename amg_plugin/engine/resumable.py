"""An engine that can be left after any step, and go on from there."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor

from amg_plugin.data.seeding import begin
from amg_plugin.engine.course import EpochSums
from amg_plugin.engine.state import Position, restore
from amg_plugin.utils import processes, stopping

if TYPE_CHECKING:
    from amg_plugin.engine.hooks import Hook
    from amg_plugin.engine.state_files import StateKeeper


logger = logging.getLogger(__name__)


class Resumable:
    """Mixin of :class:`amg_plugin.engine.hooked.HookedEngine`: position, states, and the signal that stops a run.

    Attributes:
        keeper: Saves the states; None where nothing is saved.
        position: The phase and the hook at work.
        stretch: Epochs of the stretch of fine-tuning that optimiser and schedule were last built anew for.
    """

    hooks: list[Hook]
    keeper: StateKeeper | None = None
    position = Position()
    stretch: int | None = None
    _left: Position | None = None  # where the run goes on, until it is there
    _first_batch = 0
    _batch = 0
    _numbers: Tensor | None = None

    # torchreid counts batches from 0 in its loop; in an epoch that goes on, the first ones are not there.
    @property
    def batch_idx(self) -> int:
        """Number of the batch in its epoch, from 0."""
        return self._batch

    @batch_idx.setter
    def batch_idx(self, value: int) -> None:
        self._batch = self._first_batch + value

    @contextmanager
    def states(self) -> Iterator[None]:
        """Wait for what is being written at the end, and say how to go on if a signal ended the run."""
        try:
            yield
        finally:
            if self.keeper is not None:
                self.keeper.wait()
                if stopping.requested():
                    logger.info("The run is ended by a signal; --resume goes on with it.")

    def go_on(self) -> None:
        """Take up the state that the keeper holds, or save the first one; the network is that of the state."""
        if self.keeper is None:
            return
        if self.keeper.state is None:
            self.save_state(Position(self.epoch))
            return
        self.epoch, self._left = self.keeper.state.position.epoch, self.keeper.state.position
        restore(self, self.keeper.state)
        self.keeper.state = None

    def announce(self, phase: str) -> None:
        """Call every hook; a run that goes on within the phase begins with the hook that was at work."""
        left = self._left
        if left is not None and left.is_past(phase):
            return
        first = max(left.hook, 0) if left is not None and left.phase == phase else 0
        if left is not None and left.phase == phase:
            self._left = None
        for number, hook in enumerate(self.hooks[first:], first):
            self.position = Position(self.epoch, phase, number)
            getattr(hook, phase)(self)

    def begin_steps(self) -> bool:
        """Prepare the loader for the batches of this epoch that are not done; False if all are."""
        left, self._first_batch = self._left, 0
        if left is not None and left.is_past("steps"):
            return False
        if left is None:
            self.sums = EpochSums()
        else:  # within the steps, as everything before them has taken itself off
            self._first_batch, self._left = left.batch, None
        begin(self.train_loader, self.epoch, self._first_batch * self.train_loader.batch_size * processes.world())
        self._numbers = self.loader_numbers(Position())
        return True

    def end_epoch(self) -> None:
        """Save the state after an epoch."""
        if self._left is None:
            self.save_state(Position(self.epoch, "epoch"))
        self._left = None

    def stop_if_asked(self) -> None:
        """Save the state and leave, if a signal asks for it; called behind each step of the optimiser.

        A signal to one of several processes is one to all of them.
        """
        if number := processes.largest(stopping.requested()):
            stopping.note(number)
            self.save_state(Position(self.epoch, "steps", batch=self.batch_idx + 1))

    def save_state(self, position: Position | None = None, optimizer: bool = True) -> None:
        """Save the state of the run; leaves if a signal asks for it.

        A hook may call this within a phase. The same method of the same hook is then called again when the run goes on.

        Args:
            position: Where the run stands; the hook at work if omitted.
            optimizer: False if the hook builds the optimiser anew afterwards.

        Raises:
            RunError: If it cannot be written.
        """
        if self.keeper is not None:
            self.keeper.save(self, position or self.position, optimizer)
        if number := max(processes.everywhere(stopping.requested())):  # the others wait while the first one writes
            stopping.note(number)
            if self.keeper is not None:
                self.keeper.wait()
        stopping.check()

    def optimisation_state(self, optimizer: bool = True) -> dict[str, Any]:
        """What the next step depends on besides the network, between two steps of the optimiser; plain data.

        Args:
            optimizer: False where optimiser and schedule are built anew before that step.
        """
        state = {"updates": self.updates.state_dict()}
        if optimizer:
            state |= {"stretch": self.stretch, "optimizer": self.optimizer.state_dict()}
            state["scheduler"] = self.scheduler.state_dict()
        return state

    def restore_optimisation(self, state: dict[str, Any]) -> None:
        """Take up the state of :meth:`optimisation_state`."""
        self.updates.load_state_dict(state["updates"])
        if "optimizer" not in state:
            return
        if state["stretch"] is not None:
            self.rebuild_optimizer(state["stretch"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])

    def loader_numbers(self, position: Position) -> Tensor | None:
        """The random state of the training loader, within the steps that of the epoch's beginning."""
        if position.phase == "steps":
            return self._numbers
        generator = self.train_loader.generator
        return None if generator is None else generator.get_state()

    def set_loader_numbers(self, state: Tensor | None) -> None:
        """Take up the state of :meth:`loader_numbers`."""
        if state is not None and self.train_loader.generator is not None:
            self.train_loader.generator.set_state(state)
