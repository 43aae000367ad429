"""SLOPE and the k-support norm against quadratic programs, enumeration of orders and supports, and special cases."""

from __future__ import annotations

import itertools
import time
from typing import Any

import cvxpy
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm as gaussian
from torch import Tensor

from argprune.solvers.groups import Columns, Rows, Whole
from argprune.solvers.prox.group_linf import GroupLInf
from argprune.solvers.prox.sorted import SLOPE, KSupport
from argprune.solvers.prox.sparse_group import ExclusiveLasso


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


SLOPES = {
    "linear": SLOPE(0.5),
    "oscar": SLOPE(0.1, "oscar", 0.4),
    "bh": SLOPE(0.6, "bh", 0.3),
    "bh of rows": SLOPE(0.6, "bh", 0.3, groups=Rows()),
    "columns": SLOPE(0.8, "linear", 0.0, groups=Columns()),
    "given": SLOPE(0.7, factors=torch.tensor([3.0, 1.0, 1.0, 0.5, 0.0, 0.0]), groups=Rows()),
}
SUPPORTS = {
    "k = 1": KSupport(0.8, 1),
    "k = 5": KSupport(1.3, 5),
    "k of all": KSupport(0.7, 24),
    "k beyond": KSupport(0.7, 100),
    "rows": KSupport(0.9, 2, Rows()),
    "columns": KSupport(0.9, 3, Columns()),
}
each_slope = pytest.mark.parametrize("regularizer", SLOPES.values(), ids=SLOPES.keys())
each_support = pytest.mark.parametrize("regularizer", SUPPORTS.values(), ids=SUPPORTS.keys())


def inputs() -> list[Tensor]:
    w = normal(0, 4, 6)
    holes = w * (normal(1, 4, 6) > 0)
    powers = 10.0 ** torch.arange(-6, 6, 0.5, dtype=torch.float64).reshape(4, 6)
    return [w, 3 * w, holes, w.sign(), (2 * w).round(), torch.zeros_like(w), w * powers]


def objective(regularizer: Any, x: Tensor, w: Tensor, step: float) -> float:
    return float(regularizer.value(x) + (x - w).square().sum() / (2 * step))


def assert_solved(penalty: Any, constraints: list[Any], x: Any, regularizer: Any, w: Tensor, step: float) -> None:
    problem = cvxpy.Problem(cvxpy.Minimize(penalty + cvxpy.sum_squares(x - w.numpy()) / (2 * step)), constraints)
    problem.solve(solver=cvxpy.CLARABEL)
    p = regularizer.prox(w, step)
    # Clarabel stops at gaps of 1e-8 of the objective; a gap g bounds the distance by sqrt(2 step g).
    gap = 1e-7 * (1 + abs(problem.value))
    assert objective(regularizer, p, w, step) == pytest.approx(problem.value, abs=gap)
    np.testing.assert_allclose(p.numpy(), x.value, rtol=0, atol=(2 * step * gap) ** 0.5)


@each_slope
def test_slope_prox_is_a_convex_solvers(regularizer: SLOPE) -> None:
    for w, step in zip(inputs()[:6], (0.2, 1.5, 0.5, 0.3, 1.0, 1.0), strict=True):
        x = cvxpy.Variable(w.shape)
        assert_solved(regularizer.expression(x), [], x, regularizer, w, step)


@each_support
def test_k_support_prox_is_a_convex_solvers_of_the_variational_form(regularizer: KSupport) -> None:
    """||w||^2 = min over theta in [0, 1]^n with sum k of sum_i w_i^2 / theta_i (Argyriou et al.; Micchelli et al.)."""
    for w in inputs()[:6]:
        for step in (0.2, 1.5):
            x, theta, bound = cvxpy.Variable(w.shape), cvxpy.Variable(w.shape), cvxpy.Variable(w.shape)
            flat, share, above = (cvxpy.vec(y, order="C") for y in (x, theta, bound))
            cones = cvxpy.SOC(share + above, cvxpy.vstack([2 * flat, share - above]), axis=0)
            axis = {Whole: None, Rows: 1, Columns: 0}[type(regularizer.groups)]
            constraints = [cones, theta >= 0, theta <= 1, cvxpy.sum(theta, axis=axis) <= regularizer.k]
            assert_solved(regularizer.strength / 2 * cvxpy.sum(bound), constraints, x, regularizer, w, step)


