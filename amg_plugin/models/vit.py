"""Plain ViTs of timm, made prunable, for any image size and overlapping patches."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import timm
from timm.layers import Attention, GluMlp, LayerNorm, LayerNormFp32, Mlp, PatchEmbed, RmsNorm, SwiGLU
from timm.models import is_model_in_modules
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from timm.models.vision_transformer import Block, LayerScale, VisionTransformer
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from amg_plugin.errors import AMGError, ConfigError, InputError, UnsupportedModelError, shown
from amg_plugin.models.attention import PrunableAttention, PrunableBlock, SubsetNorm
from amg_plugin.models.rotary import RotaryVisionTransformer, check_rotary, replace_patches

_PLAIN = (VisionTransformer, VisionTransformerDistilled, Eva, RotaryVisionTransformer)
_NORMS = (nn.LayerNorm, LayerNorm, LayerNormFp32, RmsNorm)
_NO_OR_NORM = (nn.Identity, *_NORMS, SubsetNorm)
#: Parts of a block with the classes that pruning and the fast form know how to take apart.
_PARTS: dict[str, tuple[type[nn.Module], ...]] = {
    "norm1": _NORMS,
    "norm2": _NORMS,
    "mlp": (Mlp, GluMlp, SwiGLU),
    "attn.norm": _NO_OR_NORM,
    "mlp.norm": _NO_OR_NORM,
}
_SCALES = {"ls1": (nn.Identity, LayerScale), "ls2": (nn.Identity, LayerScale)}
_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)


@dataclass(frozen=True)
class Architecture:
    """An architecture of the literature that timm has no name for: how it departs from one of timm's, the base.

    ``pretrained`` says whether timm's weights of the base fit.
    """

    base: str
    overrides: Mapping[str, Any] = field(default_factory=dict)
    attention_scale: float | None = None
    pretrained: bool = True


#: TransReID's own names. Its "small" is 768 wide with 8 blocks, 8 heads of 96 and no qkv bias, and divides the
#: attention by the root of the whole width.
PUBLISHED: dict[str, Architecture] = {
    "transreid_small": Architecture(
        base="vit_base_patch16_224",
        overrides={"depth": 8, "num_heads": 8, "mlp_ratio": 3.0, "qkv_bias": False},
        attention_scale=768**-0.5,
        pretrained=False,
    ),
    "deit_small": Architecture(base="deit_small_patch16_224"),
}


class OverlappingPatchEmbed(PatchEmbed):
    """timm's patch embedding with a stride smaller than the patch.

    A border that no whole patch fits into is dropped, as in TransReID (ICCV 2021). The stride is one number of pixels
    or (vertical, horizontal); the other arguments are those of timm's ``PatchEmbed``.
    """

    def __init__(self, *, stride: int | tuple[int, int], **kwargs: Any) -> None:
        self.stride = _pair(stride)  # before the parent, which asks for the grid
        super().__init__(**kwargs)
        self.proj.stride = self.stride
        # timm would ask for multiples of the patch, or pad to them, in networks for images of several sizes.
        self.strict_img_size, self.dynamic_img_pad = True, False

    def _init_img_size(self, img_size: Any) -> Any:
        size, grid, count = super()._init_img_size(img_size)
        if size is not None:
            _check_image_size(size, self.patch_size, self.stride)
            grid = self.dynamic_feat_size(size)
            count = grid[0] * grid[1]
        return size, grid, count

    def dynamic_feat_size(self, img_size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of patches for an image of (height, width) pixels."""
        height, width = (
            (side - patch) // step + 1 for side, patch, step in zip(img_size, self.patch_size, self.stride, strict=True)
        )
        return height, width


def _pair(stride: int | tuple[int, int]) -> tuple[int, int]:
    return (stride, stride) if isinstance(stride, int) else tuple(stride)


