"""Schedules by hand, and what holds for all of them."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from argprune.solvers.schedules import CubicSparsity, Phases, check_sparsity

sparsities = st.floats(0, 1, exclude_max=True)


def test_cubic_by_hand() -> None:
    schedule = CubicSparsity(final=0.8, begin=10, end=20)
    # 0.8 * (1 - (1 - x)^3) at x = 0, 1/10, 1/2, 9/10, 1.
    expected = {0: 0.0, 10: 0.0, 11: 0.2168, 15: 0.7, 19: 0.7992, 20: 0.8, 99: 0.8}
    for step, value in expected.items():
        assert schedule(step) == pytest.approx(value, rel=0, abs=1e-15)
    assert CubicSparsity(0.5, 0, 4, initial=0.25)(2) == 0.5 - 0.25 / 8


def test_cubic_of_one_step_jumps() -> None:
    schedule = CubicSparsity(0.5, 3, 3)
    assert [schedule(step) for step in (2, 3, 4)] == [0.0, 0.5, 0.5]


@given(initial=sparsities, final=sparsities, begin=st.integers(0, 50), length=st.integers(0, 50))
def test_cubic_is_monotone_and_bounded(initial: float, final: float, begin: int, length: int) -> None:
    schedule = CubicSparsity(final, begin, begin + length, initial)
    values = [schedule(step) for step in range(begin + length + 3)]
    assert values[-1] == final
    if begin:
        assert values[0] == initial
    direction = 1 if final >= initial else -1
    # Two roundings of numbers below 1.
    assert all(direction * (b - a) >= -3e-16 for a, b in pairwise(values))
    assert all(min(initial, final) - 3e-16 <= value <= max(initial, final) + 3e-16 for value in values)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.5, 5, 4), "begin 5, end 4"),
        ((0.5, -1, 4), "begin -1"),
        ((1.0, 0, 4), r"sparsity 1\.0"),
        ((0.5, 0, 4, -0.1), r"sparsity -0\.1"),
    ],
)
def test_cubic_refusals(arguments: tuple[float, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CubicSparsity(*arguments)


def test_phases_by_hand() -> None:
    assert Phases(0.1, 0.4).steps(100) == (10, 59)
    assert Phases(0.0, 0.0).steps(10) == (0, 9)
    assert Phases(0.06, 0.4).steps(1) == (0, 0)
    assert Phases(0.5, 0.49).steps(3) == (2, 2)


fractions = st.floats(0, 1)


@given(warmup=fractions, cooldown=fractions, total=st.integers(1, 10_000))
def test_phases_leave_at_least_one_pruning_step(warmup: float, cooldown: float, total: int) -> None:
    if warmup + cooldown >= 1:
        with pytest.raises(ValueError, match="their sum < 1"):
            Phases(warmup, cooldown)
        return
    begin, end = Phases(warmup, cooldown).steps(total)
    assert 0 <= begin <= end < total
    # Rounded to whole steps; where phases leave no room, warm-up and pruning give way by one step.
    assert abs(begin - warmup * total) <= 1
    assert abs(end + 1 - (1 - cooldown) * total) <= 2


@pytest.mark.parametrize(("warmup", "cooldown"), [(-0.1, 0.5), (0.5, -0.1), (0.5, 0.5), (float("nan"), 0.0)])
def test_phases_refusals(warmup: float, cooldown: float) -> None:
    with pytest.raises(ValueError, match="fractions of the run"):
        Phases(warmup, cooldown)


def test_a_run_has_a_step() -> None:
    with pytest.raises(ValueError, match="total_steps 0"):
        Phases(0.1, 0.1).steps(0)


def test_sparsity_is_a_fraction_below_one() -> None:
    for sparsity in (0.0, 0.5, 0.999999):
        check_sparsity(sparsity)
    for sparsity in (-1e-9, 1.0, 60.0, float("nan")):
        with pytest.raises(ValueError, match="fraction of zeros"):
            check_sparsity(sparsity)
