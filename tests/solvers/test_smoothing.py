"""Smoothing of scores over steps: windows, averages, uncertainty."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from drawn_batches import batches_of, close, every, seeds
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from argprune.solvers.criteria import Elementwise, Smoothing, build


@every
@settings(max_examples=15)
@given(
    seed=seeds,
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    keep=st.sampled_from([0.0, 0.85, 1.0]),
    factor=st.sampled_from([1.0, -1.0, -0.15]),
)
def test_blending_is_raw_scores_added(
    spec: dict[str, Any], seed: int, dtype: torch.dtype, keep: float, factor: float
) -> None:
    criterion = build(spec)
    if not isinstance(criterion, Elementwise):
        return
    [batch] = batches_of(seed, number=1, dtype=dtype)
    before = torch.randn(batch.weight.shape, generator=torch.Generator().manual_seed(seed))
    expected = factor * criterion.raw(batch).double() + (keep * before.double() if keep else 0.0)
    # Where nothing is kept, nothing of what was there may show.
    into = before.clone() if keep else torch.full_like(before, torch.nan)
    criterion.blend(into, batch, keep=keep, factor=factor)
    close(into, expected)


def platon_reference(
    raws: Sequence[Sequence[float]], window: int, beta: float, uncertainty: float | None
) -> list[list[float]]:
    """Scores at the end of each window, entry by entry in Python's floats; dossier, section 1.3."""
    averages, deviations, result = [0.0] * len(raws[0]), [0.0] * len(raws[0]), []
    for begin in range(0, len(raws), window):
        rows = raws[begin : begin + window]
        scores = []
        for i in range(len(raws[0])):
            mean = 0.0
            for count, row in enumerate(rows):
                mean = (count * mean + row[i]) / (count + 1)
            averages[i] = beta * averages[i] + (1 - beta) * mean
            score = averages[i]
            if uncertainty is not None:
                deviations[i] = uncertainty * deviations[i] + (1 - uncertainty) * abs(mean - averages[i])
                score *= deviations[i]
            scores.append(score)
        result.append(scores)
    return result


def smoothed(smoothing: Smoothing, raws: Tensor, window: int) -> list[Tensor]:
    accumulators = smoothing.start(raws[0])
    results = []
    for begin in range(0, len(raws), window):
        rows = raws[begin : begin + window]
        for index, row in enumerate(rows):
            accumulators["window"].mul_(index > 0).add_(row)
        results.append(smoothing.close(accumulators, len(rows)).clone())
    return results


@settings(max_examples=15)
@given(
    seed=seeds,
    window=st.integers(1, 11),
    beta=st.sampled_from([0.0, 0.5, 0.85, 0.95]),
    uncertainty=st.sampled_from([None, 0.0, 0.5, 0.95]),
)
def test_smoothing_is_platons_over_thirty_steps(seed: int, window: int, beta: float, uncertainty: float | None) -> None:
    assume(beta > 0 or uncertainty is None)
    raws = torch.randn(30, 5, generator=torch.Generator().manual_seed(seed)).abs()
    expected = platon_reference(raws.tolist(), window, beta, uncertainty)
    found = smoothed(Smoothing(window, beta, uncertainty), raws, window)
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, torch.tensor(other), rtol=1e-4, atol=1e-6)


def test_beta_zero_is_the_last_window_and_keeps_no_average() -> None:
    raws = torch.randn(6, 5)
    smoothing = Smoothing(window=2)
    assert set(smoothing.start(raws[0])) == {"window"}
    for one, other in zip(smoothed(smoothing, raws, 2), raws.view(3, 2, 5).mean(1), strict=True):
        torch.testing.assert_close(one, other)
    assert set(Smoothing(beta=0.5, uncertainty=0.5).start(raws[0])) == {"window", "average", "deviation"}


@settings(max_examples=15)
@given(seed=seeds, beta=st.sampled_from([0.0, 0.85]), factor=st.floats(-4, 4))
def test_window_and_average_are_linear_in_the_scores(seed: int, beta: float, factor: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    one, other = torch.randn(6, 5, generator=generator), torch.randn(6, 5, generator=generator)
    smoothing = Smoothing(window=3, beta=beta)
    parts = [smoothed(smoothing, raws, 3)[-1] for raws in (one, other, one + factor * other)]
    torch.testing.assert_close(parts[0] + factor * parts[1], parts[2], rtol=1e-4, atol=1e-5)