@pytest.mark.parametrize("regularizer", [SUPPORTS[name] for name in ("k = 1", "k = 5", "k beyond", "rows")])
def test_the_expression_of_the_k_support_norm_is_the_same_function(regularizer: KSupport) -> None:
    w = inputs()[0]
    x = cvxpy.Variable(w.shape)
    expression = regularizer.expression(x)
    assert expression.is_convex()
    assert_solved(expression, [], x, regularizer, w, 0.5)
    x.value = w.numpy()
    # A support function's value comes from SCS.
    assert float(expression.value) == pytest.approx(float(regularizer.value(w)), rel=1e-5)


@each_slope
def test_slope_is_the_largest_weighted_sum_over_all_orders(regularizer: SLOPE) -> None:
    for w in inputs():
        stack = regularizer.groups.split(w)[:, :6].abs()
        small = SLOPE(regularizer.strength, regularizer.shape, regularizer.amount, regularizer.factors, Rows())
        factors = regularizer.strength * _factors(small, stack.shape[1])
        orders = torch.tensor(list(itertools.permutations(range(stack.shape[1]))))
        best = (factors[orders] @ stack.T).amax(0).sum()
        small = SLOPE(small.strength, factors=_factors(small, stack.shape[1]), groups=Rows())
        assert float(small.value(stack)) == pytest.approx(float(best), rel=1e-13)
        x = cvxpy.Variable(stack.shape)
        x.value = stack.numpy()
        assert float(small.expression(x).value) == pytest.approx(float(best), rel=1e-12)


def _factors(regularizer: SLOPE, size: int) -> Tensor:
    """The shapes' definitions."""
    if regularizer.factors is not None:
        return regularizer.factors.double()[:size]
    rule = {
        "linear": lambda i: 1 - (1 - regularizer.amount) * (i - 1) / (size - 1),
        "oscar": lambda i: 1 + regularizer.amount * (size - i),
        "bh": lambda i: gaussian.ppf(1 - regularizer.amount * i / (2 * size)),
    }[regularizer.shape]
    return torch.tensor([rule(i) for i in range(1, size + 1)], dtype=torch.float64)


def test_slope_values_are_those_of_the_shapes_definitions() -> None:
    w = inputs()[0]
    ordered = w.flatten().abs().sort(descending=True).values
    for shape, amount in (("linear", 0.3), ("oscar", 0.3), ("bh", 0.3), ("bh", 1.0)):
        regularizer = SLOPE(0.5, shape, amount)  # type: ignore[arg-type]
        expected = 0.5 * float((_factors(regularizer, 24) * ordered).sum())
        assert float(regularizer.value(w)) == pytest.approx(expected, rel=1e-12)


