"""``fast(model)``: a pruned network as it should run, equal in its outputs to the network it is made from.

What is done once, when the form is made, since the positions of pruned tokens are constants:

- Tokens that no later block keeps and the head does not read are left behind; the last block computes only the class
  token's query, where the head reads nothing else. The same holds for the dense network.
- Merged tokens are constant means; what they stand for is a constant that the attention adds to its logits.
- Tokens are never put back in place: a block finds what it needs in whatever order the block before left it.
- Keys, values and queries are slices; the position embedding and prefix tokens are one constant; layer scale is folded
  into the layer before it, the batch-norm neck into the last norm.
- On the CPU, weights are packed for oneDNN, GELU and residual sums are computed in the same pass as the product.
"""

from __future__ import annotations

import copy

import torch
from timm.layers import PatchEmbed, global_pool_nlc
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from amg_plugin.deploy.fast.flow import Flow, merged_flow, token_flow
from amg_plugin.deploy.fast.graphs import GraphedNetwork
from amg_plugin.deploy.fast.layers import FastBlock, FastLinear, Gather, can_pack
from amg_plugin.errors import InputError
from amg_plugin.models.la_transformer import LATransformer, part_averages
from amg_plugin.models.reid import ReIDModel, at_least_float32
from amg_plugin.models.transreid import TransReID
from amg_plugin.models.vit import read_by_pooling, unwrap
from amg_plugin.pruning import current_plan


class FastPatches(nn.Module):
    """Patch embedding, prefix tokens and position embedding."""

    def __init__(self, vit: VisionTransformer) -> None:
        super().__init__()
        embedding: PatchEmbed = vit.patch_embed
        self.image_size, self.patch, self.step = embedding.img_size, embedding.patch_size, embedding.proj.stride
        self.weight, self.bias = embedding.proj.weight, embedding.proj.bias
        self.norm = None if isinstance(embedding.norm, nn.Identity) else embedding.norm
        grid = embedding.grid_size if vit.dynamic_img_size else (embedding.num_patches,)
        constant = vit._pos_embed(self.weight.new_zeros(1, *grid, vit.embed_dim))
        constant = constant.detach().transpose(0, 1)
        prefix, position = constant.tensor_split([vit.num_prefix_tokens])
        # Strides as of any new tensor: ExecuTorch takes those of the transposed one for another layout.
        self.prefix, self.position = (
            nn.Parameter(part.clone(memory_format=torch.contiguous_format), requires_grad=False)
            for part in (prefix, position)
        )
        self.linear: FastLinear | None = None

    def pack(self) -> None:
        """Turn the convolution into a product with packed weights."""
        self.linear = FastLinear(self.weight.flatten(1), self.bias)
        self.linear.pack()
        self.weight = self.bias = None

    def forward(self, images: Tensor) -> Tensor:
        """Tokens ``[tokens, B, D]`` of images ``[B, 3, height, width]``."""
        if tuple(images.shape[2:]) != tuple(self.image_size):
            raise ValueError(f"images are {tuple(images.shape[2:])}, the network was built for {self.image_size}")
        batch, count = images.shape[0], self.position.shape[0]
        if self.linear is None:
            patches = F.conv2d(images, self.weight, self.bias, self.step).flatten(2).permute(2, 0, 1)
        else:
            windows = images.unfold(2, self.patch[0], self.step[0]).unfold(3, self.patch[1], self.step[1])
            patches = self.linear(windows.permute(2, 3, 0, 1, 4, 5).reshape(count * batch, -1)).view(count, batch, -1)
        patches = patches if self.norm is None else self.norm(patches)
        return torch.cat((self.prefix.expand(-1, batch, -1), patches + self.position))


class ClassToken(nn.Module):
    """Features out of the tokens that pooling reads, ``[B, D]``; the neck is folded in where that is possible."""

    def __init__(self, model: ReIDModel, flow: Flow, neck: nn.BatchNorm1d | None) -> None:
        super().__init__()
        vit = model.backbone
        self.restore = Gather(flow.rows_of(read_by_pooling(vit)))
        self.distilled = isinstance(vit, VisionTransformerDistilled)
        # timm's head of distilled networks has no norm of its own.
        self.norm, self.fc_norm = vit.norm, nn.Identity() if self.distilled else vit.fc_norm
        # Other ways of pooling are timm's own; they find every token in its place.
        self.pooled = not (self.distilled or vit.has_class_token)
        self.attn_pool, self.kind = vit.attn_pool, vit.global_pool
        self.prefix, self.with_prefix = vit.num_prefix_tokens, vit.pool_include_prefix
        self.neck = neck
        if neck is not None and not self.pooled:
            last = "norm" if isinstance(self.fc_norm, nn.Identity) else "fc_norm"
            if _is_affine(getattr(self, last)):
                setattr(self, last, _folded(getattr(self, last), neck))
                self.neck = None

    def forward(self, tokens: Tensor, batch: int) -> Tensor:
        """Features of the final sequence ``[tokens * B, D]``."""
        tokens = self.norm(self.restore(tokens, batch)).view(self.restore.count, batch, -1)
        if self.distilled:
            features = (tokens[0] + tokens[1]) / 2
        else:
            features = self.fc_norm(self._pool(tokens.transpose(0, 1)) if self.pooled else tokens[0])
        features = at_least_float32(features)
        return features if self.neck is None else self.neck(features)

    def _pool(self, tokens: Tensor) -> Tensor:
        if self.attn_pool is not None:
            return self.attn_pool(tokens if self.with_prefix else tokens[:, self.prefix :])
        return global_pool_nlc(tokens, self.kind, self.prefix, self.with_prefix)


