"""Token reducers to compare AMG with: token merging (ToMe) and class-attention token dropping (EViT).

Both choose tokens anew for every image. ``merging`` and ``dropping`` are functions on tensors, ``network`` puts them
into a ViT, ``solve`` finds how many tokens have to go.
"""

from amg_plugin.models.reducers.spec import METHODS, ReducerSpec

__all__ = ["METHODS", "ReducerSpec"]