@given(
    values=st.lists(st.floats(-3, 3), min_size=6, max_size=6),
    k=st.integers(1, 7),
    strength=st.floats(1e-3, 5),
    step=st.floats(1e-3, 5),
)
@settings(max_examples=40, deadline=None)
def test_k_support_value_and_prox_by_enumeration_of_the_variational_patterns(
    values: list[float], k: int, strength: float, step: float
) -> None:
    """Some entries have theta = 1, some 0 < theta < 1, the rest 0: all 3^6 patterns, each in closed form."""
    w = torch.tensor(values, dtype=torch.float64)
    regularizer = KSupport(strength, k)
    u = w.abs()
    best = float("inf")
    for full in range(min(k, 6) + 1):
        # An upper bound for every choice of which entries are full, tight at the best: the largest are.
        for chosen in itertools.combinations(range(6), full):
            mask = torch.zeros(6, dtype=torch.bool)
            mask[list(chosen)] = True
            rest = u[~mask]
            if full == k and float(rest.sum()) > 0:
                continue
            shared = float(rest.sum()) ** 2 / (k - full) if full < k else 0.0
            theta = rest * (k - full) / rest.sum().clamp(min=1e-300)
            if bool((theta <= 1 + 1e-12).all()) or float(rest.sum()) == 0:
                best = min(best, float(u[mask].square().sum()) + shared)
    best = min(best, float(u.square().sum())) if k >= int((u > 0).sum()) else best
    assert float(regularizer.value(w)) == pytest.approx(strength / 2 * best, rel=1e-9, abs=1e-200)
    p = regularizer.prox(w, step)
    own = objective(regularizer, p, w, step)
    for x in p + normal(2, 100, 6) * 10 ** normal(3, 100, 1):
        assert own <= objective(regularizer, x, w, step) + 1e-12 * (1 + own)
    for index in range(6):
        for value in (0.0, float(w[index])):
            x = p.clone()
            x[index] = value
            assert own <= objective(regularizer, x, w, step) + 1e-12 * (1 + own)


@pytest.mark.parametrize("step", [1e-6, 0.3, 2.0, 1e6])
def test_special_cases_are_other_regularizers(step: float) -> None:
    for w in inputs():
        close: Any = {"rtol": 1e-12, "atol": 1e-13 * float(w.abs().max())}
        first = torch.zeros(24, dtype=torch.float64)
        first[0] = 1
        largest = SLOPE(0.7, factors=first)
        torch.testing.assert_close(largest.prox(w, step), GroupLInf(0.7, Whole()).prox(w, step), **close)
        soft = w.sign() * (w.abs() - 0.7 * step).clamp(min=0)
        torch.testing.assert_close(SLOPE(0.7, "linear", 1.0).prox(w, step), soft, **close)
        one = KSupport(0.7, 1)
        torch.testing.assert_close(one.prox(w, step), ExclusiveLasso(0.7, Whole()).prox(w, step), **close)
        assert float(one.value(w)) == pytest.approx(float(ExclusiveLasso(0.7, Whole()).value(w)), rel=1e-13)
        ridge = KSupport(0.7, 24)
        torch.testing.assert_close(ridge.prox(w, step), w / (1 + 0.7 * step), **close)
        assert float(ridge.value(w)) == pytest.approx(0.35 * float(w.square().sum()), rel=1e-13)


def test_slope_ties_the_magnitudes_that_it_pools() -> None:
    p = SLOPE(1.0, factors=torch.tensor([2.0, 1.0, 0.0])).prox(torch.tensor([3.0, -2.9, 0.5]), 0.5)
    assert p.tolist() == pytest.approx([2.2, -2.2, 0.5])


@given(seed=st.integers(0, 10**6), step=st.floats(1e-4, 100), scale=st.sampled_from([1.0, 1e-150, 1e150]))
@settings(max_examples=30, deadline=None)
def test_homogeneity_in_scale(seed: int, step: float, scale: float) -> None:
    """For a norm, prox at (c w, c step) is c times that at (w, step); for a squared one the step stays."""
    w = normal(seed, 4, 6)
    for slope in SLOPES.values():
        torch.testing.assert_close(
            slope.prox(scale * w, scale * step), scale * slope.prox(w, step), rtol=1e-9, atol=1e-12 * scale
        )
    for support in SUPPORTS.values():
        torch.testing.assert_close(
            support.prox(scale * w, step), scale * support.prox(w, step), rtol=1e-9, atol=1e-12 * scale
        )