class Parts(nn.Module):
    """LA-Transformer's features ``[B, parts * D]``."""

    def __init__(self, model: LATransformer, flow: Flow) -> None:
        super().__init__()
        vit, self.parts = model.backbone, model.spec.parts
        self.restore = Gather(flow.rows_of(_patches(vit)))
        self.norm = vit.norm

    def forward(self, tokens: Tensor, batch: int) -> Tensor:
        """Features of the final sequence ``[tokens * B, D]``."""
        patches = self.norm(self.restore(tokens, batch)).view(self.restore.count, batch, -1).transpose(0, 1)
        parts = part_averages(at_least_float32(patches), 0, self.parts)
        return torch.flatten(F.normalize(parts, dim=2) / self.parts**0.5, 1)


class Jigsaw(nn.Module):
    """TransReID's two branches behind the last shared block, ``[B, (1 + parts) D]``."""

    def __init__(self, model: TransReID, flow: Flow) -> None:
        super().__init__()
        vit, branch = model.backbone, model.jigsaw
        length = _patches(vit).stop
        after_neck = model.spec.neck_feat == "after"
        last = token_flow(_kept(vit)[-1:], current_plan(vit).variant, length, read_by_pooling(vit))
        self.restore = Gather(flow.rows_of(range(length)))
        self.whole = FastBlock(vit.blocks[-1], last.steps[0])
        self.head = ClassToken(model, last, model.bottleneck if after_neck else None)
        self.prefix, self.parts = branch.prefix, branch.parts
        self.positions = branch.positions
        part_length = branch.prefix + len(branch.positions) // branch.parts
        local = token_flow([None], "block", part_length, [0])
        self.local, self.norm = FastBlock(branch.block, local.steps[0]), branch.norm
        self.necks = model.local_bottlenecks if after_neck else None

    def forward(self, tokens: Tensor, batch: int) -> Tensor:
        """Features of the sequence before the last block, ``[tokens * B, D]``."""
        tokens = self.restore(tokens, batch)
        whole = self.head(self.whole(tokens, None, batch)[0], batch)
        # Each part is an image of its own to the block: [tokens, parts * B, D].
        sequence, width = tokens.view(-1, batch, tokens.shape[-1]), tokens.shape[-1]
        patches = sequence.index_select(0, self.positions).view(self.parts, -1, batch, width).transpose(0, 1)
        prefix = sequence[: self.prefix, None].expand(-1, self.parts, -1, -1)
        local = torch.cat((prefix, patches)).reshape(-1, width)
        local = self.norm(self.local(local, None, self.parts * batch)[0])[: self.parts * batch]
        parts = at_least_float32(local).view(self.parts, batch, width).unbind(0)
        if self.necks is not None:
            parts = [neck(part) for neck, part in zip(self.necks, parts, strict=True)]
        return torch.cat([whole, *(part / self.parts for part in parts)], dim=1)


