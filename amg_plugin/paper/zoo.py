"""The authors' published checkpoints: where they are, how they are fetched, verified and imported.

The authors publish no checksums, so the first fetch decides: what it finds is recorded next to the file. A file
that later differs from its record, in the cache or downloaded again, is an error.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from amg_plugin.errors import InputError, MissingDependencyError, RunError
from amg_plugin.models.reid import ReIDModel
from amg_plugin.models.spec import ModelSpec
from amg_plugin.paper.importing import Sizes, read_network
from amg_plugin.paper.rows import DUKE, MARKET, ROWS, Row
from amg_plugin.paper.tables import build
from amg_plugin.pruning import current_plan
from amg_plugin.pruning.cut import prunable_blocks
from amg_plugin.utils.files import check_writable, expanded, kind_of, read_json, sha256, write_text
from amg_plugin.utils.imports import need

logger = logging.getLogger(__name__)

#: The authors' repositories state no licence; Market-1501 and what is trained on it is for research.
LICENCE = "none stated; research only"
#: Environment variable that names the cache folder.
CACHE_VARIABLE = "AMG_REID_CACHE"
_DATA_SETS = {MARKET: "market1501", DUKE: "occluded_duke"}


@dataclass(frozen=True)
class ZooEntry:
    """One published file.

    Attributes:
        name: What ``amg-reid zoo fetch`` takes.
        family: The program that wrote it, ``"transreid"`` or ``"la"``.
        rates: What its label says is removed.
        drive_id: Its id on Google Drive.
        rows: Keys of the published row that it belongs to; two where the row does not agree with itself.
        num_heads: Heads of a dense block.
        head_dim: Width of a head.
        cameras: Cameras of the side information; 0 for none.
    """

    name: str
    family: str
    rates: str
    drive_id: str
    rows: tuple[str, ...]
    num_heads: int = 12
    head_dim: int = 64
    cameras: int = 0

    @property
    def published(self) -> tuple[Row, ...]:
        """The published rows."""
        return tuple(row for row in ROWS if row.key in self.rows)

    @property
    def spec(self) -> ModelSpec:
        """The dense network: image size, stride, identities."""
        return self.published[0].spec

    @property
    def data_set(self) -> str:
        """The name of the data set that it was trained on."""
        return _DATA_SETS[self.published[0].data]

    @property
    def url(self) -> str:
        """The page that a browser downloads the file from."""
        return f"https://drive.google.com/file/d/{self.drive_id}/view"

    def path(self, folder: Path) -> Path:
        """Where its file is kept in a cache folder; the record lies beside it as ``.json``."""
        return folder / f"{self.name}.pth"


ENTRIES: tuple[ZooEntry, ...] = (
    ZooEntry("tr_base_market_dense", "transreid", "dense", "11p4RjmpCGGAS-876VEt7OoFrUeHTUlyO",
             ("tr_base_market_dense",), cameras=6),
    ZooEntry("tr_base_market_head25_token25", "transreid", "heads 25 %, tokens 25 %",
             "1fdbMLlqd_fKxn1h2fDWvFX_VKKxA-mYO",
             ("tr_base_market_head25_token25", "tr_base_market_head15_token25"), cameras=6),
    ZooEntry("tr_base_duke_dense", "transreid", "dense", "1VJg4rTA43TCHkR9hTIBu8S2Sy1KiTnSJ",
             ("tr_base_duke_dense",), cameras=8),
    ZooEntry("tr_base_duke_head25_token25", "transreid", "heads 25 %, tokens 25 %",
             "1oEjFe9egQg9ToRJxWo-6cO0-PnQkgBvu", ("tr_base_duke_head25_token25",), cameras=8),
    ZooEntry("tr_small_duke_head40_token40", "transreid", "heads 40 %, tokens 40 %",
             "1tDnArM9PT7SDudrndu-udiKTnEUJNv2x", ("tr_small_duke_head40_token40",), num_heads=8, head_dim=96,
             cameras=8),
    ZooEntry("la_base_market_token40", "la", "tokens 40 %", "1updZP0Y3Jjh0oQ8Zl1C78YvqKnAqgzyB",
             ("la_base_token40",)),
    ZooEntry("la_base_market_head40", "la", "heads 40 %", "1jRzkZW_k_hx3Mf5XefsGh8ZWn2qXqcny",
             ("la_base_head40", "la_base_head33")),
    ZooEntry("la_base_market_head25_token25", "la", "heads 25 %, tokens 25 %", "1ihD52Mwfgc7HvKNLKW4Ou6eHez9gGHyO",
             ("la_base_head25_token25",)),
    ZooEntry("la_tiny_duke_token40", "la", "tokens 40 %", "1w1icUdf_qrrcQHBhiASZG4DQmRu-Ked0",
             ("la_tiny_token40",), num_heads=3),
    ZooEntry("la_tiny_duke_head67", "la", "heads 67 %", "1rVr2njy57enttUmyCRCeZoi9uNEFtA8u",
             ("la_tiny_head67",), num_heads=3),
    ZooEntry("la_tiny_duke_head_token", "la", "heads and tokens", "10lpPNstRfqhMh57fa8uwnCRNXixTTq9y",
             ("la_tiny_head67_token40", "la_tiny_head15_token25"), num_heads=3),
)  # fmt: skip


@dataclass(frozen=True)
class Record:
    """What the first fetch found, and when (UTC); the size is in bytes, the checksum hexadecimal."""

    drive_id: str
    size: int
    sha256: str
    recorded: str


@dataclass(frozen=True)
class Fetched:
    """A verified file; ``is_new`` says that this call recorded size and checksum, rather than verified them."""

    path: Path
    record: Record
    is_new: bool


def find_entry(name: str) -> ZooEntry:
    """The entry of a name.

    Raises:
        InputError: If there is none; the message lists the names.
    """
    for entry in ENTRIES:
        if entry.name == name:
            return entry
    raise InputError(f"The zoo has no '{name}'; it has {', '.join(entry.name for entry in ENTRIES)}.")


def cache_folder(given: str | Path | None = None) -> Path:
    """The folder of fetched files: ``given``, ``$AMG_REID_CACHE``, or ``amg_plugin/zoo`` in the user's cache folder.

    The user's cache folder is ``$XDG_CACHE_HOME``, or else ``~/.cache``.
    """
    if given:
        return expanded(given)
    if named := os.environ.get(CACHE_VARIABLE):
        return expanded(named)
    home = os.environ.get("XDG_CACHE_HOME")
    # A relative one is to be ignored, says the XDG specification.
    base = Path(home) if home and Path(home).is_absolute() else Path.home() / ".cache"
    return base / "amg_plugin" / "zoo"


def recorded(entry: ZooEntry, folder: Path) -> Record | None:
    """What the first fetch recorded; None before it, or if the record is damaged."""
    path = entry.path(folder).with_suffix(".json")
    if kind_of(path) != "file":
        return None
    try:
        record = Record(**read_json(path, "record"))
        if not (type(record.size) is int and isinstance(record.sha256, str) and len(record.sha256) == 64):
            raise InputError(f"The record '{path}' names no size or SHA-256.")
    except (InputError, TypeError) as error:
        logger.warning("%s It counts as absent: '%s' is fetched and recorded again.", error, entry.name)
        return None
    return record


def fetch(
    entry: ZooEntry,
    folder: Path,
    *,
    local_file: str | Path | None = None,
    refresh: bool = False,
    download: Callable[[str, Path], None] | None = None,
) -> Fetched:
    """Give the file of an entry: from the cache, or else from Google Drive or a copy that the user downloaded.

    Args:
        entry: Which one.
        folder: The cache folder; made if needed.
        local_file: A copy downloaded by hand, which takes the place of the download.
        refresh: Forget the file and its record first.
        download: Writes the file of a Google Drive id to a path, in place of gdown.

    Raises:
        InputError: If ``local_file`` does not exist, or the folder cannot be written.
        MissingDependencyError: If gdown is needed and missing.
        RunError: If the download fails, or the file differs from its record.
    """
    if local_file is not None and not Path(local_file).is_file():
        raise InputError(f"--file '{local_file}' does not exist; give the file downloaded from {entry.url}.")
    record = None if refresh else recorded(entry, folder)
    path = entry.path(folder)
    if record and path.is_file() and local_file is None:
        _verify(entry, path, record, "The file in the cache")
        return Fetched(path, record, is_new=False)
    check_writable(folder, f"The cache folder (--cache or {CACHE_VARIABLE})")
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=f".{entry.name}.") as workplace:
            arrived = Path(workplace) / path.name
            if local_file is not None:
                shutil.copyfile(local_file, arrived)
            else:
                _download(entry, arrived, download or _download_with_gdown)
            with arrived.open("rb") as stream:
                start = stream.read(512).lstrip().lower()
            if start.startswith((b"<!doctype", b"<html")):
                raise RunError(
                    f"What arrived for '{entry.name}' is a web page, not a checkpoint: Google Drive's quota is used up "
                    f"or the file is gone; see {entry.url}."
                )
            if record:
                _verify(entry, arrived, record, "The file given" if local_file else "The file on Google Drive")
                new = record
            else:
                now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
                new = Record(entry.drive_id, arrived.stat().st_size, sha256(arrived), now)
                # The record first: a file without one would never be verified.
                write_text(path.with_suffix(".json"), json.dumps(asdict(new), indent=1) + "\n")
            arrived.replace(path)
    except OSError as error:
        raise RunError(f"'{entry.name}' cannot be kept in '{folder}': {error}.") from error
    return Fetched(path, new, is_new=record is None)


def _download(entry: ZooEntry, target: Path, download: Callable[[str, Path], None]) -> None:
    reason = (
        ": nothing arrived, which means no network, a download quota that is used up, or a file that was taken down"
    )
    cause = None
    try:
        download(entry.drive_id, target)
    except MissingDependencyError:
        raise
    except Exception as error:  # gdown and requests raise many types: no network, quota, no permission
        words = " ".join(str(error).split())
        reason = f" ({type(error).__name__}: {words[:200]}{'...' if len(words) > 200 else ''})"
        cause = error
    # Older releases of gdown print and return.
    if cause or not target.is_file() or not target.stat().st_size:
        raise RunError(
            f"'{entry.name}' cannot be downloaded from Google Drive{reason}; download it from {entry.url} with a "
            f"browser and run 'amg-reid zoo fetch {entry.name} --file FILE', or try again later."
        ) from cause


def _download_with_gdown(drive_id: str, target: Path) -> None:
    gdown = need("gdown", "Fetching")
    gdown.download(id=drive_id, output=str(target), quiet=not sys.stderr.isatty())


def _verify(entry: ZooEntry, file: Path, record: Record, what: str) -> None:
    found, wanted = f"{file.stat().st_size} bytes", f"{record.size} bytes"
    if found == wanted:
        found, wanted = f"SHA-256 {sha256(file)}", f"SHA-256 {record.sha256}"
    if found == wanted:
        logger.info("%s verified: %d bytes, %s", entry.name, record.size, found)
        return
    raise RunError(
        f"{what} for '{entry.name}' has {found}, but {wanted} were recorded when it was first fetched "
        f"({record.recorded}); it is damaged or was replaced. If you trust the new one, run "
        f"'amg-reid zoo fetch {entry.name} --refresh', which fetches and records it again."
    )


def import_entry(entry: ZooEntry, path: str | Path) -> ReIDModel:
    """Read the fetched file of an entry, as data only, into the network that it holds, in eval mode.

    Raises:
        CheckpointError: If the file is not a checkpoint of the entry's program or sizes.
    """
    spec = entry.spec
    sizes = Sizes(
        image_size=spec.image_size,
        stride=spec.stride or None,
        num_heads=entry.num_heads,
        head_dim=entry.head_dim,
        cameras=entry.cameras,
        parts=spec.parts if entry.family == "la" else None,
    )
    return read_network(path, entry.family, sizes)


def remarks(entry: ZooEntry, model: ReIDModel) -> list[str]:
    """How the network that was found compares with what was published about it, as sentences."""
    plan, blocks = current_plan(model), prunable_blocks(model)
    found = [
        sum(plan.num_heads[block] - len(plan.heads[block]) for block in blocks),
        sum(plan.num_patches - len(plan.tokens[block]) for block in blocks),
    ]
    heads, tokens = sum(plan.num_heads[block] for block in blocks), plan.num_patches * len(blocks)
    fitting = [row.key for row in entry.published if list(build(row)[1:]) == found]
    said = [
        f"{found[0]} of {heads} prunable heads and {found[1]} of {tokens} prunable (block, patch) pairs are removed; "
        + (f"row {fitting[0]} of the published tables" if fitting else f"the label says {entry.rates}")
    ]
    if not plan.heads_known:
        said.append("which heads were kept is not recorded in the file; only their numbers are known")
    if model.spec.num_classes != entry.spec.num_classes:
        said.append(f"the file knows {model.spec.num_classes} identities, expected were {entry.spec.num_classes}")
    if entry.cameras and model.spec.side_information is None:
        said.append("the file has no camera embedding")
    return said
