"""A report: one HTML page that needs nothing besides itself."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image

from amg_plugin.bench.run import case_title
from amg_plugin.data.synthetic.reid import FOLDER, draw_example
from amg_plugin.errors import AMGError, InputError
from amg_plugin.report import comparison, grids
from amg_plugin.report.course import compared, course, kept
from amg_plugin.report.reading import NAMES, Run
from amg_plugin.report.settings import apart, made
from amg_plugin.runs.result import ATTENTION, attention_table, comparison_rows
from amg_plugin.utils.files import write_text
from amg_plugin.utils.places import without_folders
from amg_plugin.version import __version__

FILE_NAME = "report.html"
_ENVIRONMENT = jinja2.Environment(
    loader=jinja2.PackageLoader("amg_plugin.report", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
)  # fmt: skip


def write_report(path: str | Path, runs: Sequence[Run], extras: Mapping[str, Any] | None = None) -> Path:
    """Write the page of a run, or of several side by side.

    Args:
        path: Where to.
        runs: The runs.
        extras: What shows images of the user's, as :mod:`amg_plugin.report.pictures` gives it.

    Raises:
        InputError: If a result holds values that are none of amg-reid's.
        RunError: If the page cannot be written.
    """
    return write_text(path, render(runs, extras), "report")


def render(runs: Sequence[Run], extras: Mapping[str, Any] | None = None) -> str:
    """The page as text; arguments and errors as :func:`write_report`."""
    try:
        content = _content(runs)
    except AMGError:
        raise
    except Exception as error:  # values of any type fail anywhere
        names = ", ".join(run.name for run in runs)
        raise InputError(
            f"The result of {names} cannot be shown: it is damaged, or not one of amg-reid ({error!r})."
        ) from error
    return _ENVIRONMENT.get_template("report.html").render(content, **(extras or {"attention": [], "ranked": []}))


def data_uri(image: Image.Image, form: str = "PNG", **options: Any) -> str:
    """An image as part of a page."""
    content = io.BytesIO()
    image.save(content, form, **options)
    return f"data:image/{form.lower()};base64,{base64.b64encode(content.getvalue()).decode()}"


def _content(runs: Sequence[Run]) -> dict[str, Any]:
    first, alone = runs[0], len(runs) == 1
    common = {
        "version": __version__, "single": alone, "shades": grids.shades(), "made": [made(run) for run in runs],
        "apart": [] if alone else apart(runs), "names": [run.name for run in runs],
        "times": [row for run in runs for row in _times(run)], "latency": [_latency(run) for run in runs],
    }  # fmt: skip
    if not first.sections:  # two models, for queries and for the gallery
        header, rows = comparison_rows(first.result)
        plain = [{"heading": "Two models, alone and together", "header": header, "rows": rows}]
        return {**common, "title": f"Asymmetric retrieval: {first.name}", "summary": "", "models": [], "rows": [],
                "longer": 0, "paired": False, "plain": plain, "course": [], "kept": [], "blocks": None}  # fmt: skip
    models = comparison.models_of(runs)
    rows = comparison.table(models)
    return {
        **common,
        "title": _title(runs),
        "summary": comparison.summary(runs, models),
        "models": [model.name for model in models],
        "rows": rows,
        "longer": _longer(first) if alone else 0,
        "paired": any("[" in by for row in rows for _, by in row.cells),
        "plain": _covered(first) if alone else [],
        "course": course(runs),
        "kept": kept(first) if alone else compared(runs),
        "blocks": _blocks(first) if alone and first.structure else None,
    }


def _longer(run: Run) -> int:
    """Epochs that the last network of a run was trained longer than its first one."""
    return sum(entry["event"] == "epoch" for entry in run.history) if len(run.sections) > 1 else 0


def _title(runs: Sequence[Run]) -> str:
    if len(runs) > 1:
        return f"{len(runs)} runs side by side"
    run, config = runs[0], runs[0].result["config"]
    what = {"train": "Training", "test": "Evaluation"}.get(run.result["command"], "Pruning")
    network = config["amg"].get("arch") or config["model"]["name"]
    return f"{what} of {without_folders(network)} on {without_folders(run.target)}"


def _covered(run: Run) -> list[dict[str, Any]]:
    """Tables of attention on covered patches."""
    found = [attention_table(target, section) for target, section in run.result.get(ATTENTION, {}).items()]
    return [{"heading": heading, "header": header, "rows": rows} for heading, header, rows in found]


def _blocks(run: Run) -> dict[str, Any]:
    """What each block keeps and looks at, on the grid of patches."""
    structure, maps = run.structure, run.attention.get("maps", {})
    plan, grid = structure.plan, structure.grid
    shown = {name: maps[name] for name in dict.fromkeys((run.sections[0], run.last)) if name in maps}
    blocks = []
    for block in range(plan.depth):
        cells = grids.kept_cells(plan, block, grid)
        top = grids.largest(values[block] for values in shown.values())
        blocks.append(
            {
                "kept": grids.area(cells),
                "gone": grids.area(~cells),
                "groups": grids.outlines(plan, block, grid),
                "left": f"{plan.tokens_per_block[block]}/{plan.num_patches}",
                "maps": [(NAMES[name], grids.heat(values[block], grid, top)) for name, values in shown.items()],
            }
        )
    figure = ""
    if run.target == FOLDER:  # drawn, so that nobody is shown
        figure = data_uri(draw_example(*structure.image_size, seed=int(run.result["seed"])))
    return {
        "all": blocks, "rows": grid[0], "columns": grid[1], "figure": figure, "variant": plan.variant,
        "ratio": structure.image_size[1] / structure.image_size[0], "merged": bool(plan.groups),
        "images": run.attention.get("images", 0), "query": run.attention.get("query", ""), "dense": plan.is_dense,
    }  # fmt: skip


def _times(run: Run) -> list[dict[str, str]]:
    found = []
    for row in run.times:
        low, high = row["milliseconds_quartiles"]
        saved = ""
        if "time_saved" in row:
            less, more = row["time_saved_quartiles"]
            saved = f"{100 * row['time_saved']:.1f} % [{100 * less:.1f}, {100 * more:.1f}]"
        found.append(
            {
                "network": without_folders(str(row["network"])),
                "case": f"{case_title(row['form'], row['device'], row['threads'])}, batch {row['batch']}",
                "time": f"{row['milliseconds']:.1f} ms [{low:.1f}, {high:.1f}]",
                "macs": comparison.amount(row["macs"]),
                "saved": saved,
                "on": str(row["measured_on"]),
            }
        )
    return found


def _latency(run: Run) -> str:
    """What a latency target came to, as a sentence."""
    found = run.result.get("latency")
    if not found or "reached" not in found:
        return ""
    reached, (low, high) = found["reached"], found["reached"]["quartiles"]
    return (
        f"{run.name}: {100 * reached['time_saved']:.1f} % of the time of a pass are saved (quartiles {100 * low:.1f} % "
        f"to {100 * high:.1f} %; target {100 * found['target']:.1f} %), form {found['form']} on {found['device']}, "
        f"{found['threads']} threads, batch {found['batch']}."
    )
