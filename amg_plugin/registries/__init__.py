"""What is open to users: tables of names, and the ways into them. Light: only the standard library is imported.

Each ``register_...`` is a call, ``register_dataset("mine", MyData)``, or a decorator, ``@register_dataset("mine")``.
The first line of the docstring becomes the line in lists; :class:`amg_plugin.registries.registry.Registry` says more.
"""

from amg_plugin.registries.formats import FORMATS, ExportFormat, register_format
from amg_plugin.registries.tables import DATASETS, HEAD_SCORERS, HOOKS, REDUCERS, TOKEN_SCORERS, TRANSFORMS

TABLES = (HEAD_SCORERS, TOKEN_SCORERS, REDUCERS, DATASETS, TRANSFORMS, HOOKS, FORMATS)
register_head_scorer = HEAD_SCORERS.register
register_token_scorer = TOKEN_SCORERS.register
register_reducer = REDUCERS.register
register_dataset = DATASETS.register
register_transform = TRANSFORMS.register
register_hook = HOOKS.register


def described() -> list[str]:
    """A line on every entry: what it is, its name, its summary."""
    return [
        f"{table.kind} {row.name}{f': {row.summary}' if row.summary else ''}"
        for table in TABLES
        for row in table.rows.values()
    ]


__all__ = [
    "DATASETS",
    "FORMATS",
    "HEAD_SCORERS",
    "HOOKS",
    "REDUCERS",
    "TABLES",
    "TOKEN_SCORERS",
    "TRANSFORMS",
    "ExportFormat",
    "described",
    "register_dataset",
    "register_format",
    "register_head_scorer",
    "register_hook",
    "register_reducer",
    "register_token_scorer",
    "register_transform",
]
