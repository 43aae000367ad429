"""Separable penalties: each prox against dense search, convex solvers and its stationarity, at every scale."""

from __future__ import annotations

import itertools
import math
from typing import Any

import cvxpy
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from torch import Tensor

from argprune.solvers.prox.base import CHUNK
from argprune.solvers.prox.bounded import BoxL1, NonNegativeElasticNet, NonNegativeL1
from argprune.solvers.prox.concave import Geman, Laplace, LogSum, TransformedL1
from argprune.solvers.prox.folded import MCP, SCAD, CappedL1
from argprune.solvers.prox.powers import L0, LHalf, Lq, LTwoThirds
from argprune.solvers.prox.reweighting import LogReweighting
from argprune.solvers.prox.separable import L1
from argprune.solvers.prox.smooth import ElasticNet, Huber, SquaredL2
from argprune.solvers.registry import registered

FOLDED = [MCP(0.7, 2.5), SCAD(0.7), SCAD(0.4, 2.05), SCAD(1.3, 6.0), CappedL1(0.7, 0.5), CappedL1(0.2, 3.0)]
POWERS = [L0(0.7), LHalf(0.7), LTwoThirds(0.7), *(Lq(0.6, q) for q in (0.02, 0.3, 0.5, 2 / 3, 0.9, 0.99))]
SMOOTH_CONCAVE = [
    *(
        cls(strength, size)
        for cls in (LogSum, Geman, Laplace, TransformedL1)
        for strength, size in ((0.7, 0.5), (2, 3))
    ),
    LogSum(0.1, 1e-3),
    Geman(0.5, 1e-3),
    Laplace(0.5, 1e-3),
    TransformedL1(0.5, 1e-3),
]
CONVEX = [SquaredL2(0.7), Huber(0.7, 0.5), Huber(0.3), ElasticNet(0.7, 0.3), ElasticNet(0.7, 1.0), ElasticNet(0.7, 0.0)]
BOUNDED = [NonNegativeL1(0.7), BoxL1(0.3, -0.3, 0.6), BoxL1(0.3, -math.inf, 0.0), NonNegativeElasticNet(0.7, 0.2)]
PENALTIES = [*FOLDED, *POWERS, *SMOOTH_CONCAVE, *CONVEX]
EVERY = [*PENALTIES, *BOUNDED]
NULL: list[Any] = [cls(strength=0.0, **kwargs) for cls, kwargs in (
    (MCP, {}), (SCAD, {}), (CappedL1, {"theta": 1.0}), (L0, {}), (LHalf, {}), (LTwoThirds, {}), (Lq, {}),
    (LogSum, {"eps": 1.0}), (Geman, {"eps": 1.0}), (Laplace, {"eps": 1.0}), (TransformedL1, {}),
    (SquaredL2, {}), (Huber, {}), (ElasticNet, {}),
)]  # fmt: skip
STEPS = (1e-6, 0.05, 0.3, 1.0, 1.05, 2.7, 4.7, 10.0, 1e3)


def each(penalties: list[Any]) -> Any:
    return pytest.mark.parametrize("penalty", penalties, ids=repr)


def reference(penalty: Any, u: np.ndarray) -> np.ndarray:
    """r(u) for u >= 0, written from the papers' definitions in numpy, slopes integrated where those define r."""
    s = penalty.strength
    match penalty:
        case MCP(gamma=gamma):
            return np.where(u <= gamma * s, s * u - u**2 / (2 * gamma), gamma * s**2 / 2)
        case SCAD(a=a):
            middle = (2 * a * s * u - u**2 - s**2) / (2 * (a - 1))
            return np.select([u <= s, u <= a * s], [s * u, middle], s**2 * (a + 1) / 2)
        case CappedL1(theta=theta):
            return s * np.minimum(u, theta)
        case L0():
            return s * (u > 0)
        case LHalf():
            return s * np.sqrt(u)
        case LTwoThirds():
            return s * np.cbrt(u) ** 2
        case Lq(q=q):
            return s * np.power(u, q)
        case LogSum(eps=eps):
            return s * np.log1p(u / eps)
        case Geman(eps=eps):
            return s * u / (u + eps)
        case Laplace(eps=eps):
            return -s * np.expm1(-u / eps)
        case TransformedL1(beta=beta):
            return s * (beta + 1) * u / (beta + u)
        case SquaredL2():
            return s / 2 * u**2
        case Huber(delta=delta):
            return np.where(u <= delta, s * u**2 / (2 * delta), s * (u - delta / 2))
        case ElasticNet(ratio=ratio):
            return s * (ratio * u + (1 - ratio) / 2 * u**2)
    raise AssertionError(penalty)


