"""Scores: entropies in bits and first-order importance, on plain tensors."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from amg_plugin.pruning import head_entropy, token_importance
from amg_plugin.pruning.scores import signed_token_sums, token_importance_from_sums


def random_attention(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).softmax(-1)


@pytest.mark.parametrize("keys", [1, 2, 7, 64])
def test_uniform_attention_has_log2_of_the_keys_bits(keys):
    entropy = head_entropy(torch.full((3, 5, keys), 1 / keys, dtype=torch.float64))
    assert entropy.tolist() == pytest.approx([math.log2(keys)] * 3)


def test_one_hot_attention_has_no_entropy_although_it_holds_zeros():
    assert head_entropy(torch.eye(6).expand(2, 6, 6)).tolist() == [0, 0]


def test_entropy_is_the_mean_over_queries_of_each_querys_entropy():
    # One query sure, one undecided between two keys, one between four: 0, 1 and 2 bits.
    maps = torch.tensor([[[1, 0, 0, 0], [0.5, 0.5, 0, 0], [0.25, 0.25, 0.25, 0.25]]])
    assert head_entropy(maps).tolist() == pytest.approx([1.0])


def test_heads_are_scored_apart():
    sure, undecided = torch.eye(4), torch.full((4, 4), 0.25)
    assert head_entropy(torch.stack([sure, undecided])).tolist() == pytest.approx([0.0, 2.0])


def test_entropy_equals_the_written_out_sum():
    maps = random_attention(3, 4, 5)
    expected = [sum(-p * math.log2(p) for query in head for p in query.tolist()) / maps.shape[1] for head in maps]
    assert head_entropy(maps).tolist() == pytest.approx(expected)


def test_normalised_entropy_of_uniform_attention_is_one_whatever_the_number_of_keys():
    for keys in (2, 9, 33):
        assert head_entropy(torch.full((1, 3, keys), 1 / keys), normalize=True).item() == pytest.approx(1)


def test_normalised_entropy_of_a_single_key_is_zero():
    assert head_entropy(torch.ones(2, 3, 1), normalize=True).tolist() == [0, 0]


def test_nan_attention_gives_nan_entropy_instead_of_hiding_it():
    maps = random_attention(2, 3, 4)
    maps[0, 0, 0] = math.nan
    assert head_entropy(maps).isnan().tolist() == [True, False]


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 9), st.integers(0, 1000))
def test_entropy_lies_between_zero_and_its_ceiling(heads, queries, keys, seed):
    entropy = head_entropy(random_attention(heads, queries, keys, seed=seed))
    assert entropy.shape == (heads,)
    assert (entropy >= 0).all() and (entropy <= math.log2(keys) + 1e-9).all()


def test_importance_equals_the_written_out_sum():
    attention = random_attention(2, 3, 4, 5)
    gradient = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = []
    for key in range(5):
        total = sum(
            attention[b, h, q, key] * gradient[b, h, q, key] for b in range(2) for h in range(3) for q in range(4)
        )
        expected.append(abs(total.item()) / (2 * 3 * 4))
    assert token_importance(attention, gradient, 0).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("prefix", [0, 1, 2, 5])
def test_prefix_tokens_are_left_out_of_the_importance(prefix):
    attention = random_attention(1, 2, 8, 8)
    everything = token_importance(attention, torch.ones_like(attention), 0)
    assert torch.equal(token_importance(attention, torch.ones_like(attention), prefix), everything[prefix:])


def test_signs_cancel_before_the_absolute_value_is_taken():
    attention = torch.full((2, 1, 1, 2), 0.5)
    gradient = torch.tensor([1.0, 1.0, -1.0, 1.0]).reshape(2, 1, 1, 2)
    assert token_importance(attention, gradient, 0).tolist() == pytest.approx([0.0, 0.5])


def test_importance_is_the_derivative_of_the_loss_by_a_factor_on_the_keys_column():
    """Removing key k scales its column of the attention from 1 to 0: first order, that is the derivative at 1."""
    attention = random_attention(2, 3, 4, 6)
    value = torch.randn(2, 3, 6, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def loss_of(maps):
        return (maps @ value).tanh().square().sum()

    leaf = attention.clone().requires_grad_()
    loss_of(leaf).backward()
    importance = token_importance(attention, leaf.grad, 2)
    step = 1e-5
    for key in range(2, 6):
        more, less = attention.clone(), attention.clone()
        more[..., key] *= 1 + step
        less[..., key] *= 1 - step
        slope = (loss_of(more) - loss_of(less)) / (2 * step)
        assert importance[key - 2].item() == pytest.approx(abs(slope.item()) / (2 * 3 * 4), rel=1e-6)


def test_sums_of_the_parts_of_a_batch_add_up_to_the_batch():
    attention = random_attention(4, 2, 3, 5)
    gradient = torch.randn(4, 2, 3, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    parts = signed_token_sums(attention[:1], gradient[:1]) + signed_token_sums(attention[1:], gradient[1:])
    joined = token_importance_from_sums(parts, 4 * 2 * 3, 1)
    assert torch.allclose(joined, token_importance(attention, gradient, 1))
