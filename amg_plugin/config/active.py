"""The `amg` node that ``build_model("vit_amg", ...)`` reads.

torchreid's ``build_model`` passes a number of classes, a loss and two switches, but no image size and no
structure. These reach the model through the node held here, set by the launcher, the commands or the user.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from yacs.config import CfgNode

_active: "CfgNode | None" = None


def active_amg_config() -> "CfgNode":
    """Return a copy of the node in force; the defaults as long as none was set."""
    if _active is not None:
        return _active.clone()
    from amg_plugin.config import get_default_config

    return get_default_config().amg.clone()


def set_active_amg_config(node: "CfgNode | None") -> None:
    """Put a copy of ``node`` in force for models built from now on; ``None`` goes back to the defaults."""
    global _active
    _active = None if node is None else node.clone()


@contextmanager
def using_amg_config(node: "CfgNode | None") -> Iterator[None]:
    """Put ``node`` in force inside a ``with`` block and restore the previous one afterwards."""
    global _active
    previous = _active
    set_active_amg_config(node)
    try:
        yield
    finally:
        _active = previous
