"""Bootstrap intervals of means over queries."""

import numpy as np
import pytest

from amg_plugin.evaluation.intervals import bootstrap_interval


def test_the_interval_is_about_that_of_the_normal_distribution_for_many_values():
    values = np.random.default_rng(1).normal(0.5, 0.2, 400)
    low, high = bootstrap_interval(values, resamples=2000)
    error = 1.96 * values.std() / np.sqrt(len(values))
    assert (low, high) == pytest.approx((values.mean() - error, values.mean() + error), abs=0.002)


def test_equal_values_leave_no_doubt():
    assert bootstrap_interval(np.full(20, 0.25), resamples=10) == [0.25, 0.25]
