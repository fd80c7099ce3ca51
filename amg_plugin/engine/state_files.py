"""The files that hold the state of a run: the newest one, the one before it, and what they need beside them."""

from __future__ import annotations

import logging
import time
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

from amg_plugin.checkpoint import BEST_CHECKPOINT, LAST_CHECKPOINT
from amg_plugin.engine.state import Position, RunState, capture
from amg_plugin.errors import AMGError, CheckpointError, DamagedFileError, InputError
from amg_plugin.models.saving import save_data
from amg_plugin.models.weights import load_data
from amg_plugin.utils import processes
from amg_plugin.utils.files import kind_of, remove_stale_drafts

if TYPE_CHECKING:
    from amg_plugin.engine.hooks import Engine

logger = logging.getLogger(__name__)

#: In the folder of a run: its state, the one before, and the teacher, if that is the network that the run began with.
STATE_FILE, PREVIOUS_STATE_FILE, TEACHER_FILE = "state.pth", "state.previous.pth", "teacher.pth"


def read_state(path: str | Path) -> RunState:
    """Read a state file, as data only.

    Raises:
        CheckpointError: If the file is missing, damaged or no state.
    """
    path = Path(path)
    if kind_of(path) != "file":
        raise CheckpointError(f"The state '{path}' does not exist; give a file that amg-reid has written.")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # torch itself does not look at the sums
        content = None if damaged else load_data(path)
    except CheckpointError:
        raise
    except Exception as error:  # torch raises many types for truncated and foreign files
        raise CheckpointError(f"The state '{path}' cannot be read ({type(error).__name__}).") from error
    if damaged:
        raise CheckpointError(f"The state '{path}' is damaged: '{damaged}' in it is not what was written.")
    return RunState.from_dict(content, path)


def has_state(folder: str | Path) -> bool:
    """Whether a folder holds a run that has not ended."""
    return any(kind_of(Path(folder) / name) for name in (STATE_FILE, PREVIOUS_STATE_FILE))


def newest_state(folder: str | Path, warn: Callable[[str], None] = logger.warning) -> RunState | None:
    """The state that the run of a folder goes on from; None where nothing was saved.

    Args:
        folder: The folder.
        warn: Gets what is wrong with the newest file, if the one before it takes its place.

    Raises:
        InputError: If no file can be used.
    """
    errors = []
    for name in (STATE_FILE, PREVIOUS_STATE_FILE):
        path = Path(folder) / name
        if not kind_of(path):
            continue
        try:
            state = read_state(path)
        except AMGError as error:
            errors.append(str(error))
            continue
        for text in errors:
            warn(f"{text} The state before it, {state.position}, takes its place.")
        return state
    if errors:
        raise InputError(f"{' '.join(errors)} No state is left to go on from; --overwrite starts anew.")
    return None


class StateKeeper:
    """Saves the states of a run, and holds the one that it goes on from.

    On a GPU, the file is written by a thread while the run goes on; the next state waits for it.

    Args:
        folder: The folder of the run.
        facts: What is kept with every state.
        state: What the run goes on from; None begins it.

    Attributes:
        facts: May be added to before the run begins.
    """

    def __init__(self, folder: str | Path, facts: Mapping[str, Any], state: RunState | None = None) -> None:
        self.folder, self.facts, self.state = Path(folder), dict(facts), state
        self._seconds = state.facts.get("seconds", 0.0) if state else 0.0
        self._started = time.monotonic()
        self._writing: Thread | None = None
        self._failed: BaseException | None = None

    @property
    def earlier_seconds(self) -> float:
        """What the run took before it was interrupted, up to the state that it goes on from."""
        return self._seconds

    def clear(self) -> None:
        """Remove the states of another run, and what killed processes left half written."""
        if not processes.is_main():
            return
        if self.state is None:
            self.remove()
        names = (STATE_FILE, TEACHER_FILE, LAST_CHECKPOINT, BEST_CHECKPOINT, "result.json", "details.json")
        remove_stale_drafts(self.folder, *names)

    def remove(self) -> None:
        """Remove the states: the run has ended, and nothing is left to go on with."""
        self.wait()
        if not processes.is_main():
            return
        for name in (STATE_FILE, PREVIOUS_STATE_FILE, TEACHER_FILE):
            (self.folder / name).unlink(missing_ok=True)

    def save(self, engine: Engine, position: Position, optimizer: bool = True) -> None:
        """Save the state of a run; arguments as of :func:`amg_plugin.engine.state.capture`.

        Of several processes, the first one does. A file that was damaged while it was written is thrown away with a
        warning; the one before it stays.

        Raises:
            RunError: If it cannot be written, or holds what is no plain data.
        """
        if not processes.is_main():
            return
        start = time.monotonic()
        facts = {**self.facts, "seconds": self._seconds + start - self._started}
        state = capture(engine, position, facts, optimizer)
        copied = time.monotonic()
        self.wait()
        if engine.device.type == "cuda":
            self._writing = Thread(target=self._write_aside, args=(state,))
            self._writing.start()
        else:
            self._write(state)
        now = time.monotonic()
        logger.info(
            "state %s: the run stood still for %.2f s (copying %.2f s, %s %.2f s)", position, now - start,
            copied - start, "waiting for the file before" if self._writing else "writing", now - copied,
        )  # fmt: skip

    def wait(self) -> None:
        """Wait until the file is written.

        Raises:
            RunError: If it cannot be.
        """
        if self._writing is not None:
            self._writing.join()
            self._writing = None
        failed, self._failed = self._failed, None
        if failed is not None:
            raise failed

    def _write_aside(self, state: RunState) -> None:
        try:
            self._write(state)
        except BaseException as error:  # raised by wait()
            self._failed = error

    def _write(self, state: RunState) -> None:
        path = self.folder / STATE_FILE
        try:
            save_data(path, state.to_dict(), "state", self.folder / PREVIOUS_STATE_FILE)
        except DamagedFileError as error:
            logger.warning("%s The state before it, if there is one, stays.", error)
