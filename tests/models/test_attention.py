"""Prunable attention and blocks by themselves."""

from __future__ import annotations

import pytest
import torch
from timm.layers import Attention
from timm.models.vision_transformer import Block
from torch.utils.flop_counter import FlopCounterMode

from amg_plugin.models.attention import PrunableAttention, PrunableBlock, SubsetNorm

WIDTH, HEADS, TOKENS = 12, 3, 7


@pytest.fixture
def tokens():
    return torch.randn(2, TOKENS, WIDTH, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def block():
    torch.manual_seed(0)
    return PrunableBlock.convert(Block(WIDTH, HEADS, qkv_bias=True)).eval()


def test_converted_modules_are_still_timms_and_have_timms_state(block):
    assert isinstance(block, Block) and isinstance(block.attn, Attention)
    assert list(block.state_dict()) == list(Block(WIDTH, HEADS, qkv_bias=True).state_dict())


def test_unpruned_modules_compute_bit_for_bit_what_timm_computes(block, tokens):
    plain = Block(WIDTH, HEADS, qkv_bias=True).eval()
    plain.load_state_dict(block.state_dict())
    assert torch.equal(block(tokens), plain(tokens))


def test_the_state_dict_is_the_same_before_and_after_token_pruning(block):
    keys = list(block.state_dict())
    for variant in ("kv", "block"):
        block.keep_tokens([0, 2, 3], TOKENS, variant)
        assert list(block.state_dict()) == keys


def test_block_variant_carries_dropped_tokens_unchanged(block, tokens):
    block.keep_tokens([0, 2, 5], TOKENS, "block")
    out = block(tokens)
    dropped = [1, 3, 4, 6]
    assert torch.equal(out[:, dropped], tokens[:, dropped])
    assert not torch.isclose(out[:, [0, 2, 5]], tokens[:, [0, 2, 5]]).all()


def test_block_variant_equals_the_block_on_the_kept_tokens_alone(block, tokens):
    alone = block(tokens[:, [0, 2, 5]])
    block.keep_tokens([0, 2, 5], TOKENS, "block")
    assert torch.equal(block(tokens)[:, [0, 2, 5]], alone)


def test_kv_variant_computes_every_token(block, tokens):
    block.keep_tokens([0, 2, 5], TOKENS, "kv")
    assert not torch.isclose(block(tokens), tokens).all(dim=-1).any()


def test_kv_variant_does_not_see_the_values_of_dropped_tokens(block, tokens):
    block.keep_tokens([0, 2, 5], TOKENS, "kv")
    changed = tokens.clone()
    changed[:, 3] += 1
    others = [0, 1, 2, 4, 5, 6]
    assert torch.allclose(block(changed)[:, others], block(tokens)[:, others], atol=1e-6)


def test_kv_variant_projects_keys_and_values_of_kept_tokens_only(block, tokens):
    block.keep_tokens([0, 2, 5], TOKENS, "kv")
    block.attn.fused_attn = False  # so that every product is counted
    with FlopCounterMode(display=False) as counter:
        block.attn(tokens)
    queries, keys_and_values, output = TOKENS * WIDTH**2, 3 * 2 * WIDTH**2, TOKENS * WIDTH**2
    attention = 2 * TOKENS * 3 * WIDTH
    assert counter.get_total_flops() == 2 * len(tokens) * (queries + keys_and_values + attention + output)


def test_keeping_everything_again_restores_the_dense_block(block, tokens):
    expected = block(tokens)
    for variant in ("kv", "block"):
        block.keep_tokens([0, 1], TOKENS, variant)
        block.keep_tokens(None, TOKENS, variant)
        assert torch.equal(block(tokens), expected)


def test_one_variant_replaces_the_other(block):
    block.keep_tokens([0, 1], TOKENS, "block")
    block.keep_tokens([0, 1], TOKENS, "kv")
    assert block.kept_tokens is None and block.attn.kept_tokens.tolist() == [0, 1]
    block.keep_tokens([0, 1], TOKENS, "block")
    assert block.attn.kept_tokens is None and block.kept_tokens.tolist() == [0, 1]


@pytest.mark.parametrize("variant", ["kv", "block"])
def test_the_observer_receives_the_softmax_attention(block, tokens, variant):
    block.keep_tokens([0, 2, 5], TOKENS, variant)
    seen = []
    block.attn.observer = seen.append
    expected = block(tokens)
    queries = TOKENS if variant == "kv" else 3
    assert [tuple(maps.shape) for maps in seen] == [(2, HEADS, queries, 3)]
    assert torch.allclose(seen[0].sum(-1), torch.ones(1))
    block.attn.observer = None
    assert torch.allclose(block(tokens), expected, atol=1e-6)


@pytest.mark.parametrize("mask", [{"attn_mask": torch.ones(TOKENS, TOKENS, dtype=torch.bool)}, {"is_causal": True}])
def test_masks_work_as_in_timm_until_tokens_are_pruned(block, tokens, mask):
    plain = Block(WIDTH, HEADS, qkv_bias=True).eval()
    plain.load_state_dict(block.state_dict())
    assert torch.equal(block(tokens, **mask), plain(tokens, **mask))
    for variant in ("kv", "block"):
        block.keep_tokens([0, 1], TOKENS, variant)
        with pytest.raises(NotImplementedError, match="mask"):
            block(tokens, **mask)


def test_attention_dropout_is_applied_in_training_only(tokens):
    attention = PrunableAttention.convert(Attention(WIDTH, HEADS, attn_drop=0.5))
    attention.kept_tokens = torch.tensor([0, 2, 5])
    for fused in (True, False):
        attention.fused_attn = fused
        attention.train()
        assert not torch.equal(attention(tokens), attention(tokens))
        attention.eval()
        assert torch.equal(attention(tokens), attention(tokens))


@pytest.mark.parametrize("affine", [True, False])
def test_the_norm_over_all_heads_is_layer_norm_while_nothing_is_removed(tokens, affine):
    norm = torch.nn.LayerNorm(WIDTH, elementwise_affine=affine)
    assert torch.allclose(SubsetNorm(norm)(tokens), norm(tokens), atol=1e-6)
    assert list(SubsetNorm(norm).state_dict()) == list(norm.state_dict())
