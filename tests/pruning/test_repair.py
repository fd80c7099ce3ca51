"""Fits of single layers: what a direct solve on all the data gives."""

from __future__ import annotations

import pytest
import torch

from amg_plugin.errors import InputError, RunError
from amg_plugin.pruning.repair import Moments, fit_least_squares, fit_mean

TOKENS, COLUMNS, OUTPUTS = 200, 6, 4


@pytest.fixture
def data():
    """Inputs with large means and correlated columns, targets that depend on more than they say, and a poor layer."""
    generator = torch.Generator().manual_seed(0)

    def noise(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    inputs = noise(TOKENS, COLUMNS) @ noise(COLUMNS, COLUMNS) + 5 * noise(COLUMNS)
    targets = inputs @ noise(COLUMNS, OUTPUTS) + noise(OUTPUTS) + noise(TOKENS, OUTPUTS)
    return inputs, targets, noise(OUTPUTS, COLUMNS), noise(OUTPUTS)


def moments_of(inputs, targets, batches=3):
    moments = Moments()
    for z, y in zip(inputs.chunk(batches), targets.chunk(batches), strict=True):
        moments.add(z, y)
    return moments


def direct(inputs, targets, weight, strength, through_origin):
    """Ridge regression towards ``weight`` as one least-squares problem: rows of data, then rows of the penalty."""
    if not through_origin:
        inputs, targets = inputs - inputs.mean(0), targets - targets.mean(0)
    size = inputs.shape[1]
    rows = torch.cat((inputs, (len(inputs) * strength) ** 0.5 * torch.eye(size, dtype=inputs.dtype)))
    values = torch.cat((targets, (len(inputs) * strength) ** 0.5 * weight.T))
    return torch.linalg.lstsq(rows, values).solution.T


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("ridge", [0.0, 1e-3, 0.5])
def test_least_squares_is_the_direct_solve_of_the_stacked_data(data, ridge, with_bias):
    inputs, targets, weight, bias = data
    fitted, offset = fit_least_squares(weight, bias if with_bias else None, moments_of(inputs, targets), ridge)
    centred = inputs - inputs.mean(0) if with_bias else inputs
    strength = ridge * centred.square().mean()
    expected = direct(inputs, targets, weight, strength, through_origin=not with_bias)
    assert torch.allclose(fitted, expected, atol=1e-9)
    if with_bias:
        assert torch.allclose(offset, targets.mean(0) - expected @ inputs.mean(0), atol=1e-9)
    else:
        assert offset is None


def test_the_mean_repair_gives_the_targets_mean(data):
    inputs, targets, weight, _ = data
    bias = fit_mean(weight, moments_of(inputs, targets))
    assert torch.allclose((inputs @ weight.T + bias).mean(0), targets.mean(0))


@pytest.mark.parametrize("ridge", [0.0, 1e-3, 10.0])
def test_errors_are_ordered(data, ridge):
    inputs, targets, weight, bias = data
    moments = moments_of(inputs, targets)
    errors = [
        moments.error(*fit_least_squares(weight, bias, moments, ridge)),
        moments.error(weight, fit_mean(weight, moments)),
        moments.error(weight, bias),
    ]
    assert errors == sorted(errors)
    for error, (w, b) in zip(errors[1:], ((weight, fit_mean(weight, moments)), (weight, bias)), strict=True):
        assert error == pytest.approx((targets - inputs @ w.T - b).square().sum(1).mean().item())


def test_moments_are_those_of_all_batches_together(data):
    inputs, targets, *_ = data
    moments = moments_of(inputs, targets, batches=7)
    mean_z, mean_y, covariance, cross, variance = moments.central()
    both = torch.cat((inputs, targets), dim=1)
    expected = torch.cov(both.T, correction=0)
    assert moments.tokens == TOKENS
    assert torch.allclose(torch.cat((mean_z, mean_y)), both.mean(0))
    assert torch.allclose(covariance, expected[:COLUMNS, :COLUMNS])
    assert torch.allclose(cross, expected[COLUMNS:, :COLUMNS])
    assert torch.allclose(variance, expected.diagonal()[COLUMNS:])


def test_large_means_cost_no_digits_in_float32(data):
    inputs, targets, *_ = data
    exact = moments_of(inputs, targets).central()[2]
    shifted = moments_of((inputs + 1000).float(), targets.float()).central()[2]
    assert torch.allclose(shifted, exact, atol=1e-2 * exact.diagonal().min().item())


def test_columns_that_say_the_same_are_no_trouble_with_a_ridge(data):
    inputs, targets, weight, bias = data
    twice = torch.cat((inputs, inputs), dim=1)
    moments = moments_of(twice, targets)
    fitted, offset = fit_least_squares(torch.cat((weight, weight), dim=1), bias, moments, 1e-3)
    assert torch.isfinite(fitted).all() and torch.isfinite(offset).all()
    with pytest.raises(RunError, match="covariance of what goes into the layer is singular"):
        fit_least_squares(torch.cat((weight, weight), dim=1), bias, moments, 0.0)


def test_inputs_that_never_vary_are_refused(data):
    inputs, targets, weight, bias = data
    with pytest.raises(RunError, match="singular"):
        fit_least_squares(weight, bias, moments_of(torch.ones_like(inputs), targets), 1e-3)


def test_fewer_tokens_than_columns_are_refused(data):
    inputs, targets, weight, bias = data
    few = moments_of(inputs[: COLUMNS - 1], targets[: COLUMNS - 1], batches=1)
    with pytest.raises(InputError, match=f"the {COLUMNS} columns of the layer.*there are {COLUMNS - 1}"):
        fit_least_squares(weight, bias, few)
    assert torch.isfinite(fit_mean(weight, few)).all()


@pytest.mark.parametrize("place", ["inputs", "targets"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_statistics_that_are_not_finite_are_refused(data, place, value):
    inputs, targets, weight, bias = data
    (inputs if place == "inputs" else targets)[7, 1] = value
    moments = moments_of(inputs, targets)
    for fit in (lambda: fit_mean(weight, moments), lambda: fit_least_squares(weight, bias, moments)):
        with pytest.raises(RunError, match="statistics of the layer are not finite"):
            fit()


def test_no_tokens_at_all_are_refused(data):
    with pytest.raises(InputError, match="No calibration token reached the layer"):
        fit_mean(data[2], Moments())
