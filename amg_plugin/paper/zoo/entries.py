"""Which checkpoints the authors published, and what reading them takes."""

from __future__ import annotations

from dataclasses import dataclass

from amg_plugin.errors import InputError
from amg_plugin.models.spec import ModelSpec
from amg_plugin.paper.rows import DUKE, MARKET, ROWS, Row

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
