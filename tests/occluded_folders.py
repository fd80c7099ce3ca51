"""Small made-up copies of the occluded data sets: right folders and names, coloured rectangles for people."""

import io
from collections.abc import Iterable
from pathlib import Path

from PIL import Image

FORMATS = {".jpg": "JPEG", ".tif": "TIFF", ".png": "PNG"}


def image_bytes(suffix: str = ".jpg", size: tuple[int, int] = (16, 32), color: int = 90) -> bytes:
    """An image of one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", size, (color, 255 - color, 80)).save(buffer, FORMATS[suffix])
    return buffer.getvalue()


def write_images(folder: Path, names: Iterable[str], size: tuple[int, int] = (16, 32)) -> None:
    """Write an image under every name, which may hold a folder."""
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image_bytes(path.suffix, size, number * 37 % 256))


def duke_names(identities: Iterable[int], cameras: Iterable[int], start: int = 1) -> list[str]:
    """Names as DukeMTMC-reID has them, one per identity and camera."""
    return [f"{pid:04}_c{camera}_f{start + camera:07}.jpg" for pid in identities for camera in cameras]


def market_names(identities: Iterable[int], cameras: Iterable[int]) -> list[str]:
    """Names as Market-1501 has them, one per identity and camera."""
    return [f"{pid:04}_c{camera}s1_{camera:06}_00.jpg" for pid in identities for camera in cameras]


def write_occluded_duke(folder: Path) -> None:
    """Six training identities, four others in query (camera 1) and gallery (cameras 2 and 3)."""
    write_images(folder / "bounding_box_train", duke_names(range(3, 15, 2), (1, 2)))
    write_images(folder / "query", duke_names(range(20, 24), (1,)))
    write_images(folder / "bounding_box_test", duke_names(range(20, 24), (2, 3)))


def write_occluded_market(folder: Path) -> None:
    """The same with Market-1501's names, a junk image and a distractor in the gallery."""
    write_images(folder / "bounding_box_train", market_names(range(3, 15, 2), (1, 2)))
    write_images(folder / "query", market_names(range(20, 24), (1,)))
    gallery = [*market_names((0, *range(20, 24)), (2, 3)), "-1_c1s1_000001_00.jpg"]
    write_images(folder / "bounding_box_test", gallery)


def write_occluded_reid(folder: Path) -> None:
    """Four identities with two occluded and two whole-body images each."""
    for part in ("occluded_body_images", "whole_body_images"):
        write_images(folder / part, [f"{pid:03}/{pid:03}_{n:02}.tif" for pid in range(1, 5) for n in (1, 2)])


def write_partial_reid(folder: Path) -> None:
    """Four identities with two partial and two whole-body images each, and the originals of the partial ones."""
    for part in ("occluded_body_images", "partial_body_images", "whole_body_images"):
        write_images(folder / part, [f"{pid:03}_{n:03}.jpg" for pid in range(1, 5) for n in (1, 2)])


def write_p_dukemtmc(folder: Path) -> None:
    """Six training identities and four others, in a folder per identity."""
    for part, identities, cameras in (
        ("train", range(3, 15, 2), (1, 2)),
        ("query", range(20, 24), (1,)),
        ("gallery", range(20, 24), (2, 3)),
    ):
        write_images(folder / part, [f"{name[:4]}/{name}" for name in duke_names(identities, cameras)])


WRITERS = {
    "occluded_duke": write_occluded_duke,
    "occluded_reid": write_occluded_reid,
    "partial_reid": write_partial_reid,
    "p_dukemtmc": write_p_dukemtmc,
    "occluded_market1501": write_occluded_market,
}
TRAINABLE = ("occluded_duke", "p_dukemtmc", "occluded_market1501")
TARGETS_ONLY = ("occluded_reid", "partial_reid")


def write_all(root: Path) -> Path:
    """Every data set under its usual folder below ``root``."""
    for name, write in WRITERS.items():
        write(root / name)
    return root