def build_backbone(
    arch: str,
    *,
    image_size: tuple[int, int],
    stride: int | tuple[int, int] = 0,
    pretrained: bool = False,
    drop_path: float = 0.0,
    overrides: Mapping[str, Any] | None = None,
    attention_scale: float | None = None,
    layer_norm_eps: float | None = None,
) -> VisionTransformer:
    """Build a prunable ViT by ``timm.create_model``, without a classifier.

    The arguments are fields of :class:`amg_plugin.models.spec.ModelSpec`; ``arch`` is a name of timm's or one of
    :data:`PUBLISHED`. With ``pretrained`` timm's weights are taken and the position embedding is fitted.

    Raises:
        ConfigError: If the name, the image size or the stride is impossible.
        UnsupportedModelError: If the model is not a plain ViT.
        InputError: If the weights cannot be fetched, or timm has none.
    """
    if (published := PUBLISHED.get(arch)) is not None:
        if pretrained and not published.pretrained:
            raise InputError(
                f"timm has no weights for amg.arch '{arch}'; give amg.weights, or set model.pretrained to False."
            )
        arch, overrides = published.base, {**published.overrides, **(overrides or {})}
        attention_scale = published.attention_scale if attention_scale is None else attention_scale
    rotary = is_model_in_modules(arch, "eva")
    _check_overrides(overrides or {}, Eva if rotary else VisionTransformer)
    kwargs: dict[str, Any] = {"img_size": tuple(image_size), "num_classes": 0, **(overrides or {})}
    if drop_path:
        kwargs["drop_path_rate"] = drop_path
    if stride and rotary:  # whose patch embedding cannot be chosen: it is replaced once positions are there
        del kwargs["img_size"]
    elif stride:
        kwargs["embed_layer"] = partial(OverlappingPatchEmbed, stride=stride)
    # Without weights first: what cannot work is refused before anything is downloaded.
    model = _create(arch, kwargs)
    _check_plain(model)
    _check_image_size(image_size, model.patch_embed.patch_size, stride)
    model = _create_pretrained(arch, kwargs) if pretrained else model
    if stride and rotary:
        _overlap(model, image_size, stride)
    make_prunable(model)
    for block in model.blocks if attention_scale is not None else ():
        block.attn.scale = attention_scale
    for module in model.modules() if layer_norm_eps is not None else ():
        if isinstance(module, nn.LayerNorm):
            module.eps = layer_norm_eps
    return model


def _check_overrides(overrides: Mapping[str, Any], network: type[nn.Module]) -> None:
    """Refuse arguments of timm's factory, which reads files and asks for addresses, and those set elsewhere."""
    if unknown := sorted(map(str, set(overrides) - set(inspect.signature(network).parameters))):
        raise ConfigError(f"amg.override.{unknown[0]} is not an argument of timm's {network.__name__}.")
    if "img_size" in overrides:
        raise ConfigError("amg.override.img_size is impossible; data.height and data.width decide.")
    if not isinstance(classes := overrides.get("num_classes", 0), int) or classes < 0:
        raise ConfigError(f"amg.override.num_classes {shown(classes)} is impossible; at least 0 is needed.")
    if (channels := overrides.get("in_chans", 3)) != 3:
        raise ConfigError(f"amg.override.in_chans {channels} is impossible; images have 3 channels.")


def _overlap(model: Eva, image_size: tuple[int, int], stride: int | tuple[int, int]) -> None:
    """Give an ``Eva`` overlapping patches."""
    old = model.patch_embed
    dynamic = {"output_fmt": "NHWC"} if model.dynamic_img_size else {}
    embedding = OverlappingPatchEmbed(
        stride=stride,
        img_size=image_size,
        patch_size=old.patch_size,
        embed_dim=model.embed_dim,
        bias=old.proj.bias is not None,
        **dynamic,
    )
    replace_patches(model, embedding)


def _create(arch: str, kwargs: Mapping[str, Any]) -> nn.Module:
    if not timm.is_model(arch):
        near = timm.list_models(f"*{arch.split('.')[0][:12]}*")[:5]
        raise ConfigError(f"amg.arch '{arch}' is not a model of timm {timm.__version__}; near names: {near or 'none'}.")
    try:
        return timm.create_model(arch, pretrained=False, **kwargs)
    except AMGError:  # of the patch embedding, clear already
        raise
    except TypeError as error:
        raise UnsupportedModelError(
            f"amg.arch '{arch}' does not take a plain ViT's arguments ({error}); allowed are plain ViTs "
            "such as vit_*, deit_*."
        ) from error
    except (RuntimeError, ValueError, AssertionError) as error:
        raise ConfigError(f"timm cannot build '{arch}' with {dict(kwargs)}: {_first_line(error)}.") from error


