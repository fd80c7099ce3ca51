"""Which checkpoints the authors published, and what reading them takes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from amg_plugin.errors import InputError
from amg_plugin.models.reid import ReIDModel
from amg_plugin.models.spec import ModelSpec
from amg_plugin.paper.importing import Sizes, read_network
from amg_plugin.paper.rows import DUKE, MARKET, ROWS, Row
from amg_plugin.paper.tables import build
from amg_plugin.pruning import current_plan
from amg_plugin.pruning.cut import prunable_blocks

#: The authors' repositories state no licence; Market-1501 and what is trained on it is for research.
LICENCE = "none stated; research only"
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
        attention_scale: Factor of query times key; None for ``head_dim ** -0.5``.
    """

    name: str
    family: str
    rates: str
    drive_id: str
    rows: tuple[str, ...]
    num_heads: int = 12
    head_dim: int = 64
    cameras: int = 0
    attention_scale: float | None = None

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
             cameras=8, attention_scale=768**-0.5),
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


def find_entry(name: str) -> ZooEntry:
    """The entry of a name.

    Raises:
        InputError: If there is none; the message lists the names.
    """
    for entry in ENTRIES:
        if entry.name == name:
            return entry
    raise InputError(f"The zoo has no '{name}'; it has {', '.join(entry.name for entry in ENTRIES)}.")


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
        attention_scale=entry.attention_scale,
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
