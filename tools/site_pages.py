"""Hooks of MkDocs: they make a site out of the Markdown that is also read on a git host.

The navigation is the index, ``docs/README.md``: its headings are the sections, its links the pages. What lies outside
``docs/`` (README, CHANGELOG, CONTRIBUTING, files that pages link to) gets a place in the site. A picture and the lines
in italics below it become a figure with its caption. Pages of the API come from docstrings, that of help from commands,
those of notebooks from their cells and outputs.
"""

import ast
import json
import os
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from pymdownx.slugs import slugify

from amg_plugin.cli import main as cli

CHECKOUT = Path(__file__).resolve().parents[1]
#: Pages of the checkout's root, and their places in the site.
ROOT_PAGES = {"README.md": "readme.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
#: Modules whose public names have a page.
API = (
    "amg_plugin",
    "amg_plugin.pruning",
    "amg_plugin.models",
    "amg_plugin.engine",
    "amg_plugin.config",
    "amg_plugin.registries",
    "amg_plugin.paper",
    "amg_plugin.errors",
)
_CODE = re.compile(r"(^```.*?^```$|`[^`\n]+`)", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s#]+)((?:#[^)\s]*)?)\)")
_FIGURE = re.compile(r"^(!\[[^\]]*\]\([^)\s]+\))\n\n?\*([^*]+)\*$", re.MULTILINE)
_ROLE = re.compile(r":(?:class|func|meth|mod|data|attr|exc):(?=<code>)")
_CAPTIONED = '<figure markdown="span">\n\\1\n<figcaption markdown="span">\\2</figcaption>\n</figure>'


def on_config(config: Any) -> Any:
    """Take the navigation from the index, and name headings as git hosts do."""
    config.nav = navigation((CHECKOUT / "docs" / "README.md").read_text(encoding="utf-8"))
    config.mdx_configs["toc"]["slugify"] = slugify(case="lower")
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are not in ``docs/``, and copies of files that pages link to outside of it."""
    made = {place: (CHECKOUT / name).read_text(encoding="utf-8") for name, place in ROOT_PAGES.items()}
    made |= {f"api/{module}.md": api_page(module) for module in API}
    made |= {_place(path): notebook_page((CHECKOUT / path).read_text(encoding="utf-8")) for path in _notebooks()}
    made["help.md"] = help_page()
    for place, text in made.items():
        files.append(File.generated(config, place, content=text))
    for page in list(files.documentation_pages()):
        for target, _ in _LINK.findall(_CODE.sub("", page.content_string)):
            found = _target(page.src_uri, target)
            if found and not files.get_file_from_path(_place(found)):
                files.append(File.generated(config, _place(found), abs_src_path=str(CHECKOUT / found)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Lead links to where their targets are in the site, and give pictures their captions."""
    source = page.file.src_uri

    def led(match: re.Match[str]) -> str:
        target, anchor = match.groups()
        if source in ROOT_PAGES.values() and target.startswith("docs/"):
            return f"]({target.removeprefix('docs/')}{anchor})"
        found = _target(source, target)
        if found is None:
            return match.group()
        return f"]({posixpath.relpath(_place(found), posixpath.dirname(source) or '.')}{anchor})"

    parts = _CODE.split(markdown)
    parts[::2] = [_LINK.sub(led, part) for part in parts[::2]]
    return _FIGURE.sub(_CAPTIONED, "".join(parts))


def on_page_content(html: str, **_: Any) -> str:
    """Take away what docstrings write for other programs: roles of names, second colons."""
    return re.sub("::</p>", ":</p>", _ROLE.sub("", html))


def navigation(index: str) -> list[dict[str, list[Any]]]:
    """Sections and pages, in the order of the index.

    Args:
        index: Markdown with headings of the second level, and below them tables whose rows begin with a link to a page.
    """
    sections: list[dict[str, list[Any]]] = [{"Start": ["README.md", {"Overview": "readme.md"}]}]
    for part in re.split(r"^## ", index, flags=re.MULTILINE)[1:]:
        pages = re.findall(r"^\| \[[^\]]*\]\(([^)]*)\)", part, re.MULTILINE)
        heading = part.partition("\n")[0]
        sections.append({heading: [_place(posixpath.normpath(f"docs/{page}")) for page in pages]})
    return [*sections, {"Reference": ["help.md", *(f"api/{module}.md" for module in API)]}]


def api_page(module: str) -> str:
    """Markdown of the page about what a module makes public."""
    path = CHECKOUT.joinpath(*module.split("."))
    source = (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text(encoding="utf-8")
    lines = (ast.get_docstring(ast.parse(source)) or "").split("\n\n")[0]
    return "\n\n".join([f"# {module}", lines, *(f"::: {module}.{name}" for name in public_names(source))]) + "\n"


def public_names(source: str) -> list[str]:
    """``__all__`` of a module; without it, its classes and functions whose names say that they are public."""
    body = ast.parse(source).body
    for node in body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return [name for name in ast.literal_eval(node.value) if not name.startswith("_")]
    kinds = (ast.ClassDef, ast.FunctionDef)
    return [node.name for node in body if isinstance(node, kinds) and not node.name.startswith("_")]


def help_page() -> str:
    """Markdown of the page with the help of every command."""
    os.environ["COLUMNS"] = "110"
    parts = [
        "# Help of every command",
        "What `amg-reid COMMAND --help` prints. [Commands](commands.md) is the overview.",
    ]
    for name in cli.COMMANDS:
        parts += [f"## {name}", f"```text\n{cli.command_parser(name).format_help()}```"]
    return "\n\n".join(parts) + "\n"


def notebook_page(text: str) -> str:
    """Markdown of a notebook with its outputs."""
    parts = []
    for cell in json.loads(text)["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if picture := data.get("image/png"):
                parts.append(f"![{output['output_type']}](data:image/png;base64,{''.join(picture.split())})")
            elif said := "".join(output.get("text") or data.get("text/plain") or ""):
                parts.append(f"```text\n{said.rstrip()}\n```")
    return "\n\n".join(parts) + "\n"


def _notebooks() -> list[str]:
    return sorted(path.relative_to(CHECKOUT).as_posix() for path in (CHECKOUT / "docs").rglob("*.ipynb"))


def _target(source: str, target: str) -> str | None:
    """The path in the checkout that a link of a page leads to, if it is a file that is no plain part of ``docs/``."""
    if ":" in target:
        return None
    here = "" if source in ROOT_PAGES.values() else posixpath.join("docs", posixpath.dirname(source))
    path = posixpath.normpath(posixpath.join(here, target))
    special = path.endswith(".ipynb") or not path.startswith("docs/")
    return path if special and (CHECKOUT / path).is_file() else None


def _place(path: str) -> str:
    """The place in the site of a file of the checkout."""
    if path.startswith("docs/"):
        return re.sub(r"\.ipynb$", ".md", path.removeprefix("docs/"))
    return ROOT_PAGES.get(path, f"files/{path}")
