"""What a report says of chance, against enumeration, closed forms and scipy."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from argprune.tasks.report.statistics import bootstrap_tests, holm, mean_interval, quantile, seeds_test, sign_flip

# Whole numbers: sums are exact, and ties are ties.
differences = st.lists(st.integers(-9, 9), min_size=1, max_size=9)


def enumerated(values: Sequence[int]) -> float:
    """The share of sign patterns whose sum is at least as far from 0."""
    sums = [
        sum(s * v for s, v in zip(signs, values, strict=True))
        for signs in itertools.product((1, -1), repeat=len(values))
    ]
    return sum(abs(total) >= abs(sum(values)) for total in sums) / len(sums)


@given(differences)
def test_sign_flips_are_those_of_an_enumeration(values: list[int]) -> None:
    assert sign_flip(values) == enumerated(values)
    assert sign_flip([-value for value in values]) == sign_flip(values)
    # Thirds are no binary fractions: rounding must not turn a tie into a difference.
    assert sign_flip([value / 3 for value in values]) == sign_flip(values)


def test_of_three_pairs_no_p_is_below_a_quarter() -> None:
    assert sign_flip([5.0, 5.1, 4.9]) == 0.25
    assert seeds_test([0.01]).p_value is None


def test_of_many_pairs_drawn_patterns_come_close_to_all() -> None:
    values = np.random.default_rng(0).integers(-9, 14, 17)
    patterns = 1 - 2 * ((np.arange(2**17)[:, None] >> np.arange(17)) & 1)
    exact = float((np.abs(patterns @ values) >= abs(values.sum())).mean())
    # 10,000 draws: a standard error of at most 0.005.
    assert sign_flip(values.tolist()) == pytest.approx(exact, abs=0.015)
    assert sign_flip(list(range(1, 40))) > 0


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=12))
def test_intervals_of_means_are_students(values: list[float]) -> None:
    found = mean_interval(values)
    assert found.low is not None
    assert found.high is not None
    assert found.low <= found.mean + 1e-9
    if len(set(values)) > 1 and np.std(values) > 1e-6:
        wanted = scipy.stats.ttest_1samp(values, 0).confidence_interval(0.95)
        assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high), rel=1e-6, abs=1e-6)


def test_one_value_has_no_interval() -> None:
    assert (mean_interval([0.7]).low, mean_interval([0.7]).count) == (None, 1)
    assert quantile(2) == pytest.approx(4.302652729911275)


def test_bootstrap_of_right_and_wrong_is_binomial() -> None:
    """Means of resamples of n zeros and ones are binomial counts over n."""
    count, share = 200, 0.3
    values = (np.arange(count) < share * count).astype(float)
    [test] = bootstrap_tests(values[:, None])
    wanted = scipy.stats.binom.ppf([0.025, 0.975], count, share) / count
    # A quantile of 10,000 draws is at most a step of 1 / count away.
    assert (test.interval.low, test.interval.high) == pytest.approx(tuple(wanted), abs=1.01 / count)
    assert test.interval.mean == pytest.approx(share)


def test_bootstrap_p_is_that_of_a_z_test_where_examples_are_many() -> None:
    values = np.random.default_rng(1).normal(0.05, 1, (1500, 1))
    [test] = bootstrap_tests(values)
    z = values.mean() / values.std() * math.sqrt(len(values))
    assert test.p_value == pytest.approx(2 * scipy.stats.norm.sf(abs(z)), abs=0.02)
    half = 1.96 * values.std() / math.sqrt(len(values))
    assert (test.interval.low, test.interval.high) == pytest.approx(
        (values.mean() - half, values.mean() + half), abs=0.05 * half
    )


def test_bootstrap_covers_the_truth_as_often_as_it_says() -> None:
    samples = np.random.default_rng(2).normal(0.3, 1, (60, 400))
    covered = [t.interval.low <= 0.3 <= t.interval.high for t in bootstrap_tests(samples, resamples=2000)]  # type: ignore[operator]
    # 95 % of 400, less the known shortfall of percentiles at 60 examples; a standard error of 1.1 %.
    assert 0.90 <= np.mean(covered) <= 0.98


def test_bootstrap_columns_do_not_know_each_other() -> None:
    values = np.random.default_rng(3).normal(size=(50, 3))
    together, alone = bootstrap_tests(values), [bootstrap_tests(values[:, [at]])[0] for at in range(3)]
    for one, other in zip(together, alone, strict=True):
        assert one.p_value == other.p_value
        assert one.interval.low == pytest.approx(other.interval.low)


def test_bootstrap_of_no_difference_and_of_one_in_every_example() -> None:
    nothing, everything = bootstrap_tests(np.array([[0.0, 1.0]] * 30))
    assert nothing.p_value == 1
    assert everything.p_value == pytest.approx(2 / 10_001)
    assert (everything.interval.low, everything.interval.high) == (1, 1)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_is_its_definition(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    for p_value, found in zip(p_values, adjusted, strict=True):
        # Rejected at a level exactly where all smaller ones pass their own bound.
        assert found >= p_value
        for level in (0.01, 0.05, 0.3):
            passed = True
            for rank, each in enumerate(sorted(p_values)):
                passed = passed and (len(p_values) - rank) * each <= level
                if each == p_value and sorted(p_values).index(each) == rank:
                    assert (found <= level) == passed