def _create_pretrained(arch: str, kwargs: Mapping[str, Any]) -> nn.Module:
    try:
        return timm.create_model(arch, pretrained=True, **kwargs)
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(
            f"The pretrained weights of '{arch}' cannot be fetched ({type(error).__name__}: {_first_line(error)}): "
            "put a local .pth or .safetensors file into amg.weights, or set model.pretrained to False."
        ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip(".")


def _check_plain(model: nn.Module) -> None:
    """Refuse everything that is not a plain ViT, by class name."""
    allowed = "VisionTransformer, VisionTransformerDistilled or Eva of timm whose blocks are Block with Attention"
    if type(model) not in _PLAIN:
        raise UnsupportedModelError(f"{type(model).__name__} is not a plain ViT; allowed: {allowed}.")
    if not isinstance(model.patch_embed, PatchEmbed):
        raise UnsupportedModelError(
            f"patch embedding {type(model.patch_embed).__name__} is not plain; allowed: PatchEmbed."
        )
    if type(model) is Eva:
        check_rotary(model)
    for index, block in enumerate(model.blocks if not isinstance(model, Eva | RotaryVisionTransformer) else ()):
        if type(block) is not Block and not isinstance(block, PrunableBlock):
            raise UnsupportedModelError(f"block {index} is a {type(block).__name__}; allowed: {allowed}.")
        if type(block.attn) is not Attention and not isinstance(block.attn, PrunableAttention):
            raise UnsupportedModelError(
                f"the attention of block {index} is a {type(block.attn).__name__}; allowed: {allowed}."
            )
        _check_parts(index, block, _SCALES)
    for index, block in enumerate(model.blocks):
        _check_parts(index, block, _PARTS)
    if not isinstance(model.patch_drop, nn.Identity | None):
        raise UnsupportedModelError("patches are dropped at random (patch_drop_rate); pruning needs all positions.")
    if model.cls_token is None and not model.global_pool:
        raise UnsupportedModelError("a ViT without class token has to pool its patches (global_pool).")


def _check_parts(index: int, block: nn.Module, parts: Mapping[str, tuple[type[nn.Module], ...]]) -> None:
    for name, classes in parts.items():
        if (found := type(block.get_submodule(name))) not in classes:
            names = ", ".join(dict.fromkeys(kind.__name__ for kind in classes))
            raise UnsupportedModelError(f"{name} of block {index} is a {found.__name__}; allowed: {names}.")


def _check_image_size(image_size: tuple[int, int], patch_size: tuple[int, int], stride: int | tuple[int, int]) -> None:
    """Refuse images smaller than a patch, or not a multiple of it without overlap, and strides beyond the patch."""
    for name, side, patch, step in zip(("height", "width"), image_size, patch_size, _pair(stride), strict=True):
        if side < patch:
            raise ConfigError(
                f"data.{name} {side} is smaller than a patch of {patch} pixels; at least {patch} is needed."
            )
        if not 0 <= step <= patch:
            raise ConfigError(
                f"amg.stride {step} is impossible; allowed: 1 to {patch} (the patch), or 0 for the patch size."
            )
        if step in (0, patch) and side % patch:
            low = side // patch * patch
            raise ConfigError(
                f"data.{name} {side} is not a multiple of the patch size {patch}; use {low} or {low + patch}, "
                "or overlapping patches (amg.stride smaller than the patch)."
            )


def make_prunable(model: VisionTransformer) -> VisionTransformer:
    """Turn a plain ViT into a prunable one in place; outputs and state-dict keys stay the same.

    Raises:
        UnsupportedModelError: If the model is not plain.
    """
    _check_plain(model)
    if isinstance(model, Eva | RotaryVisionTransformer):
        return RotaryVisionTransformer.convert(model)
    for block in model.blocks:
        PrunableBlock.convert(block)
    return model


@contextmanager
def temporarily(name: str, value: Any, owners: Iterable[Any]) -> Iterator[None]:
    """Give an attribute of those owners that have it another value for the time being."""
    before = [(owner, getattr(owner, name)) for owner in owners if hasattr(owner, name)]
    try:
        for owner, _ in before:
            setattr(owner, name, value)
        yield
    finally:
        for owner, old in before:
            setattr(owner, name, old)


def unwrap(model: nn.Module) -> nn.Module:
    """The network inside DataParallel, DistributedDataParallel, AveragedModel and torch.compile, however nested."""
    while True:
        if isinstance(model, _WRAPPERS):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):  # torch.compile
            model = inner
        else:
            return model


def backbone_of(model: nn.Module) -> VisionTransformer:
    """The ViT inside ``model``: itself, its ``backbone``, or that of the wrapped module (DataParallel).

    Raises:
        UnsupportedModelError: If there is none.
    """
    model = unwrap(model)
    model = getattr(model, "backbone", model)
    _check_plain(model)
    return model


def read_by_pooling(model: VisionTransformer) -> range:
    """Positions of the tokens behind the last block that :func:`pooled_features` reads."""
    if isinstance(model, VisionTransformerDistilled):
        return range(2)
    return range(1) if model.has_class_token else range(model.num_prefix_tokens + model.patch_embed.num_patches)


def pooled_features(model: VisionTransformer, tokens: Tensor) -> Tensor:
    """Image features ``[B, D]`` out of the tokens ``[B, N, D]`` that ``forward_features`` gives.

    The class token; the mean of class and distillation token for distilled models; timm's own pooling for models
    without a class token.
    """
    if isinstance(model, VisionTransformerDistilled) or not model.has_class_token:
        return model.forward_head(tokens, pre_logits=True)
    return model.head_drop(model.fc_norm(tokens[:, 0]))