class FastNetwork(nn.Module):
    """A re-ID network in its deployed form: features only, eval mode only. Made by :func:`fast`.

    Attributes:
        spec: The dense network it comes from.
        feature_dim: Width of the features.
        uses_cameras: Whether camera labels make a difference; then they go into ``forward`` after the images.
        packed: Whether its weights are laid out for oneDNN; then it runs on the CPU and can be neither saved nor moved.
    """

    def __init__(self, model: ReIDModel) -> None:
        super().__init__()
        self.spec, self.feature_dim, self.uses_cameras = model.spec, model.feature_dim, model.uses_cameras
        self.packed = False
        vit, plan, kept = model.backbone, current_plan(model), _kept(model.backbone)
        length = vit.num_prefix_tokens + plan.num_patches
        jigsaw = isinstance(model, TransReID) and model.jigsaw is not None
        if jigsaw:
            kept, read = kept[:-1], range(length)
        else:
            read = _patches(vit) if isinstance(model, LATransformer) else read_by_pooling(vit)
        self.patches = FastPatches(vit)
        self.side_information = model.side_information if isinstance(model, TransReID) else None
        self.norm_pre = vit.norm_pre
        if plan.groups:
            groups = [plan.groups_of(block) for block in range(len(kept))]
            flow = merged_flow(groups, vit.num_prefix_tokens, read)
        else:
            flow = token_flow(kept, plan.variant, length, read)
        self.blocks = nn.ModuleList(FastBlock(block, step) for block, step in zip(vit.blocks, flow.steps, strict=False))
        if jigsaw:
            self.head: nn.Module = Jigsaw(model, flow)
        elif isinstance(model, LATransformer):
            self.head = Parts(model, flow)
        else:
            self.head = ClassToken(model, flow, model.bottleneck if model.spec.neck_feat == "after" else None)

    def train(self, mode: bool = True) -> FastNetwork:
        """Eval mode only; raises RuntimeError if ``mode`` is True."""
        if mode:
            raise RuntimeError("the fast form of a network only evaluates; train the network that it was made from")
        return super().train(False)

    def pack(self) -> FastNetwork:
        """Lay the weights out for oneDNN, in place."""
        if not self.packed:
            for module in [m for m in self.modules() if isinstance(m, FastLinear | FastPatches)]:
                module.pack()
            self.packed = True
        return self

    def forward(self, images: Tensor, camids: Tensor | None = None, viewids: Tensor | None = None) -> Tensor:
        """Features of images ``[B, 3, height, width]``; camera and view labels as in the reference network."""
        batch, tokens = images.shape[0], self.patches(images)
        if self.side_information is not None:
            vectors = self.side_information(camids, viewids)
            tokens = tokens if vectors is None else tokens + vectors.transpose(0, 1)
        tokens, carried = self.norm_pre(tokens.flatten(0, 1)), None
        for block in self.blocks:
            tokens, carried = block(tokens, carried, batch)
        return self.head(tokens if carried is None else torch.cat((tokens, carried)), batch)


def has_fast_form(model: nn.Module) -> bool:
    """Whether :func:`fast` takes the network. Token reducers choose tokens for each image; they have none."""
    return type(model) in (ReIDModel, TransReID, LATransformer)


def fast(model: nn.Module, pack: bool | None = None, *, cuda_graph: bool = False) -> FastNetwork | GraphedNetwork:
    """The form of a network that is deployed: same features to 1e-5 of the largest, less work.

    The form is independent of ``model``, which stays as it is and may be thrown away.

    Args:
        model: A :class:`ReIDModel` of any kind, dense or pruned; DataParallel is unwrapped.
        pack: Lay the weights out for oneDNN. None: where the network is on the CPU in float32 and this build of torch
            can. A packed form runs under ``torch.no_grad`` on the CPU and can be neither exported, compiled, saved nor
            moved.
        cuda_graph: On a GPU, record the kernels at the first call with a new shape of inputs and launch them at once
            from then on: small batches wait for launches. Features have no gradients.

    Returns:
        The form, in eval mode.

    Raises:
        InputError: If the network is none of the plugin, or packing or CUDA graphs are asked for where they are
            impossible.
    """
    model = unwrap(model)
    if not has_fast_form(model):
        raise InputError(f"A {type(model).__name__} has no fast form; allowed are the networks that AMG prunes.")
    reference = next(model.parameters())
    possible = can_pack() and reference.device.type == "cpu" and reference.dtype == torch.float32
    if pack and not possible:
        raise InputError(
            f"Weights cannot be packed for a {str(reference.dtype).removeprefix('torch.')} network on "
            f"{reference.device.type}: that takes float32 on the CPU and a torch with oneDNN."
        )
    with torch.no_grad():
        # Modes and gradients are switched off in the copy only: the network may be in the middle of its training.
        form = copy.deepcopy(FastNetwork(model)).requires_grad_(False).eval().to(reference.device)
        form = form.pack() if (possible if pack is None else pack) else form
    return GraphedNetwork(form).eval() if cuda_graph else form


def _kept(vit: VisionTransformer) -> list[list[int] | None]:
    """Per block the positions that take part, None for all."""
    plan, prefix = current_plan(vit), vit.num_prefix_tokens
    return [
        None if len(kept) == plan.num_patches else [*range(prefix), *(prefix + position for position in kept)]
        for kept in plan.tokens
    ]


def _patches(vit: VisionTransformer) -> range:
    return range(vit.num_prefix_tokens, vit.num_prefix_tokens + vit.patch_embed.num_patches)


def _is_affine(norm: nn.Module) -> bool:
    return isinstance(norm, nn.LayerNorm) and norm.weight is not None and norm.bias is not None


def _folded(norm: nn.LayerNorm, neck: nn.BatchNorm1d) -> nn.LayerNorm:
    """``norm`` with the batch norm behind it folded in; float32, as the neck computes."""
    scale = neck.weight * torch.rsqrt(neck.running_var + neck.eps)
    folded = copy.deepcopy(norm)
    folded.weight = nn.Parameter(norm.weight * scale)
    folded.bias = nn.Parameter((norm.bias - neck.running_mean) * scale + neck.bias)
    return folded
