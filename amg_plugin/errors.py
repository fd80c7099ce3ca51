"""Exceptions of the plugin.

Every message is one sentence: what is wrong, where, and what is allowed. The command layer prints it without a
traceback and leaves with :attr:`AMGError.exit_status`.
"""

import re
import reprlib
from typing import Any

#: Most characters of a message; more are left out in its middle.
LONGEST_MESSAGE = 4000
#: A word of more characters loses its middle, too: a name or a value that a file brought.
_LONG_WORD = re.compile(r"\S{513,}")
#: How torch passes on an error of a loader's process: with that process's traceback in the message.
_PASSED_ON = re.compile(r"Caught \w+ in DataLoader worker process .*\n[\w.]*Error: (.*)", re.DOTALL)
#: Control characters (escapes of terminals among them), marks that turn the direction of text, lone surrogates.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """Text with its unprintable characters spelled out, so that what a file holds cannot steer a terminal."""
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class _Short(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 120
        self.maxlist = self.maxtuple = self.maxset = self.maxdict = 20
        self.maxlevel = 4

    def repr_int(self, value: int, level: int) -> str:
        # Python refuses to spell out numbers of thousands of digits.
        return super().repr_int(value, level) if value.bit_length() < 256 else f"a number of {value.bit_length()} bits"


def shown(value: Any) -> str:
    """The ``repr`` of a value from outside, cut off, for a message."""
    text = _Short().repr(value)
    return text if len(text) <= 500 else f"{text[:500]}..."


class AMGError(Exception):
    """Base of every error that the plugin raises on purpose; its message is printable and not endless."""

    exit_status = 1

    def __init__(self, message: object = "") -> None:
        if passed_on := _PASSED_ON.fullmatch(str(message)):
            message = passed_on[1].rstrip()
        text = _LONG_WORD.sub(lambda found: f"{found[0][:240]}...{found[0][-240:]}", printable(str(message)))
        if len(text) > LONGEST_MESSAGE:
            half = LONGEST_MESSAGE // 2
            text = f"{text[:half]} ... {text[-half:]}"
        super().__init__(text)


class RunError(AMGError):
    """A run that started and could not be finished."""


class ToldError(RunError):
    """What went wrong in the first of several processes, which says so itself."""


class DamagedFileError(RunError):
    """A file that was not read back as it was written."""


class InputError(AMGError, ValueError):
    """Something the user gave cannot be used."""

    exit_status = 2


class ConfigError(InputError):
    """An unknown configuration key or an impossible value."""


class DataError(InputError):
    """A data set that is missing, incomplete or unreadable."""


class PlanError(InputError):
    """A pruning plan that is malformed or does not fit the model."""


class CheckpointError(InputError):
    """A checkpoint that is missing, truncated, foreign or of another structure."""


class UnsupportedModelError(InputError):
    """A network that is not a plain timm ViT."""


class MissingDependencyError(InputError):
    """A package that the requested feature needs is not installed."""
