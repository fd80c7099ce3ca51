"""What torchreid's own data sets read of a folder: files that they would not see, and names that they misread.

Their rules stay, so that figures remain comparable: most list one folder by one suffix, in lower case, and take numbers
out of names (Market-1501's pattern takes one digit of a camera, and looks at the whole path). What a rule leaves out or
reads otherwise than it stands there would change figures without a word; here it is named.
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amg_plugin.data.checks.problems import Problem
from amg_plugin.data.layout import (
    MARKET_EXAMPLE,
    MARKET_FOLDERS,
    MARKET_IMAGES_DIR,
    RENAME,
    image_files,
    name_of,
)
from amg_plugin.utils.files import expanded

_TORCHREID = re.compile(r"([-\d]+)_c(\d)")  # market1501.py and dukemtmcreid.py search it in the path
_STANDS = re.compile(r"(\d+)_c(\d+)")


@dataclass(frozen=True)
class _Files:
    """Which files a class lists, and how their names are read.

    Attributes:
        folder: The data set's folder below the data root.
        parts: Part -> its folder in there.
        suffix: The end of the names that are listed.
        naming: What a name must match, so that torchreid reads its numbers as they stand; None for Market's pattern.
        example: How a name looks, for messages.
        cameras: Number of cameras that the class knows; 0 for any.
        most: Highest identity that the class knows; 0 for any.
        inner: Folder in which everything may lie.
    """

    folder: str
    parts: Mapping[str, str]
    suffix: str = ".jpg"
    naming: str | None = None
    example: str = MARKET_EXAMPLE
    cameras: int = 0
    most: int = 0
    inner: str = ""

    @property
    def rule(self) -> str:
        """How a name must look, for messages."""
        limits = [f"identity up to {self.most}"] * bool(self.most) + [f"camera from 1 to {self.cameras}"]
        return f"{self.example}{': ' + ', '.join(limits) if self.cameras else ''}"


_DUKE = {part: f"DukeMTMC-reID/{folder}" for part, folder in MARKET_FOLDERS.items()}
_CUHK02 = {f"P{pair}/cam{side}": f"Dataset/P{pair}/cam{side}" for pair in range(1, 6) for side in (1, 2)}
_STOCK = {
    "market1501": _Files("market1501", MARKET_FOLDERS, cameras=6, most=1501, inner=MARKET_IMAGES_DIR),
    "dukemtmcreid": _Files("dukemtmc-reid", _DUKE, example="0001_c2_f0046182.jpg", cameras=8),
    "cuhk01": _Files("cuhk01", {"campus": "campus"}, ".png", r"\d{7}\.", "0001001.png"),
    "cuhk02": _Files("cuhk02", _CUHK02, ".png", r"\d+_", "001_001.png"),
    "cuhksysu": _Files("cuhksysu", {"train": "cropped_images"}, ".jpg", "[^_]+_", "p11422_s16929_1.jpg"),
    "grid": _Files(
        "grid",
        {"probe": "underground_reid/probe", "gallery": "underground_reid/gallery"},
        ".jpeg",
        r"\d+_\d+_",
        "0001_1_25004_107_32_106_221.jpeg",
    ),
    "ilids": _Files("ilids", {"images": "i-LIDS_Pedestrian/Persons"}, ".jpg", r"\d{7}\.", "0001001.jpg"),
    "sensereid": _Files(
        "sensereid",
        {"query": "SenseReID/test_probe", "gallery": "SenseReID/test_gallery"},
        ".jpg",
        r"\d+_\d+\.",
        "00001_0.jpg",
    ),
    "viper": _Files("viper", {"cam_a": "VIPeR/cam_a", "cam_b": "VIPeR/cam_b"}, ".bmp", r"\d+_", "001_45.bmp"),
}


def stock_problems(name: str, root: str | Path, options: Mapping[str, Any]) -> list[Problem]:
    """What would make a data set of torchreid's read something else than is there; nothing for any other data set.

    Args:
        name: Name of the data set.
        root: Data root.
        options: What its class is opened with.
    """
    folder = expanded(root).absolute()  # as torchreid, whose pattern sees the whole path
    if name == "msmt17":
        return _list_problems(folder / "msmt17")
    if name not in _STOCK:
        return []
    files = _STOCK[name]
    folder /= files.folder
    if files.inner and (folder / files.inner).is_dir():
        folder = folder / files.inner
    parts = dict(files.parts)
    if name == "market1501" and options.get("market1501_500k"):
        parts["distractors"] = "images"
    empty, unseen, misread = [], [], []
    for part, below in parts.items():
        if not (folder / below).is_dir():
            continue  # the class says so itself, or builds it
        there = image_files(folder / below, nested=False)
        listed = [path for path in sorted(there) if fnmatch.fnmatch(name_of(path), f"*{files.suffix}")]  # as glob does
        others = sorted(set(image_files(folder / below)) - set(listed))
        unseen += [f"{path} ({_why_unseen(path, folder / below)})" for path in others]
        misread += [f"{path} ({reason})" for path in listed if (reason := _misreading(path, files))]
        if not any(name_of(path)[:3] != "-1_" for path in listed):
            empty.append(f"{part} in {folder / below}")
    found = []
    if empty:
        text = f"{name} has no images (*{files.suffix} directly in the folder) of a person in some of its parts"
        found.append(Problem(name, text, tuple(empty)))
    if unseen:
        text = f"{len(unseen)} image files of {name} are not read by torchreid, which takes *{files.suffix} directly in"
        found.append(Problem(name, f"{text} the folder of a part", tuple(unseen), RENAME))
    if misread:
        text = f"{len(misread)} images of {name} have names that torchreid does not read as they stand ({files.rule})"
        found.append(Problem(name, text, tuple(misread), RENAME))
    return found


def _why_unseen(path: str, folder: Path) -> str:
    inside = Path(path).parent.relative_to(folder)
    return Path(path).suffix if inside == Path() else f"{Path(path).suffix}, in the folder {inside} inside the part's"


def _misreading(path: str, files: _Files) -> str:
    """Why torchreid would not read the numbers of an image's name as they stand; empty if it does."""
    name = name_of(path)
    if files.naming is not None:
        return "" if re.match(files.naming, name) else "another form"
    stands, taken = _STANDS.search(name), _TORCHREID.search(path)
    if stands is None:
        return "another form"
    identity, camera = int(stands[1]), int(stands[2])
    if stands.start() == 1 and name[0] == "-":
        identity = -identity
    if not re.fullmatch(r"-?\d+", taken[1]) or int(taken[1]) != identity:
        return f"its identity is read as {taken[1]}"
    if int(taken[2]) != camera:
        return f"its camera is read as {taken[2]}"
    if not 1 <= camera <= files.cameras:
        return f"camera {camera}"
    return f"identity {identity}" if files.most and not -1 <= identity <= files.most else ""


def _list_problems(folder: Path) -> list[Problem]:
    """Lines of MSMT17's lists that torchreid cannot read, or reads otherwise than they stand."""
    bad = []
    for path in sorted(folder.glob("MSMT17_V[12]/list_*.txt")):
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            image, _, label = line.partition(" ")
            fields = name_of(image.replace("/", os.sep)).split("_")
            if not line.strip():
                bad.append(f"{path}, line {number} (blank)")
            elif len(fields) < 3 or not re.fullmatch(r"0*[1-9]\d*", fields[2]) or not label.isdecimal():
                bad.append(f"{path}, line {number} ({line[:80]})")
            elif fields[2] != image.split("_")[2]:
                bad.append(f"{path}, line {number} (its camera is read as {image.split('_')[2]})")
    text = f"{len(bad)} lines of msmt17's lists are not of the form 0000/0000_000_01_0303morning_0015_0.jpg 0"
    return [Problem("msmt17", f"{text} (image with camera in its third field, label)", tuple(bad))] if bad else []
