"""``vit_amg``, ``vit_amg_small`` and ``vit_amg_tiny``: what torchreid's ``build_model`` calls.

timm is imported when a network is built, and not when the names are registered.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from amg_plugin.plugin.active import active_amg_config

if TYPE_CHECKING:
    from amg_plugin.models.reid import ReIDModel


def vit_amg(num_classes: int, loss: str = "softmax", pretrained: bool = True, use_gpu: bool = True) -> ReIDModel:
    """ViT-B/16, or whatever ``amg.arch`` of the active node names.

    Args:
        num_classes: Number of training identities.
        loss: ``"softmax"`` or ``"triplet"``.
        pretrained: Start from timm's weights, unless ``amg.weights`` names a local file, which always counts.
        use_gpu: Part of torchreid's call; the model is built on the CPU and moved by the caller.

    Raises:
        InputError: If the configuration is impossible or there are no such weights.
    """
    return _build("vit_amg", num_classes, loss, pretrained)


def vit_amg_small(num_classes: int, loss: str = "softmax", pretrained: bool = True, use_gpu: bool = True) -> ReIDModel:
    """ViT-S/16; arguments as :func:`vit_amg`."""
    return _build("vit_amg_small", num_classes, loss, pretrained)


def vit_amg_tiny(num_classes: int, loss: str = "softmax", pretrained: bool = True, use_gpu: bool = True) -> ReIDModel:
    """ViT-Ti/16; arguments as :func:`vit_amg`."""
    return _build("vit_amg_tiny", num_classes, loss, pretrained)


def _build(name: str, num_classes: int, loss: str, pretrained: bool) -> ReIDModel:
    from amg_plugin.models.build import build_network
    from amg_plugin.models.reducers.solve import fit_reducer
    from amg_plugin.models.spec import ARCHITECTURES, spec_from_config

    amg = active_amg_config()
    spec = spec_from_config(amg, num_classes=num_classes, loss=loss, default_arch=ARCHITECTURES[name])
    return build_network(fit_reducer(spec, amg), pretrained, amg.weights)


#: Models by the name that ``model.name`` takes.
MODELS: dict[str, Callable[..., ReIDModel]] = {
    "vit_amg": vit_amg,
    "vit_amg_small": vit_amg_small,
    "vit_amg_tiny": vit_amg_tiny,
}
