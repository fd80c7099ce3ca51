"""Networks in the form they are deployed in."""

from amg_plugin.deploy.fast.network import FastNetwork, fast, has_fast_form

__all__ = ["FastNetwork", "fast", "has_fast_form"]
