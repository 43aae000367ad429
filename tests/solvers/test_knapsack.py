"""Levels of layers within a latency: the dynamic programme against enumeration and HiGHS."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from argprune.solvers.ilp import choose_levels

numbers = st.one_of(st.integers(0, 4).map(float), st.floats(0, 10, width=16))


def staircase(layers: int, seed: int) -> tuple[Any, Any, float]:
    """12 levels a layer: error rises with sparsity, noisily, latency falls in steps; half of the dense time."""
    rng = np.random.default_rng(seed)
    sparsity = np.linspace(0, 0.95, 12)
    errors = rng.lognormal(0, 1, (layers, 1)) * (sparsity / (1 - sparsity)) * rng.uniform(0.8, 1.2, (layers, 12))
    times = rng.lognormal(0, 0.5, (layers, 1)) * np.ceil((1 - sparsity) * 8) / 8 * rng.uniform(0.95, 1.05, (layers, 12))
    return errors, times, float(times[:, 0].sum()) / 2


@given(data=st.data(), layers=st.integers(1, 4))
@settings(max_examples=150, deadline=None)
def test_dynamic_is_the_best_of_all_choices(data: st.DataObject, layers: int) -> None:
    widths = [data.draw(st.integers(1, 4)) for _ in range(layers)]
    costs = [[data.draw(numbers) - 2 for _ in range(width)] for width in widths]
    latencies = [[data.draw(numbers) for _ in range(width)] for width in widths]
    least = math.fsum(map(min, latencies))
    limit = least + data.draw(st.floats(0, 1)) * (math.fsum(map(max, latencies)) - least)
    feasible = [
        math.fsum(costs[layer][level] for layer, level in enumerate(levels))
        for levels in itertools.product(*map(range, widths))
        if math.fsum(latencies[layer][level] for layer, level in enumerate(levels)) <= limit
    ]
    found = choose_levels(costs, latencies, limit)
    assert found.status == "optimal"
    assert found.objective == pytest.approx(min(feasible), rel=1e-12, abs=1e-12)
    assert found.latency <= limit
    assert found.objective == math.fsum(row[level] for row, level in zip(costs, found.levels, strict=True))
    priced = choose_levels(costs, latencies, limit, "lagrangian")
    assert priced.bound - 1e-9 <= found.objective <= priced.objective + 1e-12
    assert priced.latency <= limit


@pytest.mark.parametrize(("layers", "seed"), [(6, 0), (12, 1), (24, 2), (72, 3)])
def test_dynamic_equals_the_mixed_integer_program(layers: int, seed: int) -> None:
    errors, times, limit = staircase(layers, seed)
    found, program = choose_levels(errors, times, limit), choose_levels(errors, times, limit, "exact")
    assert found.status == program.status == "optimal"
    assert found.objective == pytest.approx(program.objective, rel=1e-9)
    assert found.latency <= limit
    priced = choose_levels(errors, times, limit, "lagrangian")
    assert priced.bound <= found.objective <= priced.objective
    assert priced.gap <= 0.1 * priced.objective


@given(
    st.integers(0, 10_000),
    st.sampled_from([1e-30, 1e-9, 1e-5, 1.0, 1e9]),
    st.sampled_from([1e-12, 1e-7, 1e-5, 1.0, 1e6]),
)
@settings(max_examples=60, deadline=None)
def test_the_mixed_integer_program_is_right_in_any_unit(seed: int, unit: float, seconds: float) -> None:
    """HiGHS's tolerances are absolute: small costs tied, and small latencies broke the limit."""
    rng = np.random.default_rng(seed)
    costs = np.sort(rng.random((4, 3)), axis=1) * unit
    latencies = np.sort(rng.random((4, 3)), axis=1)[:, ::-1] * seconds
    limit = float(latencies[:, 1].sum())
    tables = costs.tolist(), latencies.tolist()
    found, program = choose_levels(*tables, limit), choose_levels(*tables, limit, "exact")
    assert program.latency <= limit
    assert program.objective == pytest.approx(found.objective, rel=1e-7)
    assert program.bound <= found.objective * (1 + 1e-7)


def test_too_many_states_are_said() -> None:
    errors, times, limit = staircase(24, 2)
    found = choose_levels(errors, times, limit, most_states=1)
    assert found.status == "feasible"
    assert 0 < found.gap == found.objective - found.bound


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], [], 1.0), "0 layers of costs"),
        (([[1.0]], [], 1.0), "1 layers of costs, 0 of latencies"),
        (([[1.0, 2.0]], [[1.0]], 1.0), "2 costs, 1 latencies in layer 0"),
        (([[math.nan]], [[1.0]], 1.0), "layer 0 has costs"),
        (([[1.0]], [[-1.0]], 1.0), "latencies >= 0"),
        (([[1.0]], [[2.0]], 1.0), "limit 1.0; the fastest levels take 2"),
        (([[1.0]], [[2.0]], math.nan), "limit nan"),
        (([[1.0]], [[1.0]], 1.0, "magic"), "how 'magic'"),
        (([[1.0]], [[1.0]], 1.0, "dynamic", 0), "most_states 0"),
    ],
)
def test_refusals(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        choose_levels(*arguments)
