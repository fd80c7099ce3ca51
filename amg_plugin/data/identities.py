"""Who the training identities are: a digest of their names, in the order of their labels; a digest of any list.

As many identities may be other people, and the same people may have other labels; a classifier is right for one list.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

#: torchreid's data sets -> where the identity stands in the path of an image.
_IN_PATHS = {
    "market1501": r"(\d+)_c\d[^/]*$",
    "dukemtmcreid": r"(\d+)_c\d[^/]*$",
    "msmt17": r"([^/]+)/[^/]+$",
    "cuhk01": r"/(\d{4})[^/]*$",
    "cuhk02": r"([^/]+/)cam\d/([^_/]+)_[^/]*$",
    "cuhk03": r"/(\d+_\d+)_[^/]*$",
    "cuhksysu": r"/([^_/]+)_[^/]*$",
    "grid": r"/(\d+)_[^/]*$",
    "ilids": r"/(\d{4})[^/]*$",
    "prid": r"_(\d+)\.png$",
    "viper": r"/(\d+)_[^/]*$",
}


def identity_digest(sources: Sequence[str], datasets: Mapping[str, Any], train: Sequence[tuple[Any, ...]]) -> str:
    """SHA-256 of the names of the training identities; empty where a data set does not name them.

    torchreid's data sets name them in the paths of images. Any other class may have ``identities``, a mapping of paths
    to names, as the plugin's own have.

    Args:
        sources: Training data sets, in the order that they were added up in.
        datasets: The data sets, opened.
        train: Items of the whole training set: path, label, camera, number of the data set.
    """
    names: dict[int, set[str]] = {}
    for path, label, _, place, *_ in train:
        source = sources[place if len(sources) > 1 else 0]
        name = _name_of(source, datasets[source], path)
        if name is None:
            return ""
        # An occluded copy shows the people of the data set that it was made from.
        names.setdefault(label, set()).add(f"{getattr(datasets[source], 'cameras_of', source)}:{name}")
    listed = [[label, sorted(names[label])] for label in sorted(names)]
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()


def list_digest(items: Sequence[tuple[Any, ...]]) -> str:
    """SHA-256 of a list of images: their file names, without folders, and labels, in order."""
    listed = [[Path(path).name, *map(int, labels)] for path, *labels in items]
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()


def _name_of(source: str, dataset: Any, path: str) -> str | None:
    if (known := getattr(dataset, "identities", None)) is not None:
        return str(known[path])
    found = re.search(_IN_PATHS[source], path.replace("\\", "/")) if source in _IN_PATHS else None
    if found is None:
        return None
    name = "".join(found.groups())
    return str(int(name)) if source in ("market1501", "dukemtmcreid") else name
