"""What is pruned, as versioned plain data relative to the dense model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from amg_plugin.errors import AMGError, PlanError, shown
from amg_plugin.registries import TARGETS, TOKEN_VARIANTS

_VERSION = 2
#: Earlier versions that are read; version 1 knew neither neurons nor groups nor updates.
_READ = (1, _VERSION)
#: Most patches, heads and neurons of a block that a stored plan may speak of.
_LARGEST = 1 << 15
Indices = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, eq=False)
class PruningPlan:
    """Heads, patch tokens and hidden units of the MLPs that each block keeps.

    Immutable, comparable and hashable. Positions count the patches of the image grid row by row from 0, without
    prefix tokens, which are always kept.

    Attributes:
        variant: What removing a token means: ``"kv"`` (its key and value), ``"block"`` (the whole block) or ``"merge"``
            (another token stands for it).
        num_heads, num_patches: Heads per block and patch tokens of the dense model.
        heads: Per block, the kept heads of the dense model, ascending, at least one.
        tokens: Per block, the kept patch positions, ascending, at least one.
        heads_known: False if only the number of kept heads is known, as for checkpoints that do not record which ones
            they kept; ``heads`` then counts from 0.
        num_neurons: Hidden units of each block's MLP in the dense model. It may be empty, and does not count in
            comparisons, as long as every block keeps all.
        neurons: Per block, the kept hidden units, ascending, at least one; empty where every block keeps all.
        groups: In variant ``"merge"``, per block and kept position, the positions that its token stands for, ascending,
            itself among them. Groups only grow along the blocks; only blocks at the end may get every position back.
            Empty where nothing is merged.
        updates: Blocks that hold a constant update for the tokens that pass around them (variant ``"block"``).
    """

    variant: str
    num_heads: tuple[int, ...]
    num_patches: int
    heads: Indices
    tokens: Indices
    heads_known: bool = True
    num_neurons: tuple[int, ...] = ()
    neurons: Indices = ()
    groups: tuple[Indices, ...] = ()
    updates: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        # Lists would make the plan unhashable.
        for name in ("num_heads", "num_neurons", "updates"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name in TARGETS:
            object.__setattr__(self, name, tuple(map(tuple, getattr(self, name))))
        object.__setattr__(self, "groups", tuple(tuple(map(tuple, block)) for block in self.groups))
        if self.variant not in TOKEN_VARIANTS:
            raise PlanError(f"Token variant '{self.variant}' is unknown; allowed: {', '.join(TOKEN_VARIANTS)}.")
        if self.num_neurons and len(self.num_neurons) != self.depth:
            raise PlanError(f"The plan lists neurons for {len(self.num_neurons)} blocks, the model has {self.depth}.")
        if self.neurons and not self.num_neurons:
            raise PlanError("The plan removes neurons, but does not say how many the dense model has.")
        for target in TARGETS:
            if target != "neurons" or self.neurons:
                _check_kept(
                    getattr(self, target), [self.dense_size(target, block) for block in range(self.depth)], target
                )
        if self.neurons_per_block == list(self.num_neurons):  # one spelling for one thing
            object.__setattr__(self, "neurons", ())
        if self.groups or (self.variant == "merge" and self.prunes_tokens):
            self._check_groups()
        if self.updates and self.variant != "block":
            raise PlanError(f"Constant updates belong to token variant 'block', not to '{self.variant}'.")
        if any(not 0 <= block < self.depth for block in self.updates) or any(a >= b for a, b in pairwise(self.updates)):
            raise PlanError(f"The blocks with updates must be ascending numbers from 0 to {self.depth - 1}.")

    def _check_groups(self) -> None:
        if self.variant != "merge":
            raise PlanError(f"Groups of tokens belong to token variant 'merge', not to '{self.variant}'.")
        if len(self.groups) != self.depth:
            raise PlanError(f"The plan lists groups for {len(self.groups)} blocks, the model has {self.depth}.")
        everything, merged = tuple(range(self.num_patches)), False
        for block, (kept, groups) in enumerate(zip(self.tokens, self.groups, strict=True)):
            ascending = all(a < b for group in groups for a, b in pairwise(group))
            if sorted(position for group in groups for position in group) != list(everything) or not ascending:
                raise PlanError(f"The groups of block {block} must hold each of {self.num_patches} positions once.")
            if len(kept) != len(groups) or any(one not in group for one, group in zip(kept, groups, strict=True)):
                raise PlanError(f"The groups of block {block} do not belong to the positions that it keeps.")
            if block and merged and kept != everything:
                home = {position: number for number, group in enumerate(groups) for position in group}
                apart = any(len({home[position] for position in group}) > 1 for group in self.groups[block - 1])
                if apart or self.tokens[block - 1] == everything:
                    raise PlanError(f"Block {block} takes groups of tokens apart; groups only grow along the blocks.")
            merged |= kept != everything
        if not merged:
            object.__setattr__(self, "groups", ())

    @classmethod
    def dense(
        cls, num_heads: Sequence[int], num_patches: int, variant: str = "block", num_neurons: Sequence[int] = ()
    ) -> PruningPlan:
        """The plan that keeps everything; ``variant`` is the meaning of later token removals."""
        tokens = [range(num_patches)] * len(num_heads)
        return cls(variant, num_heads, num_patches, map(range, num_heads), tokens, num_neurons=num_neurons)

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

    @property
    def neurons_per_block(self) -> list[int]:
        """Number of kept hidden units of each block's MLP; empty if the plan does not know them."""
        return [len(kept) for kept in self.neurons] if self.neurons else list(self.num_neurons)

    def left(self, target: str) -> list[int]:
        """Number of kept ``"heads"``, ``"tokens"`` or ``"neurons"`` of each block."""
        return getattr(self, f"{target}_per_block")

    def kept(self, target: str) -> Indices:
        """Kept ``"heads"``, ``"tokens"`` or ``"neurons"`` of each block, numbered as in the dense model."""
        return getattr(self, target) or tuple(tuple(range(count)) for count in self.num_neurons)

    def dense_size(self, target: str, block: int) -> int:
        """Number of ``"heads"``, ``"tokens"`` or ``"neurons"`` that a block has in the dense model."""
        return self.num_patches if target == "tokens" else getattr(self, f"num_{target}")[block]

    def groups_of(self, block: int) -> Indices:
        """The positions that each token of a block stands for, in the order of ``tokens``."""
        return self.groups[block] if self.groups else tuple((position,) for position in self.tokens[block])

    def groups_at(self, block: int) -> Indices:
        """As :meth:`groups_of`; in front of the first block and behind the last one, every position for itself."""
        outside = tuple((position,) for position in range(self.num_patches))
        return self.groups_of(block) if 0 <= block < self.depth else outside

    @property
    def prunes_tokens(self) -> bool:
        """Whether any block keeps fewer tokens than the dense one."""
        return any(count < self.num_patches for count in self.tokens_per_block)

    @property
    def is_dense(self) -> bool:
        """Whether nothing is removed."""
        return self.heads_per_block == list(self.num_heads) and not self.prunes_tokens and not self.neurons

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
        self,
        *,
        heads: Sequence[Sequence[int]] | None = None,
        tokens: Sequence[Sequence[int]] | None = None,
        neurons: Sequence[Sequence[int]] | None = None,
    ) -> PruningPlan:
        """Prune further.

        Args:
            heads: Per block, which of the heads left here to keep, as indices into them (what ``select_heads`` gives).
            tokens: The same for the patch tokens (what ``select_tokens`` gives); not in variant ``"merge"``.
            neurons: The same for the hidden units.
        """
        if tokens is not None and self.variant == "merge":
            raise PlanError("In variant 'merge' tokens are not removed one by one; give groups to 'merge'.")
        chosen = {"heads": heads, "tokens": tokens, "neurons": neurons}
        picked = {name: _pick(self.kept(name), one, name) for name, one in chosen.items() if one is not None}
        return replace(self, **picked)

    def merge(self, tokens: Sequence[Sequence[int]], groups: Sequence[Sequence[Sequence[int]]]) -> PruningPlan:
        """The same plan with coarser groups of tokens; arguments as the attributes."""
        return replace(self, tokens=tokens, groups=groups)

    def with_updates(self, blocks: Iterable[int]) -> PruningPlan:
        """The same plan with constant updates in ``blocks`` as well."""
        return replace(self, updates=sorted({*self.updates, *blocks}))

    def fitted(self, other: PruningPlan) -> PruningPlan:
        """This plan with the number of neurons of ``other``, if it does not know them itself."""
        known = self.num_neurons or self.depth != other.depth
        return self if known else replace(self, num_neurons=other.num_neurons)

    def contains(self, other: PruningPlan) -> bool:
        """Whether ``other`` can be reached from here by removing only."""
        ours, theirs = self.fitted(other), other.fitted(self)
        fewer = all(
            set(small) <= set(large)
            for target in TARGETS
            for large, small in zip(ours.kept(target), theirs.kept(target), strict=True)
        )
        return fewer and all(
            any(set(group) <= set(larger) for larger in theirs.groups_of(block))
            for block in range(self.depth if other.groups else 0)
            for group in ours.groups_of(block)
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return json.loads(self.to_json())

    @classmethod
    def from_dict(cls, data: Any) -> PruningPlan:
        """Inverse of :meth:`to_dict`; plans of version 1 are read as well.

        Raises:
            PlanError: If the data is of another version or malformed.
        """
        if not isinstance(data, dict):
            raise PlanError("A pruning plan must be a dictionary.")
        fields = dict(data)
        if (version := fields.pop("version", None)) not in _READ or type(version) is not int:
            allowed = " and ".join(map(str, _READ))
            raise PlanError(f"The pruning plan has version {shown(version)}; this release reads versions {allowed}.")
        try:
            if not isinstance(fields.get("heads_known", True), bool):
                raise TypeError(f"heads_known must be true or false, not {shown(fields['heads_known'])}")
            lists = [fields["num_heads"], [fields["num_patches"]], *fields["heads"], *fields["tokens"]]
            lists += [fields.get("num_neurons", ()), fields.get("updates", ()), *fields.get("neurons", ())]
            lists += [group for block in fields.get("groups", ()) for group in block]
            for numbers in lists:
                if not all(type(number) is int for number in numbers):
                    raise TypeError("indices must be whole numbers")
            if max(fields["num_patches"], *fields["num_heads"], *fields.get("num_neurons", ())) > _LARGEST:
                raise ValueError(f"it counts more than {_LARGEST} of a kind in one block")
            return cls(**fields)
        except AMGError:
            raise
        except Exception as error:  # values of any type fail anywhere
            raise PlanError(f"The pruning plan is malformed: {error}.") from error

    def to_json(self, indent: int | None = None) -> str:
        """JSON text with sorted keys."""
        fields = {"version": _VERSION, **vars(self), "num_neurons": self.num_neurons if self.neurons else ()}
        return json.dumps(fields, indent=indent, sort_keys=True)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PruningPlan) and self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash(self.to_json())

    @classmethod
    def from_json(cls, text: str) -> PruningPlan:
        """Inverse of :meth:`to_json`.

        Raises:
            PlanError: If the text is not JSON or not a plan.
        """
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise PlanError(f"The pruning plan is not JSON: {error}.") from error
        return cls.from_dict(data)

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON, stable across processes and releases of the same version."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


