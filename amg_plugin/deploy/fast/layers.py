"""Parts of the network in its deployed form; weights are copies, folded and packed once."""

from __future__ import annotations

import torch
from timm.layers import GluMlp, SwiGLU, apply_rot_embed_cat
from torch import Tensor, nn
from torch.nn import functional as F

from amg_plugin.deploy.fast.flow import Positions, Step
from amg_plugin.models.attention import PrunableAttention, PrunableBlock
from amg_plugin.pruning.merging import Transition

#: Share of the tokens whose queries may be computed for nothing, to project queries, keys and values in one product.
FUSED_SURPLUS = 0.125


def can_pack() -> bool:
    """Whether this build of torch multiplies by weights that are laid out for oneDNN beforehand."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


class Gather(nn.Module):
    """Takes constant places of a sequence; a slice, if they are neighbours.

    Sequences are ``[tokens * batch, D]``, token by token: slices of tokens are contiguous for any batch.
    """

    def __init__(self, places: Positions) -> None:
        super().__init__()
        self.first, self.count = places[0], len(places)
        neighbours = places == tuple(range(self.first, self.first + self.count))
        index = None if neighbours else torch.tensor(places, dtype=torch.int64)
        self.register_buffer("index", index, persistent=False)

    def forward(self, tokens: Tensor, batch: int) -> Tensor:
        """The tokens at the places, ``[places * batch, D]``."""
        if self.index is None:
            return tokens[self.first * batch : (self.first + self.count) * batch]
        width = tokens.shape[-1]
        return tokens.view(-1, batch, width).index_select(0, self.index).view(-1, width)


class Means(nn.Module):
    """Constant means of tokens, out of sequences as in :class:`Gather`.

    Args:
        members: Per token to make, the places of those that it is the mean of, each with its weight.
    """

    def __init__(self, members: Transition) -> None:
        super().__init__()
        longest = max(map(len, members))
        padded = [[*group, *[(group[0][0], 0.0)] * (longest - len(group))] for group in members]
        index = torch.tensor([[row[turn][0] for row in padded] for turn in range(longest)], dtype=torch.int64)
        weights = torch.tensor([[row[turn][1] for row in padded] for turn in range(longest)])
        self.register_buffer("index", index.flatten(), persistent=False)
        self.register_buffer("weights", weights[:, :, None, None], persistent=False)

    def forward(self, tokens: Tensor, batch: int) -> Tensor:
        """The means, ``[means * batch, D]``."""
        width = tokens.shape[-1]
        members = tokens.view(-1, batch, width).index_select(0, self.index)
        members = members.view(*self.weights.shape[:2], batch, width)
        return (members * self.weights.to(tokens.dtype)).sum(0).view(-1, width)


class FastLinear(nn.Module):
    """A linear layer, with copied weights and what follows it, an exact GELU or a sum, fused where they are packed."""

    def __init__(self, weight: Tensor, bias: Tensor | None, gelu: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach().clone().contiguous(), requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=False)
        self.gelu = gelu
        self.packed: Tensor | None = None

    def pack(self) -> None:
        """Lay the weight out for oneDNN; the reference weight is given up."""
        self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight.detach(), None)
        self.weight = None
        # Overloads are looked up once and not per call.
        self._product = torch.ops.mkldnn._linear_pointwise.default
        self._product_and_sum = torch.ops.mkldnn._linear_pointwise.binary

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """``[..., in]`` to ``[..., out]``, plus ``residual`` if given."""
        if self.packed is None:
            if x.dtype != self.weight.dtype:  # a layer in float16 between tokens in float32
                x = x.to(self.weight.dtype)
            x = F.linear(x, self.weight, self.bias)
            x = F.gelu(x) if self.gelu else x
            return x if residual is None else residual + x
        if residual is not None:
            return self._product_and_sum(x, residual, self.packed, self.bias, "add")
        if self.gelu:
            return self._product(x, self.packed, self.bias, "gelu", [], "none")
        return self._product(x, self.packed, self.bias, "none", [], "")


def _scaled(linear: nn.Linear, scale: Tensor | None) -> FastLinear:
    """A linear layer with the layer scale behind it folded in."""
    weight, bias = linear.weight, linear.bias
    if scale is not None:
        weight = scale[:, None] * weight
        bias = None if bias is None else scale * bias
    return FastLinear(weight, bias)


Layer = tuple[Tensor, Tensor | None]
"""Weight and bias."""


def _hidden_layers(mlp: nn.Module) -> tuple[Layer, Layer | None]:
    """What gives the hidden units of an MLP, and what gives their gates, if it has such."""
    if isinstance(mlp, SwiGLU):
        return (mlp.fc1_x.weight, mlp.fc1_x.bias), (mlp.fc1_g.weight, mlp.fc1_g.bias)
    if not isinstance(mlp, GluMlp):
        return (mlp.fc1.weight, mlp.fc1.bias), None
    biases = (None, None) if mlp.fc1.bias is None else mlp.fc1.bias.chunk(2)
    first, second = zip(mlp.fc1.weight.chunk(2), biases, strict=True)
    return (first, second) if mlp.gate_last else (second, first)


class FastBlock(nn.Module):
    """A block of the reference network, in eval mode on exactly the tokens that its step names."""

    def __init__(self, block: PrunableBlock, step: Step) -> None:
        super().__init__()
        attention, mlp = block.attn, block.mlp
        length = step.length
        self.needs_carried = step.needs_carried
        # Where carried tokens are joined in front of the block, it has to leave those that it does not work on.
        takes_all = step.gather == tuple(range(step.incoming)) and not step.needs_carried
        self.gather = None if takes_all else Gather(step.gather)
        self.means = Means(step.means) if step.means else None
        key_bias = torch.tensor(step.sizes, dtype=torch.float64).log()[None, None, None] if step.sizes else None
        key_bias = None if key_bias is None else key_bias.to(attention.proj.weight.dtype)
        self.register_buffer("key_bias", key_bias, persistent=False)
        self.carry = Gather(step.carry) if step.carry else None
        update = None
        if self.carry is not None and block.token_update is not None:
            update = block.token_update[list(step.rows), None].clone()
        self.register_buffer("update", update, persistent=False)
        self.context = None if len(step.keys) == length else Gather(step.keys)
        self.first_query, self.queries, self.keys = step.first_query, length - step.first_query, len(step.keys)
        self.num_heads, self.head_dim, self.scale = attention.num_heads, attention.head_dim, attention.scale
        self.norm1, self.norm2 = block.norm1, block.norm2
        self.q_norm, self.k_norm, self.attention_norm, self.mlp_norm = (
            None if isinstance(norm, nn.Identity) else norm
            for norm in (attention.q_norm, attention.k_norm, attention.norm, mlp.norm)
        )
        self._rotate(attention, step)
        (weight, bias), width = attention.packed(), attention.attn_dim
        # A few queries too many cost less than a product of their own.
        self.fused = self.context is None and length - self.queries <= length * FUSED_SURPLUS
        if self.fused:
            self.qkv = FastLinear(weight, bias)
        else:
            self.query = FastLinear(weight[:width], None if bias is None else bias[:width])
            self.key_value = FastLinear(weight[width:], None if bias is None else bias[width:])
        self.gate = None if attention.gate is None else FastLinear(attention.gate.weight, attention.gate.bias)
        self.proj = _scaled(attention.proj, block.layer_scale(1))
        (weight, bias), gate = _hidden_layers(mlp)
        exact_gelu = gate is None and isinstance(mlp.act, nn.GELU) and mlp.act.approximate == "none"
        self.fc1 = FastLinear(weight, bias, gelu=exact_gelu)
        self.mlp_gate = None if gate is None else FastLinear(*gate)
        self.activation = None if exact_gelu else mlp.act
        self.fc2 = _scaled(mlp.fc2, block.layer_scale(2))

    def _rotate(self, attention: PrunableAttention, step: Step) -> None:
        """Take the rows of the rotary table that belong to queries and keys."""
        query = key = None
        if attention.rope is not None:
            self.rotate_half = attention.rotate_half
            query = attention.rope[list(step.positions[step.first_query :])]
            key = attention.rope[[step.positions[number] for number in step.keys]]
        self.register_buffer("query_rope", query, persistent=False)
        self.register_buffer("key_rope", key, persistent=False)

    def forward(self, tokens: Tensor, carried: Tensor | None, batch: int) -> tuple[Tensor, Tensor | None]:
        """What leaves the block and what is carried around it, each ``[tokens * batch, D]``, out of the same two."""
        source = torch.cat((tokens, carried)) if self.needs_carried and carried is not None else tokens
        tokens = source if self.gather is None else self.gather(source, batch)
        if self.means is not None:
            tokens = torch.cat((self.means(source, batch), tokens))
        normed = self.norm1(tokens)
        queries = normed[self.first_query * batch :] if self.first_query else normed
        asking = tokens[self.first_query * batch :] if self.first_query else tokens
        out = self.proj(self._attend(normed, queries, batch), asking)
        normed = self.norm2(out)
        hidden = self.fc1(normed)
        if self.mlp_gate is not None:
            hidden = hidden * self.activation(self.mlp_gate(normed))
        elif self.activation is not None:
            hidden = self.activation(hidden)
        if self.mlp_norm is not None:
            hidden = self.mlp_norm(hidden)
        return self.fc2(hidden, out), None if self.carry is None else self._pass_around(source, batch)

    def _pass_around(self, source: Tensor, batch: int) -> Tensor:
        carried = self.carry(source, batch)
        if self.update is None:
            return carried
        return (carried.view(-1, batch, carried.shape[-1]) + self.update).flatten(0, 1)

    def _attend(self, normed: Tensor, queries: Tensor, batch: int) -> Tensor:
        heads = (self.num_heads, self.head_dim)
        if self.fused:
            query, key, value = self.qkv(normed).view(self.keys, batch, 3, *heads).permute(2, 1, 3, 0, 4).unbind(0)
            query = query[:, :, self.first_query :] if self.first_query else query
        else:
            context = normed if self.context is None else self.context(normed, batch)
            query = self.query(queries).view(self.queries, batch, *heads).permute(1, 2, 0, 3)
            key, value = self.key_value(context).view(self.keys, batch, 2, *heads).permute(2, 1, 3, 0, 4).unbind(0)
        query = query if self.q_norm is None else self.q_norm(query)
        key = key if self.k_norm is None else self.k_norm(key)
        if self.query_rope is not None:
            query = apply_rot_embed_cat(query, self.query_rope, half=self.rotate_half)
            key = apply_rot_embed_cat(key, self.key_rope, half=self.rotate_half)
        bias = None if self.key_bias is None else self.key_bias.to(query.dtype)
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=self.scale)
        out = out.permute(2, 0, 1, 3).reshape(self.queries * batch, self.num_heads * self.head_dim)
        out = out if self.attention_norm is None else self.attention_norm(out)
        return out if self.gate is None else out * self.gate(queries).sigmoid()
