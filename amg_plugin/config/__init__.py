"""Configuration: defaults, files with ``_BASE_`` inheritance, overrides, checks and plain data."""

from amg_plugin.config.files import configs_root, find_config, list_configs
from amg_plugin.config.load import apply_amg_node, from_plain_dict, load_config, schedule_epochs, to_plain_dict
from amg_plugin.config.rules import validate, validate_amg
from amg_plugin.config.schema import get_default_config, register_key

__all__ = [
    "apply_amg_node",
    "configs_root",
    "find_config",
    "from_plain_dict",
    "get_default_config",
    "list_configs",
    "load_config",
    "register_key",
    "schedule_epochs",
    "to_plain_dict",
    "validate",
    "validate_amg",
]
