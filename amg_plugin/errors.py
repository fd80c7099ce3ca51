"""Exceptions of the plugin.

Every message is one sentence: what is wrong, where, and what is allowed. The command layer prints it without a
traceback and leaves with :attr:`AMGError.exit_status`.
"""


class AMGError(Exception):
    """Base of every error that the plugin raises on purpose."""

    exit_status = 1


class RunError(AMGError):
    """A run that started and could not be finished."""


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
