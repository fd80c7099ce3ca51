"""Networks in the form they are deployed in."""

from amg_plugin.inference.fast import FastNetwork, fast

__all__ = ["FastNetwork", "fast"]
