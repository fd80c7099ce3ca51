"""How a reducer thins out the tokens, as plain data."""

from __future__ import annotations

from dataclasses import dataclass

from amg_plugin.errors import ConfigError
from amg_plugin.registries import REDUCERS


@dataclass(frozen=True)
class ReducerSpec:
    """A reducer and the number of tokens that it leaves.

    Tokens are counted without prefix tokens, which are never merged or dropped.

    Attributes:
        method: A name of :data:`amg_plugin.registries.REDUCERS`.
        tokens: Per block, the tokens that leave it. For ``evit`` the token that the dropped ones are fused into counts.
        saving: Share of the dense network's MACs that was asked for.
    """

    method: str
    tokens: tuple[int, ...]
    saving: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "tokens", tuple(int(count) for count in self.tokens))
        REDUCERS.row(self.method)

    def entering(self, num_patches: int) -> list[int]:
        """Per block, the tokens that enter it."""
        return [num_patches, *self.tokens[:-1]]

    def check(self, depth: int, num_patches: int) -> None:
        """Check that a ViT can do it.

        Raises:
            ConfigError: If the blocks are not as many, or a block cannot leave as few tokens or leaves more than enter.
        """
        if len(self.tokens) != depth:
            raise ConfigError(f"The reducer lists tokens for {len(self.tokens)} blocks, the model has {depth}.")
        fewest = REDUCERS.load(self.method)().fewest
        for block, (before, after) in enumerate(zip(self.entering(num_patches), self.tokens, strict=True)):
            if not fewest(before) <= after <= before:
                raise ConfigError(
                    f"The reducer '{self.method}' cannot leave {after} of {before} tokens in block {block}; allowed: "
                    f"{fewest(before)} to {before}."
                )
