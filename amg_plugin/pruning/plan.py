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

_VERSION = 1
Indices = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class PruningPlan:
    """Heads and patch positions that each block keeps.

    Immutable, comparable and hashable. Positions count the patches of the image grid row by row from 0, without
    prefix tokens, which are always kept.

    Attributes:
        variant: What removing a token means: ``"kv"`` (its key and value) or ``"block"`` (the whole block).
        num_heads, num_patches: Heads per block and patch tokens of the dense model.
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
        """The plan that keeps everything; ``variant`` is the meaning of later token removals."""
        return cls(variant, num_heads, num_patches, map(range, num_heads), [range(num_patches)] * len(num_heads))

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
        chosen = {"heads": heads, "tokens": tokens}
        picked = {name: _pick(getattr(self, name), one, name) for name, one in chosen.items() if one is not None}
        return replace(self, **picked)

    def contains(self, other: PruningPlan) -> bool:
        """Whether ``other`` can be reached from here by removing only."""
        return all(
            set(theirs) <= set(ours)
            for ours, theirs in zip((*self.heads, *self.tokens), (*other.heads, *other.tokens), strict=True)
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return json.loads(self.to_json())

    @classmethod
    def from_dict(cls, data: Any) -> PruningPlan:
        """Inverse of :meth:`to_dict`.

        Raises:
            PlanError: If the data is of another version or malformed.
        """
        if not isinstance(data, dict):
            raise PlanError("A pruning plan must be a dictionary.")
        fields = dict(data)
        if (version := fields.pop("version", None)) != _VERSION:
            raise PlanError(f"The pruning plan has version {version!r}; this release reads version {_VERSION}.")
        try:
            if not isinstance(fields.get("heads_known", True), bool):
                raise TypeError(f"heads_known must be true or false, not {fields['heads_known']!r}")
            for numbers in (fields["num_heads"], [fields["num_patches"]], *fields["heads"], *fields["tokens"]):
                if not all(type(number) is int for number in numbers):
                    raise TypeError("indices must be whole numbers")
            return cls(**fields)
        except (KeyError, TypeError) as error:
            raise PlanError(f"The pruning plan is malformed: {error}.") from error

    def to_json(self, indent: int | None = None) -> str:
        """JSON text with sorted keys."""
        return json.dumps({"version": _VERSION, **vars(self)}, indent=indent, sort_keys=True)

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


@dataclass(frozen=True)
class Limits:
    """What may go: heads and patch tokens of the prunable blocks, each of which keeps some.

    Attributes:
        blocks: Numbers of the prunable blocks.
        heads, tokens: What each of them keeps, at least.
    """

    blocks: Sequence[int]
    heads: int = 1
    tokens: int = 1

    def floor(self, target: str) -> int:
        """What a block keeps of ``"heads"`` or ``"tokens"``, at least."""
        return self.heads if target == "heads" else self.tokens

    def dense(self, plan: PruningPlan, target: str) -> int:
        """Number of heads or tokens that the prunable blocks have in the dense model."""
        return sum(plan.num_heads[block] if target == "heads" else plan.num_patches for block in self.blocks)

    def left(self, plan: PruningPlan, target: str) -> list[int]:
        """Number of heads or tokens that are left in each prunable block."""
        kept = plan.left(target)
        return [kept[block] for block in self.blocks]

    def removable(self, plan: PruningPlan, target: str) -> int:
        """Number of heads or tokens that can go in all."""
        return sum(max(count - self.floor(target), 0) for count in self.left(plan, target))

    def narrow(self, plan: PruningPlan, target: str, chosen: Sequence[Sequence[int]]) -> PruningPlan:
        """``plan`` with a choice for each prunable block: what to keep, as indices into what is left."""
        choice = dict(zip(self.blocks, chosen, strict=True))
        return plan.narrow(**{target: [choice.get(block, range(size)) for block, size in enumerate(plan.left(target))]})