def _check_kept(kept: Indices, totals: Sequence[int], what: str) -> None:
    if len(kept) != len(totals):
        raise PlanError(f"The plan lists {what} for {len(kept)} blocks, the model has {len(totals)}.")
    for block, (indices, total) in enumerate(zip(kept, totals, strict=True)):
        ascending = all(a < b for a, b in pairwise(indices))
        if not indices or not ascending or indices[0] < 0 or indices[-1] >= total:
            raise PlanError(
                f"The kept {what} of block {block} must be ascending numbers from 0 to {total - 1}, at least one."
            )


def _pick(current: Indices, chosen: Sequence[Sequence[int]], what: str) -> Indices:
    if len(current) != len(chosen):
        raise PlanError(f"A choice of {what} for {len(chosen)} blocks does not fit a plan of {len(current)}.")
    for kept, picks in zip(current, chosen, strict=True):
        if any(not 0 <= index < len(kept) for index in picks):
            raise PlanError(f"A choice of {what} points past those that are left.")
    return tuple(tuple(kept[index] for index in sorted(picks)) for kept, picks in zip(current, chosen, strict=True))


@dataclass(frozen=True)
class Limits:
    """What may go: heads, patch tokens and neurons of the prunable blocks, each of which keeps some.

    Attributes:
        blocks: Numbers of the prunable blocks.
        heads, tokens, neurons: What each of them keeps, at least.
        multiple: A block that loses neurons keeps a multiple of this many.
    """

    blocks: Sequence[int]
    heads: int = 1
    tokens: int = 1
    neurons: int = 1
    multiple: int = 1

    def floor(self, target: str) -> int:
        """What a block keeps of ``"heads"``, ``"tokens"`` or ``"neurons"``, at least."""
        step = self.step(target)
        return -(-getattr(self, target) // step) * step

    def step(self, target: str) -> int:
        """What is left of ``"heads"``, ``"tokens"`` or ``"neurons"`` in a block that loses some is a multiple of it."""
        return self.multiple if target == "neurons" else 1

    def dense(self, plan: PruningPlan, target: str) -> int:
        """Number of heads, tokens or neurons that the prunable blocks have in the dense model."""
        return sum(plan.dense_size(target, block) for block in self.blocks)

    def left(self, plan: PruningPlan, target: str) -> list[int]:
        """Number of heads, tokens or neurons that are left in each prunable block."""
        kept = plan.left(target)
        return [kept[block] for block in self.blocks]

    def removable(self, plan: PruningPlan, target: str) -> int:
        """Number of heads, tokens or neurons that can go in all."""
        return sum(max(count - self.floor(target), 0) for count in self.left(plan, target))

    def narrow(self, plan: PruningPlan, target: str, chosen: Sequence[Sequence[int]]) -> PruningPlan:
        """``plan`` with a choice for each prunable block: what to keep, as indices into what is left."""
        choice = dict(zip(self.blocks, chosen, strict=True))
        return plan.narrow(**{target: [choice.get(block, range(size)) for block, size in enumerate(plan.left(target))]})
