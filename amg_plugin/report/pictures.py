"""What shows images of the user's, for those who ask for it: attention laid over images, and ranked results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from yacs.config import CfgNode

from amg_plugin.checkpoint import Checkpoint
from amg_plugin.data.layout import TEST_PARTS
from amg_plugin.data.manager import build_test_loaders
from amg_plugin.deploy.images import as_image
from amg_plugin.evaluation.protocol import ranking
from amg_plugin.plots.attention import attention_of_images
from amg_plugin.plots.checkpoints import prepared
from amg_plugin.plots.overlay import laid_over
from amg_plugin.plugin.registry import register
from amg_plugin.report.page import data_uri
from amg_plugin.runs.setup import build_evaluator, fitted

#: Height of an image on the page in pixels, for sharp screens, and how many results of a query are shown.
_HEIGHT, _SHOWN = 256, 6


def attention_on(files: Sequence[Path], networks: Mapping[str, Checkpoint]) -> list[dict[str, Any]]:
    """Mean attention of every block, laid over images.

    Args:
        files: The images.
        networks: ``"before"`` and ``"after"``, or one of them.

    Returns:
        Per image its ``name`` and ``rows``: a title, and pictures with captions.

    Raises:
        DataError: If a file is not a readable image.
    """
    models = {name: checkpoint.build() for name, checkpoint in networks.items()}
    found = []
    for file in files:
        image, means, pictures = as_image(file), {}, {}
        for name, checkpoint in networks.items():
            pictures[name], inputs = prepared(image, checkpoint)
            seen = attention_of_images(models[name], inputs)[0]
            means[name] = seen.mean().numpy().reshape(-1, *seen.grid)
        tops = np.stack([np.nanmax(one, axis=(1, 2)) for one in means.values()]).max(0)
        rows = []
        for name, mean in means.items():
            shown = [laid_over(pictures[name], values, top) for values, top in zip(mean, tops, strict=True)]
            cells = [(_thumbnail(pictures[name]), "image")]
            rows.append((name, cells + [(_thumbnail(one), f"block {block}") for block, one in enumerate(shown)]))
        found.append({"name": file.name, "rows": rows})
    return found


def ranked(cfg: CfgNode, networks: Mapping[str, Checkpoint], count: int) -> list[dict[str, Any]]:
    """The nearest gallery images of the queries whose first match moved over the most ranks.

    Args:
        cfg: The configuration of the run, whose first target is looked at.
        networks: ``"before"`` and ``"after"``.
        count: Most queries.

    Returns:
        Per query its ``image``, the ranks of its first match ``before`` and ``after``, and ``rows``: a title, and
        images with whether they show the identity.

    Raises:
        InputError: If the data or a checkpoint cannot be used.
    """
    register()
    cfg = cfg.clone()
    cfg.defrost()
    cfg.data.targets = list(cfg.data.targets)[:1]
    cfg.freeze()
    loaders = build_test_loaders(cfg)
    (target,) = loaders
    orders: dict[str, dict[int, tuple[np.ndarray, np.ndarray]]] = {}
    for name, checkpoint in networks.items():
        evaluator = build_evaluator(cfg, fitted(checkpoint, cfg).build(), loaders)
        query, gallery = evaluator.embed(target, name)
        rows = enumerate(zip(evaluator.protocol.distances(query, gallery), query.pids, query.camids, strict=True))
        orders[name] = {number: ranking(*row, gallery) for number, row in rows}
    first = {name: {n: 1 + int(np.argmax(right)) for n, (_, right) in one.items() if right.any()}
             for name, one in orders.items()}  # fmt: skip
    before, after = first.values()
    moved = sorted(before, key=lambda number: (-abs(before[number] - after[number]), number))
    paths = {part: [item[0] for item in loaders[target][part].dataset.data] for part in TEST_PARTS}
    return [
        {
            "image": _photo(paths["query"][number]),
            "before": before[number],
            "after": after[number],
            "rows": [
                (name, [(_photo(paths["gallery"][place]), bool(hit))
                        for place, hit in zip(*(part[:_SHOWN] for part in one[number]), strict=True)])
                for name, one in orders.items()
            ],
        }
        for number in moved[:count]
        if before[number] != after[number]
    ]  # fmt: skip


def _photo(path: str) -> str:
    image = as_image(path)
    return _thumbnail(np.asarray(image.resize((max(1, round(image.width * _HEIGHT / image.height)), _HEIGHT))))


def _thumbnail(picture: np.ndarray) -> str:
    image = Image.fromarray(picture)
    if image.height < _HEIGHT:  # so that patches have sharp edges on every screen
        factor = -(-_HEIGHT // image.height)
        image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    return data_uri(image, "JPEG", quality=82)
