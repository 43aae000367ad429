"""What a report says of chance: intervals of a mean, and tests of paired differences.

Of differences d_1, ..., d_n with mean m and standard deviation s:

    over seeds       m +- t_{n-1} s / sqrt(n),   p = share of the 2^n sign patterns with |sum +-d_i| >= |sum d_i|
    over examples    quantiles of the means of resamples of the d_i,   p = 2 min(share <= 0, share >= 0)

Three pairs of seeds allow no sign-flip p below 2 / 2^3 = 0.25, whatever the differences are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

LEVEL = 0.95
RESAMPLES = 10_000
# As many pairs are enumerated; of more, sign patterns are drawn.
_ENUMERATED = 16
# Resampled indices held at once.
_CHUNK = 2_000_000


@dataclass(frozen=True)
class Interval:
    """A mean, and where it may be; low and high are None where one value says nothing of its spread."""

    mean: float
    low: float | None
    high: float | None
    count: int


@dataclass(frozen=True)
class Test:
    """A mean of paired differences, its interval, and the two-sided p-value of "no difference"; None for one pair."""

    interval: Interval
    p_value: float | None


def mean_interval(values: Sequence[float], level: float = LEVEL) -> Interval:
    """Student's interval of the mean of independent values, such as those of several seeds.

    >>> mean_interval([1.0, 3.0]).mean
    2.0
    """
    mean, count = fmean(values), len(values)
    if count < 2:
        return Interval(mean, None, None, count)
    half = quantile(count - 1, level) * stdev(values) / math.sqrt(count)
    return Interval(mean, mean - half, mean + half, count)


def quantile(freedom: int, level: float = LEVEL) -> float:
    """By how many standard errors a two-sided interval of Student's t reaches out, of so many degrees of freedom."""
    return float(student.ppf(0.5 + level / 2, freedom))


def sign_flip(differences: Sequence[float], seed: int = 0) -> float:
    """The p-value of differences whose signs would be random if there were none: exact up to 16, drawn beyond.

    Fisher (1935). Drawn ones count the observed pattern too, so that p is never 0.

    >>> sign_flip([1.0, 2.0, 3.0])
    0.25
    """
    values = np.asarray(differences, np.float64)
    if len(values) <= _ENUMERATED:
        patterns = (np.arange(2 ** len(values))[:, None] >> np.arange(len(values))) & 1
        extra = 0
    else:
        patterns = np.random.default_rng(seed).integers(0, 2, (RESAMPLES, len(values)))
        extra = 1
    sums = np.abs((1 - 2 * patterns) @ values)
    # Rounding must not make a pattern less extreme than itself.
    reached = int((sums >= abs(values.sum()) * (1 - 1e-12) - 1e-15).sum())
    return (reached + extra) / (len(patterns) + extra)


def seeds_test(differences: Sequence[float], level: float = LEVEL) -> Test:
    """Student's interval and the sign-flip test of differences, one a pair of seeds."""
    interval = mean_interval(differences, level)
    return Test(interval, None if interval.count < 2 else sign_flip(differences))


def bootstrap_tests(
    differences: NDArray[np.floating], level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0
) -> list[Test]:
    """Of each column, the percentile interval of the mean over examples, and the p-value that fits it.

    differences: (examples, tests); all columns share their resamples. Efron and Tibshirani (1993), chapters 13 and 16.
    p is at least 2 / (resamples + 1), and 1 where all differences are 0.
    """
    count = len(differences)
    generator, step = np.random.default_rng(seed), max(1, _CHUNK // count)
    parts = []
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        drawn = generator.integers(0, count, (rows, count)) + count * np.arange(rows)[:, None]
        # How often each resample has each example: sums are then one product, however many columns there are.
        times = np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count)
        parts.append(times.astype(np.float64) @ differences / count)
    means = np.concatenate(parts)
    lows, highs = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0)
    # Rounding of sums must not take a mean of 0 off 0.
    means[np.abs(means) < 1e-12] = 0.0
    tails = np.minimum((means <= 0).sum(0), (means >= 0).sum(0))
    return [
        Test(
            Interval(float(column.mean()), float(low), float(high), count),
            min(1.0, 2 * (int(tail) + 1) / (resamples + 1)),
        )
        for column, low, high, tail in zip(np.asarray(differences, np.float64).T, lows, highs, tails, strict=True)
    ]


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values of several tests, adjusted so that the chance of any false alarm stays what each says (Holm, 1979).

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted, worst = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        worst = max(worst, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = worst
    return adjusted