@pytest.mark.parametrize("regularizer", [*SLOPES.values(), *SUPPORTS.values()], ids=[*SLOPES, *SUPPORTS])
def test_one_step_a_group_ties_halves_and_empties(regularizer: Any) -> None:
    w = normal(4, 4, 6)
    count = len(regularizer.groups.split(w))
    tau = torch.linspace(0, 1, count, dtype=torch.float64) if count > 1 else torch.tensor([0.5])
    split = regularizer.groups.split
    expected = torch.stack([split(regularizer.prox(w, float(t)))[i] for i, t in enumerate(tau)])
    assert torch.equal(split(regularizer.prox(w, tau)), expected)
    for dtype in (torch.bfloat16, torch.float16):
        half = w.to(dtype)
        reference = regularizer.prox(half.float(), 0.5)
        assert torch.equal(regularizer.prox(half, 0.5), reference.to(dtype))
        assert regularizer.value(half).dtype == torch.float32
    equal = regularizer.prox(w.sign(), 0.3)
    assert torch.equal(regularizer.prox(torch.zeros(4, 6), 0.3), torch.zeros(4, 6))
    if isinstance(regularizer, KSupport):
        torch.testing.assert_close(equal.abs(), equal[0, 0].abs().expand(4, 6), rtol=1e-13, atol=0)
    empty = torch.zeros(0, 6)
    assert regularizer.prox(empty, 0.3).shape == (0, 6)
    assert float(regularizer.value(empty)) == 0


@pytest.mark.parametrize(
    "make", [lambda: SLOPE(0.5, "bh", 0.1), lambda: KSupport(0.5, 1000)], ids=["slope", "k-support"]
)
def test_a_quarter_of_a_million_entries_take_no_loop(make: Any) -> None:
    regularizer, w = make(), normal(5, 1 << 18)
    start = time.process_time()
    p = regularizer.prox(w, 0.5)
    # About 0.3 s of processor time; a loop over the entries takes many times the limit.
    assert time.process_time() - start < 3
    own = objective(regularizer, p, w, 0.5)
    for factor in (0.999, 1.001):
        assert own < objective(regularizer, factor * p, w, 0.5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SLOPE(1.0, "cubic"), "shape 'cubic'"),  # type: ignore[arg-type]
        (lambda: SLOPE(1.0, "linear", 1.5), "amount 1.5"),
        (lambda: SLOPE(1.0, "bh", 0.0), "amount 0.0"),
        (lambda: SLOPE(1.0, "oscar", -0.1), "amount -0.1"),
        (lambda: SLOPE(1.0, factors=torch.tensor([1.0, 2.0])), "from largest to smallest"),
        (lambda: SLOPE(1.0, factors=torch.tensor([1.0, -2.0])), "from largest to smallest"),
        (lambda: SLOPE(1.0, factors=torch.ones(2, 2)), "1-D"),
        (lambda: SLOPE(1.0, factors=torch.tensor([torch.inf, 1.0])), "finite"),
        (lambda: SLOPE(1.0, factors=torch.ones(5)).prox(torch.ones(4, 6), 1.0), "5 factors for groups of 24"),
        (lambda: KSupport(1.0, 0), "k 0"),
        (lambda: KSupport(1.0, 1.5), "k 1.5"),  # type: ignore[arg-type]
        (lambda: KSupport(1.0, True), "k True"),
    ],
)
def test_bad_parameters_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@each_slope
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_zeros_counts_those_of_the_prox(regularizer: SLOPE, dtype: torch.dtype) -> None:
    for w in (w.to(dtype) for w in inputs()):
        for step in (0.0, 1e-3, 0.3, 1.0, 5.0, 1e9):
            assert regularizer.zeros(w, step) == int((regularizer.prox(w, step) == 0).sum())


def test_nan_stays() -> None:
    w = normal(0, 4, 6)
    w[1, 2] = float("nan")
    assert bool(SLOPE(0.5).prox(w, 1.0)[1, 2].isnan())
