"""Static merging once more, one image and one token at a time, to compare with.

Weights, norms and MLPs are the network's own; everything that has to do with merging is written out here.
"""

from __future__ import annotations

import random

import torch

from amg_plugin.models.la_transformer import LATransformer


def random_merges(plan, blocks, keep, seed=0):
    """``plan`` with tokens merged at random in front of ``blocks``, down to about ``keep`` of the positions at the end.

    Which of its positions a group is known by is random, too, and blocks without a merge are among them.
    """
    chosen = random.Random(seed)
    groups, tokens, found = [[n] for n in range(plan.num_patches)], list(range(plan.num_patches)), []
    ending = max(1, round(keep * plan.num_patches))
    for block in range(plan.depth):
        if block in blocks:
            left = 1 + (len(groups) if block % 3 == 2 else ending + (len(groups) - ending) // 2)
            while len(groups) > max(left - 1, 1):
                gone = groups.pop(chosen.randrange(len(groups)))
                chosen.choice(groups).extend(gone)
            tokens = sorted(chosen.choice(group) for group in groups)
        here = groups if block in blocks or block < min(blocks) else [[n] for n in range(plan.num_patches)]
        names = tokens if here is groups else range(plan.num_patches)
        home = {n: sorted(group) for group in here for n in group}
        found.append((list(names), [list(home[name]) for name in names]))
    return plan.merge([names for names, _ in found], [each for _, each in found])


def naive_entering(model, images, labels=()):
    """The tokens ``[N, D]`` that enter the first block, a tensor per image."""
    entered = []
    handle = model.backbone.blocks[0].register_forward_pre_hook(lambda block, given: entered.append(given[0]))
    with torch.no_grad():
        model.embed(images, *labels)
    handle.remove()
    return list(entered[0])


def naive_block(block, x, sizes):
    """Tokens ``[N, D]`` of one image behind a block; a token counts ``size`` times as a key."""
    attention, width = block.attn, block.attn.head_dim
    y = block.norm1(x)
    projected = y @ attention.qkv.weight.T
    if attention.qkv.bias is not None:
        projected = projected + attention.qkv.bias
    query, key, value = projected.reshape(len(x), 3, attention.num_heads, width).unbind(1)
    outputs = []
    for head in range(attention.num_heads):
        rows = []
        for n in range(len(x)):
            q = attention.q_norm(query[n, head])
            logits = [torch.dot(q, attention.k_norm(key[k, head])) * attention.scale for k in range(len(x))]
            highest = max(float(logit) for logit in logits)
            counts = [size * torch.exp(logit - highest) for size, logit in zip(sizes, logits, strict=True)]
            rows.append(sum(count * value[k, head] for k, count in enumerate(counts)) / sum(counts))
        outputs.append(torch.stack(rows))
    out = attention.norm(torch.cat(outputs, dim=1)) @ attention.proj.weight.T + attention.proj.bias
    x = x + block.ls1(out)
    return x + block.ls2(block.mlp(block.norm2(x)))


def naive_tokens(blocks, x, prefix, groups):
    """All positions behind the last of ``blocks``; ``groups`` gives, per block, the positions of each of its tokens."""
    prefixes, patches = list(x[:prefix]), {(n,): x[prefix + n] for n in range(len(x) - prefix)}
    for block, wanted in zip(blocks, groups, strict=True):
        merged = {}
        for group in map(tuple, wanted):
            parts = [old for old in patches if set(old) <= set(group)]
            if parts:
                merged[group] = sum(len(old) * patches[old] for old in parts) / sum(map(len, parts))
            else:  # taken apart again
                merged[group] = next(patches[old] for old in patches if set(group) <= set(old))
        sizes = [1] * prefix + [len(group) for group in merged]
        x = naive_block(block, torch.stack([*prefixes, *merged.values()]), sizes)
        prefixes, patches = list(x[:prefix]), dict(zip(merged, x[prefix:], strict=True))
    place = {position: token for group, token in patches.items() for position in group}
    return torch.stack([*prefixes, *(place[n] for n in sorted(place))])


@torch.no_grad()
def naive_outputs(dense, plan, images, labels=()):
    """What ``dense.embed`` would give if it were merged as ``plan`` says, ``[B, D]``."""
    vit, prefix = dense.backbone, dense.backbone.num_prefix_tokens
    found = []
    for x in naive_entering(dense, images, labels):
        before = naive_tokens(vit.blocks[:-1], x, prefix, [plan.groups_of(block) for block in range(plan.depth - 1)])
        if getattr(dense, "jigsaw", None) is None:
            end = naive_tokens(vit.blocks, x, prefix, [plan.groups_of(block) for block in range(plan.depth)])
            found.append(_read(dense, vit.norm(end)))
            continue
        whole = _read(dense, vit.norm(naive_tokens(vit.blocks[-1:], before, prefix, [_single(plan.num_patches)])))
        parts = dense.jigsaw.positions.reshape(dense.jigsaw.parts, -1).tolist()
        local = []
        for part in parts:
            alone = [1] * (prefix + len(part))
            behind = naive_block(dense.jigsaw.block, torch.stack([*before[:prefix], *(before[n] for n in part)]), alone)
            local.append(dense.jigsaw.norm(behind)[0] / len(parts))
        found.append(torch.cat([whole, *local]))
    return torch.stack(found)


def _single(count):
    return [[n] for n in range(count)]


def _read(model, tokens):
    """The feature of one image out of the tokens behind the last norm."""
    vit, prefix = model.backbone, model.backbone.num_prefix_tokens
    if isinstance(model, LATransformer):
        parts = torch.nn.functional.adaptive_avg_pool1d(tokens[prefix:].T, model.spec.parts).T
        return torch.cat([part / part.norm() / model.spec.parts**0.5 for part in parts])
    if "dist_token" in dict(vit.named_parameters()):
        return (tokens[0] + tokens[1]) / 2
    if vit.has_class_token:
        return vit.fc_norm(tokens[0])
    return vit.fc_norm(sum(tokens[n] for n in range(prefix, len(tokens))) / (len(tokens) - prefix))


def naive_means(patches, sizes, merged):
    """Tokens of one image merged as ``merged`` says: which of them each new one is the mean of."""
    return {n: sum(sizes[o] * patches[o] for o in old) / sum(sizes[o] for o in old) for n, old in merged.items()}


@torch.no_grad()
def naive_choice(model, images, importance, numbers, start=None):
    """Groups per block of a dense network.

    Args:
        model: The network.
        images: What it is judged on.
        importance: Per block, that of each position.
        numbers: Per block, how many tokens disappear in front of it.
        start: Groups that are merged in front of block 1 in any case, by the position that stays.

    Returns:
        Per block, a dictionary from the position that stays to the positions that it stands for.
    """
    vit, prefix = model.backbone, model.backbone.num_prefix_tokens
    streams = [(list(x[:prefix]), dict(enumerate(x[prefix:]))) for x in naive_entering(model, images)]
    groups = {n: [n] for n in streams[0][1]}
    found = []
    for block, (weights, number) in zip(vit.blocks, zip(importance, numbers, strict=True), strict=True):
        if start and block is vit.blocks[1]:
            streams = [
                (prefixes, naive_means(patches, dict.fromkeys(patches, 1), start)) for prefixes, patches in streams
            ]
            groups = {n: list(group) for n, group in start.items()}
        names = sorted(groups)
        w = {n: sum(float(weights[patch]) for patch in groups[n]) for n in names}
        pairs = []
        for i in names:
            for j in names:
                if i < j:
                    d2 = sum(float((patches[i] - patches[j]).square().sum()) for _, patches in streams) / len(streams)
                    si, sj = len(groups[i]), len(groups[j])
                    pairs.append((d2 * (w[i] * sj**2 + w[j] * si**2) / (si + sj) ** 2, i, j))
        gone, taken = {}, set()
        for _, i, j in sorted(pairs):
            if len(gone) == number:
                break
            leaving, staying = (i, j) if w[i] < w[j] else (j, i)
            if i in gone or j in gone or leaving in taken:
                continue
            gone[leaving] = staying
            taken.add(staying)
        merged = {n: [n, *(old for old, new in gone.items() if new == n)] for n in names if n not in gone}
        sizes = {n: len(groups[n]) for n in names}
        groups = {n: [patch for old in olds for patch in groups[old]] for n, olds in merged.items()}
        found.append({n: sorted(group) for n, group in groups.items()})
        behind = []
        for prefixes, patches in streams:
            mean = {
                n: sum(sizes[o] * patches[o] for o in old) / sum(sizes[o] for o in old) for n, old in merged.items()
            }
            x = torch.stack([*prefixes, *mean.values()])
            x = naive_block(block, x, [1] * prefix + [len(groups[n]) for n in mean])
            behind.append((list(x[:prefix]), dict(zip(mean, x[prefix:], strict=True))))
        streams = behind
    return found
