"""ToMe and EViT once more, one image and one token at a time, to compare with."""

import torch


def naive_merge(tokens, sizes, keys, merges, prefix):
    """Lists of tokens and sizes of one image after the most similar pairs of the two halves were averaged."""
    first, second = ([n for n in range(prefix, len(tokens)) if n % 2 == half] for half in (0, 1))
    proposals = []
    for a in first:
        similarity = [float(torch.dot(keys[a] / keys[a].norm(), keys[b] / keys[b].norm())) for b in second]
        best = max(range(len(second)), key=lambda place: similarity[place])
        proposals.append((similarity[best], a, second[best]))
    gone, members = set(), {b: [b] for b in second}
    for _, a, b in sorted(proposals, key=lambda item: -item[0])[:merges]:
        gone.add(a)
        members[b].append(a)
    order = [*range(prefix), *(a for a in first if a not in gone), *second]
    out, out_sizes = [], []
    for position in order:
        group = members.get(position, [position])
        size = sum(sizes[member] for member in group)
        out.append(sum(tokens[member] * sizes[member] for member in group) / size)
        out_sizes.append(size)
    return torch.stack(out), out_sizes


def naive_drop(tokens, importance, keep, prefix):
    """Tokens of one image: prefix, the ``keep`` most important ones in their order, the weighted sum of the others."""
    ranked = sorted(range(len(importance)), key=lambda place: -float(importance[place]))
    kept, others = sorted(ranked[:keep]), ranked[keep:]
    fused = sum(importance[place] * tokens[prefix + place] for place in others)
    return torch.stack([*tokens[:prefix], *(tokens[prefix + place] for place in kept), fused])


def naive_attention(attention, x, sizes):
    """Output ``[N, D]``, maps ``[H, N, N]`` and mean keys ``[N, d]`` of one image; a token counts ``size`` times."""
    length, width = len(x), attention.head_dim
    projected = x @ attention.qkv.weight.T + attention.qkv.bias
    query, key, value = projected.reshape(length, 3, attention.num_heads, width).unbind(1)
    maps, out = [], []
    for head in range(attention.num_heads):
        logits = query[:, head] @ key[:, head].T * attention.scale
        weights = logits.exp() * torch.tensor([float(size) for size in sizes], dtype=x.dtype)
        weights = weights / weights.sum(1, keepdim=True)
        maps.append(weights)
        out.append(weights @ value[:, head])
    out = torch.cat(out, dim=1) @ attention.proj.weight.T + attention.proj.bias
    return out, torch.stack(maps), key.mean(1)


def _tokens(model, image):
    """What enters the first block: patches and prefix tokens with their position embedding."""
    entered = []
    handle = model.backbone.norm_pre.register_forward_hook(lambda norm, given, out: entered.append(out[0]))
    model.embed(image[None])
    handle.remove()
    return entered[0]


def naive_features(model, image):
    """Feature of one image ``[3, height, width]`` before the neck, by the network's own weights."""
    vit, reducer = model.backbone, model.spec.reducer
    prefix = vit.num_prefix_tokens
    x = _tokens(model, image)
    sizes = [1] * len(x)
    for block, leaving in zip(vit.blocks, reducer.tokens, strict=True):
        out, maps, keys = naive_attention(block.attn, block.norm1(x), sizes)
        x = x + out
        fewer = len(x) - prefix - leaving
        if fewer and reducer.method == "tome":
            x, sizes = naive_merge(x, sizes, keys, fewer, prefix)
        elif fewer:
            x = naive_drop(x, maps[:, 0, prefix:].mean(0), leaving - 1, prefix)
            sizes = [1] * len(x)
        x = x + block.mlp(block.norm2(x))
    return vit.norm(x)[0]
