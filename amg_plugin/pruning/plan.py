"""What is pruned, as versioned plain data relative to the dense model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from amg_plugin.errors import PlanError
from amg_plugin.registries import TOKEN_VARIANTS

VERSION = 1
Indices = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class PruningPlan:
    """Heads and patch positions that each block keeps.

    Immutable, comparable and hashable. Positions count the patches of the image grid row by row from 0, without
    prefix tokens, which are always kept.

    Attributes:
        variant: What removing a token means: ``"kv"`` (its key and value) or ``"block"`` (the whole block).
        num_heads: Heads per block of the dense model.
        num_patches: Patch tokens of the dense model.
        heads: Per block, the kept heads of the dense model, ascending, at least one.
        tokens: Per block, the kept patch positions, ascending, at least one.
        heads_known: False if only the number of kept heads is known, as for checkpoints that do not record which ones
            they kept; ``heads`` then counts from 0.
    """

    variant: str
    num_heads: tuple[int, ...]
    num_patches: int
    heads: Indices
    tokens: Indices
    heads_known: bool = True

    def __post_init__(self) -> None:
        # Lists would make the plan unhashable.
        object.__setattr__(self, "num_heads", tuple(self.num_heads))
        object.__setattr__(self, "heads", tuple(map(tuple, self.heads)))
        object.__setattr__(self, "tokens", tuple(map(tuple, self.tokens)))
        if self.variant not in TOKEN_VARIANTS:
            raise PlanError(f"Token variant '{self.variant}' is unknown; allowed: {', '.join(TOKEN_VARIANTS)}.")
        depth = len(self.num_heads)
        for name, kept, totals in (
            ("heads", self.heads, self.num_heads),
            ("tokens", self.tokens, (self.num_patches,) * depth),
        ):
            if len(kept) != depth:
                raise PlanError(f"The plan lists {name} for {len(kept)} blocks, the model has {depth}.")
            for block, (indices, total) in enumerate(zip(kept, totals, strict=True)):
                ascending = all(a < b for a, b in pairwise(indices))
                if not indices or not ascending or indices[0] < 0 or indices[-1] >= total:
                    raise PlanError(
                        f"The kept {name} of block {block} must be ascending numbers from 0 to {total - 1}, "
                        "at least one."
                    )

    @classmethod
    def dense(cls, num_heads: Sequence[int], num_patches: int, variant: str = "block") -> PruningPlan:
        """The plan that keeps everything.

        Args:
            num_heads: Heads per block.
            num_patches: Patch tokens of an image.
            variant: Meaning of later token removals.
        """
        return cls(
            variant=variant,
            num_heads=tuple(num_heads),
            num_patches=num_patches,
            heads=tuple(tuple(range(count)) for count in num_heads),
            tokens=tuple(tuple(range(num_patches)) for _ in num_heads),
        )

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.num_heads)

    @property
    def heads_per_block(self) -> list[int]:
        """Number of kept heads of each block."""
        return [len(kept) for kept in self.heads]

    @property
    def tokens_per_block(self) -> list[int]:
        """Number of kept patch tokens of each block, prefix tokens not counted."""
        return [len(kept) for kept in self.tokens]

    def left(self, target: str) -> list[int]:
        """Number of kept ``"heads"`` or ``"tokens"`` of each block."""
        return self.heads_per_block if target == "heads" else self.tokens_per_block

    @property
    def prunes_tokens(self) -> bool:
        """Whether any block keeps fewer tokens than the dense one."""
        return any(count < self.num_patches for count in self.tokens_per_block)

    @property
    def is_dense(self) -> bool:
        """Whether nothing is removed."""
        return self.heads_per_block == list(self.num_heads) and not self.prunes_tokens

    def with_variant(self, variant: str) -> PruningPlan:
        """The same plan for another token variant; only possible before any token is removed.

        Raises:
            PlanError: If tokens are removed already and the variant differs.
        """
        if variant != self.variant and self.prunes_tokens:
            raise PlanError(
                f"Tokens were removed in variant '{self.variant}'; variant '{variant}' cannot be mixed with it."
            )
        return replace(self, variant=variant)

    def narrow(
        self, *, heads: Sequence[Sequence[int]] | None = None, tokens: Sequence[Sequence[int]] | None = None
    ) -> PruningPlan:
        """Prune further.

        Args:
            heads: Per block, which of the heads left here to keep, as indices into them (what ``select_heads`` gives).
            tokens: The same for the patch tokens (what ``select_tokens`` gives).
        """
        return replace(
            self,
            heads=self.heads if heads is None else _pick(self.heads, heads, "heads"),
            tokens=self.tokens if tokens is None else _pick(self.tokens, tokens, "tokens"),
        )

    def contains(self, other: PruningPlan) -> bool:
        """Whether ``other`` can be reached from here by removing only."""
        return all(
            set(theirs) <= set(ours)
            for ours, theirs in zip((*self.heads, *self.tokens), (*other.heads, *other.tokens), strict=True)
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "version": VERSION,
            "variant": self.variant,
            "num_heads": list(self.num_heads),
            "num_patches": self.num_patches,
            "heads": [list(kept) for kept in self.heads],
            "tokens": [list(kept) for kept in self.tokens],
            "heads_known": self.heads_known,
        }

    @classmethod
    def from_dict(cls, data: Any) -> PruningPlan:
        """Inverse of :meth:`to_dict`.

        Raises:
            PlanError: If the data is of another version or malformed.
        """
        if not isinstance(data, dict):
            raise PlanError("A pruning plan must be a dictionary.")
        if data.get("version") != VERSION:
            raise PlanError(
                f"The pruning plan has version {data.get('version')!r}; this release reads version {VERSION}."
            )
        fields = {name: value for name, value in data.items() if name != "version"}
        heads_known = fields.pop("heads_known", True)
        if not isinstance(heads_known, bool):
            raise PlanError(f"heads_known of a pruning plan must be true or false, not {heads_known!r}.")
        try:
            return cls(
                variant=fields.pop("variant"),
                num_heads=_integers(fields.pop("num_heads")),
                num_patches=_integers([fields.pop("num_patches")])[0],
                heads=tuple(_integers(kept) for kept in fields.pop("heads")),
                tokens=tuple(_integers(kept) for kept in fields.pop("tokens")),
                heads_known=heads_known,
                **fields,
            )
        except (KeyError, TypeError) as error:
            raise PlanError(f"The pruning plan is malformed: {error}.") from error

    def to_json(self, indent: int | None = None) -> str:
        """JSON text with sorted keys."""
        return json.dumps(self.to_dict(), indent=indent, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> PruningPlan:
        """Inverse of :meth:`to_json`.

        Raises:
            PlanError: If the text is not JSON or not a plan.
        """
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise PlanError(f"The pruning plan is not JSON: {error}.") from error
        return cls.from_dict(data)

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON, stable across processes and releases of the same version."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


def _pick(current: Indices, chosen: Sequence[Sequence[int]], what: str) -> Indices:
    if len(current) != len(chosen):
        raise PlanError(f"A choice of {what} for {len(chosen)} blocks does not fit a plan of {len(current)}.")
    for kept, picks in zip(current, chosen, strict=True):
        if any(not 0 <= index < len(kept) for index in picks):
            raise PlanError(f"A choice of {what} points past those that are left.")
    return tuple(tuple(kept[index] for index in sorted(picks)) for kept, picks in zip(current, chosen, strict=True))


def _integers(values: Any) -> tuple[int, ...]:
    if not all(isinstance(value, int) and not isinstance(value, bool) for value in values):
        raise TypeError("indices must be whole numbers")
    return tuple(values)
