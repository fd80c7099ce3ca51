"""Token reducers to compare AMG with: token merging (ToMe) and class-attention token dropping (EViT).

Both choose tokens for each image. ``merging`` and ``dropping`` are functions on tensors, ``network`` puts them
into a ViT, ``solve`` finds how many tokens have to go. :class:`TokenReducer` is the base of these and of a user's.
"""

from amg_plugin.models.reducers.method import TokenReducer
from amg_plugin.models.reducers.spec import ReducerSpec

__all__ = ["ReducerSpec", "TokenReducer"]
