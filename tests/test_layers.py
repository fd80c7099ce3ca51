"""The rule of docs/architecture.md: a folder imports only what stands above it in the list, and nothing in circles."""

import ast
import re
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]
PACKAGE = "amg_plugin"
MODULES, LINES = 8, 400


def layers() -> list[str]:
    """The list, from the most basic layer to the command line."""
    text = (CHECKOUT / "docs" / "architecture.md").read_text(encoding="utf-8")
    return re.search(r"```layers\n(.*?)```", text, re.DOTALL)[1].split()


def sources() -> dict[str, str]:
    """Source of every module of the package by its dotted name."""
    found = {}
    for path in (CHECKOUT / PACKAGE).rglob("*.py"):
        parts = path.relative_to(CHECKOUT).with_suffix("").parts
        found[".".join(parts).removesuffix(".__init__")] = path.read_text(encoding="utf-8")
    return found


def imports(source: str, known: Mapping[str, str]) -> Iterator[str]:
    """Modules of the package that a module imports anywhere, in functions and for types too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            longer = {f"{node.module}.{alias.name}" for alias in node.names}
            names = [*(longer & set(known)), *([node.module] if longer - set(known) else [])]
        else:
            continue
        yield from (name for name in names if name.split(".")[0] == PACKAGE)


def room(module: str) -> str:
    """The layer that a module belongs to; empty for the package itself."""
    return [*module.split("."), ""][1]


def violations(modules: Mapping[str, str], order: list[str]) -> list[str]:
    """Imports that go down the list; the package's own names, which lead to every layer, are for users only."""
    allowed = {name: set(order[: place + 1]) for place, name in enumerate(order)}
    return [
        f"{module} imports {other}"
        for module, source in modules.items()
        for other in imports(source, modules)
        if room(module) not in ("", "__main__") and room(other) not in allowed[room(module)]
    ]


def test_a_folder_imports_only_what_stands_above_it():
    assert violations(sources(), layers()) == []


@pytest.mark.parametrize(
    "source",
    [
        "from amg_plugin.cli import main",
        "import amg_plugin.engine.hooks",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from amg_plugin.data.manager import build",
        "def later():\n    from amg_plugin.runs import setup",
        "from amg_plugin import load_model",
    ],
)
def test_an_import_against_the_order_is_found(source):
    modules = {**sources(), "amg_plugin.models.planted": source}
    assert len(violations(modules, layers())) == 1


def test_modules_do_not_import_one_another_in_circles():
    modules = sources()
    graph = {name: set(imports(source, modules)) - {PACKAGE} for name, source in modules.items()}
    list(TopologicalSorter(graph).static_order())
    graph["amg_plugin.errors"] = {"amg_plugin.compat"}
    with pytest.raises(CycleError):
        list(TopologicalSorter(graph).static_order())


def test_every_room_is_in_the_list():
    rooms = {room(module) for module in sources()} - {"", "__main__"}
    assert sorted(rooms) == sorted(layers())


def test_few_modules_lie_outside_a_room():
    alone = {path.stem for path in (CHECKOUT / PACKAGE).glob("*.py")} - {"__init__", "__main__"}
    assert len(alone) <= MODULES


def test_no_module_is_long():
    assert {name: n for name, source in sources().items() if (n := len(source.splitlines())) > LINES} == {}