def dense_minimum(penalty: Any, u: float, step: float) -> tuple[float, float]:
    """Minimiser and minimum over [0, u] by a grid, denser towards both ends, and a bracketed search."""

    def cost(v: Any) -> Any:
        return reference(penalty, np.asarray(v)) + (np.asarray(v) - u) ** 2 / (2 * step)

    ends = np.geomspace(1e-9, 0.5, 500)
    grid = np.unique(np.concatenate([[0.0, 1.0], np.linspace(0, 1, 1501), ends, 1 - ends])) * u
    costs = cost(grid)
    best = int(costs.argmin())
    low, high = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
    fine = minimize_scalar(cost, bounds=(low, high), method="bounded", options={"xatol": 1e-12 * u})
    candidates = [(float(costs[best]), float(grid[best])), (float(fine.fun), float(fine.x))]
    value, v = min(candidates)
    return v, value


def one(value: float, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor([value], dtype=dtype)


@each(PENALTIES)
def test_the_value_is_the_definition(penalty: Any) -> None:
    u = np.concatenate([[0.0], np.geomspace(1e-6, 1e4, 60), [0.5, 0.7, 1.75, 0.7 * 3.7]])
    found = np.array([float(penalty.value(one(sign * v))) for v in u for sign in (1, -1)])
    # A few roundings, cancelled in SCAD's middle piece.
    np.testing.assert_allclose(found, np.repeat(reference(penalty, u), 2), rtol=1e-13, atol=0)


@each(PENALTIES)
def test_the_slope_is_the_derivative_of_the_definition(penalty: Any) -> None:
    u = np.geomspace(1e-2, 30, 41) * 1.0137
    h = 1e-6 * u
    difference = (reference(penalty, u + h) - reference(penalty, u - h)) / (2 * h)
    found = penalty.slope(torch.tensor(u)).numpy()
    # Central differences: rounding of r over h, and half a kink's jump nowhere near these points.
    np.testing.assert_allclose(found, difference, rtol=1e-5, atol=1e-6)


@each(PENALTIES)
def test_the_prox_is_the_minimum_over_a_dense_grid_at_every_step(penalty: Any) -> None:
    # Around the thresholds, where branches meet: a geometric range in units of strength, step and size.
    for step in STEPS:
        us = np.concatenate([np.geomspace(1e-3, 40, 18), [0.7, 1.75, 2.59, 1 + step, step * penalty.strength]])
        prox = penalty.prox(torch.tensor(us), step).numpy()
        assert bool(((prox >= 0) & (prox <= us)).all())
        own = reference(penalty, prox) + (prox - us) ** 2 / (2 * step)
        for u, value in zip(us, own, strict=True):
            _, least = dense_minimum(penalty, float(u), step)
            # Rounding of the two terms, at most as large as the objective at 0 or at u.
            slack = 1e-13 * (u**2 / (2 * step) + float(reference(penalty, np.asarray(u))))
            assert value <= least + slack, (step, u)


@given(
    index=st.integers(0, 10),
    u=st.floats(1e-4, 50),
    step=st.floats(1e-3, 100),
    strength=st.floats(0, 5),
    shape=st.floats(1e-3, 10),
)
@settings(max_examples=150, deadline=None)
def test_the_prox_is_the_minimum_for_any_parameters(
    index: int, u: float, step: float, strength: float, shape: float
) -> None:
    penalty: Any = [
        lambda: MCP(strength, shape),
        lambda: SCAD(strength, 2 + shape),
        lambda: CappedL1(strength, shape),
        lambda: L0(strength),
        lambda: LHalf(strength),
        lambda: LTwoThirds(strength),
        lambda: Lq(strength, shape / 10.01),
        lambda: LogSum(strength, shape),
        lambda: Geman(strength, shape),
        lambda: Laplace(strength, shape),
        lambda: TransformedL1(strength, shape),
    ][index]()
    p = float(penalty.prox(one(-u), step))
    assert -u <= p <= 0
    _, least = dense_minimum(penalty, u, step)
    own = float(reference(penalty, np.asarray(-p))) + (p + u) ** 2 / (2 * step)
    assert own <= least + 1e-13 * (u**2 / (2 * step) + float(reference(penalty, np.asarray(u))))


@each([p for p in [*POWERS, *SMOOTH_CONCAVE] if not isinstance(p, L0)])
def test_nonzero_results_satisfy_the_stationarity_equation_to_the_last_digits(penalty: Any) -> None:
    for step in (1e-3, 0.1, 1.0, 50.0):
        u = torch.logspace(-6, 8, 2001, dtype=torch.float64)
        v = penalty.prox(u, step)
        kept = v > 0
        assert kept.any()
        # v = u - step r'(v) up to roundings of u; near a kept root the slope of the left side is bounded away from 0
        # but where the objective is all but flat there.
        residual = (v - u + step * penalty.slope(v))[kept].abs() / u[kept]
        assert float(residual.max()) < 8e-15


@each(PENALTIES)
def test_results_scale_in_float32_as_in_float64(penalty: Any) -> None:
    u = torch.logspace(-3, 3, 4001, dtype=torch.float64).float()
    for step in (0.1, 1.0, 7.0):
        exact, found = penalty.prox(u.double(), step), penalty.prox(u, step).double()
        # Next to a jump the two may fall on different sides.
        near = (found > 0) == (exact > 0)
        assert int((~near).sum()) <= 1
        # Where the objective is nearly flat roundings are amplified: then the objectives agree.
        cost = [float_costs(penalty, v, u.double(), step) for v in (found, exact)]
        assert bool((cost[0] - cost[1] <= 1e-5 * u.double().square() / (2 * step)).all())


def float_costs(penalty: Any, v: Tensor, u: Tensor, step: float) -> Tensor:
    costs: Tensor = penalty.profile(v) + (v - u).square() / (2 * step)
    return costs


@given(st.sampled_from(EVERY), st.lists(st.floats(-20, 20), min_size=2, max_size=8), st.floats(1e-3, 50))
@settings(deadline=None)
def test_the_prox_is_monotone(penalty: Any, values: list[float], step: float) -> None:
    w = torch.tensor(values, dtype=torch.float64).sort().values
    p = penalty.prox(w, step)
    # Equal objectives at a jump cannot be crossed twice; within a branch roundings can.
    assert bool((p.diff() >= -1e-12 * w.abs().max()).all())


@given(st.sampled_from(PENALTIES), st.lists(st.floats(-1e3, 1e3), max_size=8), st.floats(0, 50))
@settings(deadline=None)
def test_the_prox_is_odd_and_shrinks(penalty: Any, values: list[float], step: float) -> None:
    w = torch.tensor(values, dtype=torch.float64)
    p = penalty.prox(w, step)
    assert torch.equal(penalty.prox(-w, step), -p)
    assert bool((p.abs() <= w.abs()).all())
    assert bool((p * w >= 0).all())


@each([*FOLDED, *POWERS, *SMOOTH_CONCAVE])
def test_tangents_lie_above_a_concave_penalty_and_touch_it(penalty: Any) -> None:
    points = torch.logspace(-4, 2, 61, dtype=torch.float64)
    for at in (1e-3, 0.1, 0.49, 0.51, 1.0, 20.0):
        (slope,) = penalty.factors(one(at))
        tangent = penalty.profile(one(at)) + slope * (points - at)
        assert bool((tangent >= penalty.profile(points) - 1e-12 * (1 + tangent.abs())).all())


def test_log_sum_is_what_log_reweighting_majorises() -> None:
    w = torch.randn(5, 7, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    torch.testing.assert_close(
        LogSum(1.0, 0.3).factors(w), LogReweighting(0.3, normalise=False).factors(w), rtol=1e-15, atol=0
    )


@each([*CONVEX, *BOUNDED])
def test_a_convex_solver_finds_the_same(penalty: Any) -> None:
    w = torch.randn(4, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    x = cvxpy.Variable(w.shape)
    for step in (0.2, 1.5):
        p = penalty.prox(w, step)
        objective = penalty.expression(x) + cvxpy.sum_squares(x - w.numpy()) / (2 * step)
        problem = cvxpy.Problem(cvxpy.Minimize(objective))
        problem.solve(solver=cvxpy.CLARABEL)
        own = float(penalty.value(p) + (p - w).square().sum() / (2 * step))
        # Gaps of 1e-8 relative to the objective; sqrt(2 step gap) away in x.
        assert own <= problem.value + 1e-7
        np.testing.assert_allclose(p.numpy(), np.asarray(x.value), rtol=0, atol=2e-4)


@each([*CONVEX, *BOUNDED])
def test_the_expression_has_the_same_value(penalty: Any) -> None:
    x = cvxpy.Variable((4, 6))
    expression = penalty.expression(x)
    for scale, shift in itertools.product((0.1, 2.0), (0.0, 5.0)):
        w = scale * torch.randn(4, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + shift
        x.value = w.numpy()
        assert float(expression.value) == pytest.approx(float(penalty.value(w)), rel=1e-13)


@each(EVERY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_extreme_inputs_and_steps_give_finite_numbers_between_zero_and_the_input(
    penalty: Any, dtype: torch.dtype
) -> None:
    info = torch.finfo(dtype)
    sizes = [0.0, info.smallest_normal / 4, info.tiny, 1e-30, 1e-7, 1.0, 1e30, info.max / 2, info.max]
    positive = torch.tensor([size for size in sizes if size <= info.max], dtype=dtype)
    w = torch.cat([positive, -positive])
    for step in (1e-38, 1e-8, 1.0, 1e6, 1e30):
        for tau in (step, torch.full_like(w, min(step, info.max))):
            before = w.clone()
            p = penalty.prox(w, tau)
            assert torch.equal(w, before)
            assert bool(p.isfinite().all())
            assert p.dtype == dtype
            assert not bool((p.signbit() & (p == 0)).any())
            assert bool((p.abs() <= w.abs()).all())
            assert bool((p * w.sign() >= 0).all())


@each(NULL)
def test_strength_zero_is_the_identity_at_every_scale(penalty: Any) -> None:
    for dtype in (torch.float32, torch.float64):
        w = torch.tensor([0.0, 1e-40, 1e-20, 1e-3, -1.0, 1e3, -1e30], dtype=dtype)
        for step in (0.0, 1e-3, 1.0, 1e6):
            assert torch.equal(penalty.prox(w, step), w)
            assert torch.equal(penalty.prox(w, torch.full_like(w, step)), w)
        assert float(penalty.value(w)) == 0
        assert float(penalty.distance(w, torch.zeros_like(w)).max()) == 0


@each([penalty for penalty in [*FOLDED, *POWERS, *SMOOTH_CONCAVE] if vars(penalty)["strength"] < 1])
def test_large_weights_are_kept_and_small_ones_thresholded(penalty: Any) -> None:
    p = penalty.prox(torch.tensor([1e30, 1e-40, -1e-30, -1e30]), 1.0)
    assert p.tolist() == [float(np.float32(1e30)), 0.0, 0.0, -float(np.float32(1e30))]


@each([LogSum(0.5, 1.0), Geman(0.25, 1.0), Laplace(0.5, 1.0), SCAD(0.5), MCP(0.5)])
def test_results_just_above_the_threshold_keep_their_digits(penalty: Any) -> None:
    """Where the objective is convex the prox leaves 0 continuously, with slope 1 / (1 + step r''(0))."""
    threshold = float(penalty.slope(one(0.0)))
    curvature = {LogSum: -0.5, Geman: -0.5, Laplace: -0.5, SCAD: 0.0, MCP: -1 / 3}[type(penalty)]
    for excess in (1e-3, 1e-6, 1e-9):
        found = float(penalty.prox(one(threshold + excess), 1.0))
        # The next term of the expansion, and roundings of the threshold.
        assert found == pytest.approx(excess / (1 + curvature), rel=20 * excess + 1e-15 / excess)


@each(EVERY)
def test_shapes_and_layouts_do_not_matter(penalty: Any) -> None:
    w = torch.randn(6, 8, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    for view in (w.t(), w[:, ::2], w[0, 0], w[:0], w.view(2, 3, 8), w[:1].expand(3, 8), w.clone().requires_grad_()):
        p = penalty.prox(view, 0.7)
        assert p.shape == view.shape
        assert not p.requires_grad
        flat = penalty.prox(view.detach().reshape(-1).contiguous(), 0.7)
        torch.testing.assert_close(p.reshape(-1), flat, rtol=1e-14, atol=1e-15)
        assert penalty.value(view).shape == ()
        assert penalty.distance(view.detach(), p).shape == view.shape


@each(EVERY)
def test_step_tensors_act_entry_by_entry_zeros_included(penalty: Any) -> None:
    w = 3 * torch.randn(4, 5, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    steps = torch.linspace(0, 6, 20, dtype=torch.float64).view(4, 5)
    p = penalty.prox(w, steps)
    for index in np.ndindex(4, 5):
        alone = penalty.prox(w[index], float(steps[index]))
        # One rounding of step times strength, amplified where the objective is nearly flat.
        assert float(p[index]) == pytest.approx(float(alone), rel=1e-12, abs=1e-13)


@each(EVERY)
def test_chunks_are_the_same_operator(penalty: Any) -> None:
    w = torch.randn(CHUNK + 3, generator=torch.Generator().manual_seed(9))
    p = penalty.prox(w, 0.5)
    expected = torch.cat([penalty.prox(w[:CHUNK], 0.5), penalty.prox(w[CHUNK:], 0.5)])
    # Vectorised and scalar code of the same function may differ in the last digit.
    torch.testing.assert_close(p, expected, rtol=1e-6, atol=1e-7)


@each(EVERY)
def test_half_precision_is_float32_rounded(penalty: Any) -> None:
    for dtype in (torch.bfloat16, torch.float16):
        w = (3 * torch.randn(50, generator=torch.Generator().manual_seed(0))).to(dtype)
        p = penalty.prox(w, 0.5)
        rounded = penalty.prox(w.float(), 0.5).to(dtype)
        torch.testing.assert_close(p, rounded, rtol=0.01, atol=1e-3)
        assert penalty.value(w).dtype == torch.float32
        assert math.isfinite(float(penalty.value(p)))


@each(EVERY)
def test_the_distance_vanishes_at_the_prox_and_only_there(penalty: Any) -> None:
    w = 2 * torch.randn(40, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    for step in (0.05, 1.0, 6.0):
        p = penalty.prox(w, step)
        # Of (p - w) / step, whose roundings grow with 1 / step.
        assert float(penalty.distance(p, (p - w) / step).max()) <= 1e-13 * (1 + 1 / step)
        moved = p + 0.01 * p.sign()
        assert bool((penalty.distance(moved, (moved - w) / step)[p != 0] > 0).all())


@each(BOUNDED)
def test_bounded_distances_are_those_to_the_intervals(penalty: Any) -> None:
    """-grad lies in the subdifferential at w iff w minimises R(x) + grad x; tried against points of a grid."""
    lower, upper = penalty.bounds()
    grid = torch.linspace(-1.5, 1.5, 3001, dtype=torch.float64)
    grid = grid[(grid >= lower) & (grid <= upper)]
    values = torch.stack([penalty.value(x) for x in grid])
    for at in {max(lower, -1.0), -0.1, 0.0, 0.2, min(upper, 1.0)}:
        if not lower <= at <= upper:
            assert float(penalty.distance(one(at), one(0.0))) == math.inf
            continue
        for grad in (-2.0, -0.7, -0.31, -0.3, 0.0, 0.29, 0.5, 1.2):
            found = float(penalty.distance(one(at), one(grad)))
            tilted = values + grad * grid
            excess = float(penalty.value(one(at)) + grad * at - tilted.min())
            # A subgradient at distance d: the tilted function is at most d |x - at| below its value at w.
            assert excess <= found * 3 + 1e-12
            if found > 0.02:
                assert excess > 0


@each(BOUNDED)
def test_bounded_results_are_inside_also_where_the_bounds_are_rounded(penalty: Any) -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        w = (3 * torch.randn(200, generator=torch.Generator().manual_seed(2))).to(dtype)
        assert float(penalty.value(w)) == math.inf
        for step in (0.0, 0.1, 3.0, torch.linspace(0, 2, 200).to(dtype)):
            p = penalty.prox(w, step)
            assert math.isfinite(float(penalty.value(p)))
            assert not bool((p.signbit() & (p == 0)).any())


def test_bounded_l1_is_the_clamped_soft_threshold() -> None:
    w = torch.tensor([-3.0, -0.5, 0.0, 0.5, 3.0])
    assert NonNegativeL1(0.25).prox(w, 1.0).tolist() == [0.0, 0.0, 0.0, 0.25, 2.75]
    assert BoxL1(0.25, -0.5, 2.0).prox(w, 1.0).tolist() == [-0.5, -0.25, 0.0, 0.25, 2.0]
    assert NonNegativeElasticNet(0.5, 0.5).prox(w, 2.0).tolist() == [0.0, 0.0, 0.0, 0.0, float(np.float32(2.5 / 1.5))]
    assert NonNegativeL1(0.25).prox(w, 0.0).tolist() == [0.0, 0.0, 0.0, 0.5, 3.0]


def test_limits_are_the_penalties_they_tend_to() -> None:
    w = 2 * torch.randn(100, generator=torch.Generator().manual_seed(10), dtype=torch.float64)
    l1 = L1(0.4).prox(w, 0.8)
    for penalty in (
        MCP(0.4, 1e9), SCAD(0.4, 1e9), CappedL1(0.4, 1e9), ElasticNet(0.4, 1.0), Huber(0.4, 1e-9),
        LogSum(0.4e9, 1e9), Geman(0.4e9, 1e9), Laplace(0.4e9, 1e9), TransformedL1(0.4, 1e9), Lq(0.4, 1 - 1e-9),
    ):  # fmt: skip
        torch.testing.assert_close(penalty.prox(w, 0.8), l1, rtol=0, atol=1e-6)
    l0 = L0(0.4).prox(w, 0.8)
    for near in (Lq(0.4, 1e-9), Geman(0.4, 1e-9), Laplace(0.4, 1e-9), TransformedL1(0.4, 1e-9), CappedL1(0.4e9, 1e-9)):
        torch.testing.assert_close(near.prox(w, 0.8), l0, rtol=0, atol=1e-6)
    torch.testing.assert_close(ElasticNet(0.4, 0.0).prox(w, 0.8), SquaredL2(0.4).prox(w, 0.8), rtol=1e-15, atol=0)
    for q, closed in ((1 / 2, LHalf(0.4)), (2 / 3, LTwoThirds(0.4))):
        torch.testing.assert_close(Lq(0.4, q).prox(w, 0.8), closed.prox(w, 0.8), rtol=1e-15, atol=0)


@pytest.mark.parametrize("q", [1e-4, 0.05, 0.3, 0.5, 0.7, 0.9, 0.99, 0.999, 0.9999])
def test_newtons_method_reaches_the_root_from_the_threshold_on(q: float) -> None:
    beta = (2 * (1 - q)) ** (1 / (2 - q))
    threshold = beta + q * beta ** (q - 1)
    u = threshold * (1 + torch.logspace(-12, 3, 400, dtype=torch.float64))
    v = Lq(1.0, q).prox(u, 1.0)
    assert bool((v >= beta * (1 - 1e-12)).all())
    # The equation's derivative lies in [1 - q / 2, 1], so the residual bounds the error.
    assert float(((v - u + q * v.pow(q - 1)) / u).abs().max()) < 4e-16 * (2 + q / beta)


@each(EVERY)
def test_bad_steps_are_refused(penalty: Any) -> None:
    for step in (-1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="a prox step is finite and >= 0"):
            penalty.prox(torch.ones(2), step)


@pytest.mark.parametrize(
    ("cls", "kwargs", "message"),
    [
        (SCAD, {"strength": 1.0, "a": 2.0}, "SCAD: a 2.0; it must be finite and > 2"),
        (CappedL1, {"strength": 1.0, "theta": 0.0}, "CappedL1: theta 0.0"),
        (Lq, {"strength": 1.0, "q": 0.0}, "Lq: q 0.0"),
        (Lq, {"strength": 1.0, "q": 1.0}, "Lq: q 1.0"),
        (Lq, {"strength": 1.0, "q": math.nan}, "Lq: q nan"),
        (LogSum, {"strength": 1.0, "eps": 0.0}, "LogSum: eps 0.0"),
        (Geman, {"strength": 1.0, "eps": -1.0}, "Geman: eps -1.0"),
        (Laplace, {"strength": 1.0, "eps": math.inf}, "Laplace: eps inf"),
        (TransformedL1, {"strength": 1.0, "beta": math.nan}, "TransformedL1: beta nan"),
        (Huber, {"strength": 1.0, "delta": 0.0}, "Huber: delta 0.0"),
        (ElasticNet, {"strength": 1.0, "ratio": 1.1}, "ElasticNet: ratio 1.1"),
        (ElasticNet, {"strength": 1.0, "ratio": -0.1}, "ElasticNet: ratio -0.1"),
        (NonNegativeElasticNet, {"strength": 1.0, "ratio": 2.0}, "NonNegativeElasticNet: ratio 2.0"),
        (BoxL1, {"strength": 1.0, "lower": 0.1}, "BoxL1: bounds"),
        (BoxL1, {"strength": 1.0, "upper": math.nan}, "BoxL1: bounds"),
    ],
)
def test_bad_parameters_are_refused_with_what_would_be_right(cls: Any, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cls(**kwargs)


@each(EVERY)
def test_bad_strengths_are_refused(penalty: Any) -> None:
    for strength in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"{type(penalty).__name__}: strength {strength}"):
            type(penalty)(**{**vars(penalty), "strength": strength})


def test_all_are_registered_under_their_names() -> None:
    known = registered("regularizers")
    expected = {
        "mcp": MCP, "scad": SCAD, "capped_l1": CappedL1, "log_sum": LogSum, "geman": Geman, "laplace": Laplace,
        "transformed_l1": TransformedL1, "l0": L0, "l_half": LHalf, "l_two_thirds": LTwoThirds, "lq": Lq,
        "squared_l2": SquaredL2, "huber": Huber, "elastic_net": ElasticNet, "nonnegative_l1": NonNegativeL1,
        "box_l1": BoxL1, "nonnegative_elastic_net": NonNegativeElasticNet,
    }  # fmt: skip
    assert {name: known[name].cls for name in expected} == expected
