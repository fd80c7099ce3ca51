"""Networks in the form they are deployed in."""

from amg_plugin.inference.fast import FastNetwork, fast, has_fast_form

__all__ = ["FastNetwork", "fast", "has_fast_form"]
