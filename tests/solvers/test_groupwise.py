"""Grouped regularizers against convex solvers, dense searches and their definitions; every shape, dtype and scale."""

from __future__ import annotations

import dataclasses
import pickle
from typing import Any

import cvxpy
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from argprune.solvers.groups import Blocks, Columns, Elements, Rows, Whole
from argprune.solvers.prox.base import Regularizer
from argprune.solvers.prox.concave import LogSum
from argprune.solvers.prox.folded import MCP, SCAD
from argprune.solvers.prox.group_linf import GroupLInf
from argprune.solvers.prox.groupwise import GroupLasso, GroupLogSum, GroupMCP, GroupSCAD, WeightedGroupLasso
from argprune.solvers.prox.radial import metric_shrink
from argprune.solvers.prox.sorted import SLOPE, KSupport
from argprune.solvers.prox.sparse_group import ExclusiveLasso, SparseGroupLasso, TreeGroupLasso

FACTORS = torch.tensor([0.0, 0.5, 1.0, 3.0], dtype=torch.float64)
TREE = (Blocks(1, 2), Rows(), Whole())
CONVEX = {
    "group lasso": GroupLasso(0.7),
    "group lasso of columns": GroupLasso(0.5, Columns()),
    "weighted group lasso": WeightedGroupLasso(0.6, FACTORS),
    "group linf": GroupLInf(0.9),
    "group linf of blocks": GroupLInf(1.3, Blocks(2, 3)),
    "sparse group lasso": SparseGroupLasso(0.8, 0.3),
    "sparse group lasso of columns": SparseGroupLasso(0.8, 0.6, Columns()),
    "tree": TreeGroupLasso(0.4),
    "tree of three levels": TreeGroupLasso(0.3, TREE, (1.0, 0.5, 2.0)),
    "exclusive lasso": ExclusiveLasso(0.5),
    "exclusive lasso of columns": ExclusiveLasso(1.5, Columns()),
    "slope": SLOPE(0.4),
    "k-support": KSupport(0.8, 4),
}
CONCAVE = {
    "group mcp": GroupMCP(0.7, 2.5),
    "group mcp of columns": GroupMCP(1.2, 0.8, Columns()),
    "group scad": GroupSCAD(0.6, 2.5),
    "group log-sum": GroupLogSum(0.9, 0.3),
    "group log-sum of blocks": GroupLogSum(0.5, 1.5, Blocks(2, 2)),
}
ALL = {**CONVEX, **CONCAVE}
each = pytest.mark.parametrize("regularizer", ALL.values(), ids=ALL.keys())
each_concave = pytest.mark.parametrize("regularizer", CONCAVE.values(), ids=CONCAVE.keys())
METRIC = ("group lasso", "weighted", "group linf", "sparse", "exclusive")
each_metric = pytest.mark.parametrize(
    "regularizer", [r for n, r in CONVEX.items() if n.startswith(METRIC)], ids=lambda r: type(r).__name__
)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def inputs() -> list[Tensor]:
    """(4, 6): two scales, a zero group, zeros within groups, ties of both signs, scales mixed."""
    w = normal(0, 4, 6)
    holes = w * (normal(1, 4, 6) > 0)
    holes[2] = 0
    powers = 10.0 ** torch.arange(-6, 6, 0.5, dtype=torch.float64).reshape(4, 6)
    return [w, 3 * w, holes, w.sign(), torch.zeros_like(w), w * powers]


def objective(regularizer: Any, x: Tensor, w: Tensor, step: float | Tensor) -> float:
    squares = torch.where(x == w, 0, (x - w).square() / (2 * torch.as_tensor(step, dtype=torch.float64)))
    return float(regularizer.value(x) + squares.sum())


def solved(regularizer: Any, w: Tensor, step: Tensor) -> tuple[float, Any]:
    x = cvxpy.Variable(w.shape)
    squares = cvxpy.sum_squares(cvxpy.multiply(np.sqrt(0.5 / step.expand(w.shape).numpy()), x - w.numpy()))
    problem = cvxpy.Problem(cvxpy.Minimize(regularizer.expression(x) + squares))
    problem.solve(solver=cvxpy.CLARABEL)
    return float(problem.value), x.value


def assert_solved(regularizer: Any, w: Tensor, step: Tensor) -> None:
    best, x = solved(regularizer, w, step)
    p = regularizer.prox(w, step)
    # Clarabel stops at gaps of 1e-8 of the objective; a gap g bounds the distance by sqrt(2 step g).
    gap = 1e-7 * (1 + abs(best))
    assert objective(regularizer, p, w, step.expand(w.shape)) <= best + gap
    np.testing.assert_allclose(p.numpy(), x, rtol=0, atol=float((2 * step.max() * gap).sqrt()))


# test_sorted.py has the solvers for the others.
UNSORTED = {name: r for name, r in CONVEX.items() if not isinstance(r, SLOPE | KSupport)}


@pytest.mark.parametrize("regularizer", UNSORTED.values(), ids=UNSORTED.keys())
def test_a_convex_solver_finds_the_same_minimiser(regularizer: Any) -> None:
    for w in inputs()[:4]:
        for step in (0.2, 1.0):
            assert_solved(regularizer, w, torch.tensor(step, dtype=torch.float64))


@each_metric
def test_a_convex_solver_finds_the_same_minimiser_in_a_diagonal_metric(regularizer: Any) -> None:
    steps = 10 ** normal(5, 4, 6).clamp(-1.5, 0.8)
    for w in inputs()[:3]:
        assert_solved(regularizer, w, steps)


@each_metric
def test_metric_steps_that_agree_are_the_scalar_step(regularizer: Any) -> None:
    """A hair's difference in one entry takes the path of the metric, which must meet the other one."""
    for w in inputs()[:4]:
        steps = torch.full_like(w, 0.4)
        torch.testing.assert_close(regularizer.prox(w, steps), regularizer.prox(w, 0.4), rtol=0, atol=0)
        near = steps * (1 + 1e-13 * torch.arange(w.numel()).reshape(w.shape))
        torch.testing.assert_close(regularizer.prox(w, near), regularizer.prox(w, 0.4), rtol=1e-10, atol=1e-11)


@each_metric
def test_entries_of_step_zero_stay_and_the_others_are_optimal(regularizer: Any) -> None:
    w = normal(3, 4, 6)
    steps = torch.where(normal(4, 4, 6) > 0, 0.7, 0.0).double()
    p = regularizer.prox(w, steps)
    assert torch.equal(p[steps == 0], w[steps == 0])
    x = cvxpy.Variable(w.shape)
    free = (steps > 0).double().numpy()
    fixed = [cvxpy.multiply(1 - free, x - w.numpy()) == 0]
    problem = cvxpy.Problem(cvxpy.Minimize(regularizer.expression(x) + cvxpy.sum_squares(x - w.numpy()) / 1.4), fixed)
    problem.solve(solver=cvxpy.CLARABEL)
    assert objective(regularizer, p, w, torch.where(steps > 0, steps, 1)) <= problem.value + 1e-6
    np.testing.assert_allclose(p.numpy(), np.asarray(x.value), rtol=0, atol=1e-3)


@each
def test_one_step_a_group_is_each_group_on_its_own(regularizer: Any) -> None:
    w = normal(6, 4, 6)
    groups = getattr(regularizer, "groups", Whole())
    stack = groups.split(w)
    tau = torch.linspace(0, 2, len(stack), dtype=torch.float64) if len(stack) > 1 else torch.tensor([0.7])
    expected = torch.stack([groups.split(regularizer.prox(w, float(t)))[i] for i, t in enumerate(tau)])
    full = groups.join(tau[:, None].expand(stack.shape).double(), w.shape)
    for step in (tau, tau[:, None], full):
        assert torch.allclose(groups.split(regularizer.prox(w, step)), expected, rtol=0, atol=1e-15)


@each
def test_steps_that_fit_no_shape_are_refused(regularizer: Any) -> None:
    with pytest.raises(ValueError, match="step of shape"):
        regularizer.prox(torch.ones(4, 6), torch.ones(5))
    with pytest.raises(ValueError, match="step -1"):
        regularizer.prox(torch.ones(4, 6), -1.0)


@pytest.mark.parametrize(
    "regularizer",
    [*CONCAVE.values(), TreeGroupLasso(0.4), SLOPE(0.4), KSupport(0.8, 4)],
    ids=lambda r: type(r).__name__,
)
def test_steps_that_differ_within_groups_are_refused_where_the_prox_is_not_exact(regularizer: Any) -> None:
    with pytest.raises(ValueError, match=f"{type(regularizer).__name__}.prox: step of .* that differ"):
        regularizer.prox(torch.ones(4, 6), torch.rand(4, 6))


@given(
    values=st.lists(st.floats(-3, 3), min_size=4, max_size=4),
    step=st.floats(1e-2, 8),
    penalty=st.sampled_from(
        [(GroupMCP, 2.0), (GroupMCP, 0.5), (GroupSCAD, 2.2), (GroupLogSum, 0.1), (GroupLogSum, 2.0)]
    ),
)
@settings(max_examples=40, deadline=None)
def test_concave_radial_prox_beats_a_dense_search(values: list[float], step: float, penalty: tuple[Any, float]) -> None:
    """Along the ray of w, on 20,001 points, and off it, at 200 random points."""
    regularizer = penalty[0](0.8, penalty[1])
    scalar = {GroupMCP: MCP, GroupSCAD: SCAD, GroupLogSum: LogSum}[penalty[0]](0.8, penalty[1])
    w = torch.tensor([values], dtype=torch.float64)
    p = regularizer.prox(w, step)
    best = objective(regularizer, p, w, step)
    norm = float(w.norm())
    v = torch.linspace(0, norm, 20_001, dtype=torch.float64)
    assert best <= float((scalar.profile(v) + (v - norm).square() / (2 * step)).min()) + 1e-12 * (1 + best)
    x = p + normal(7, 200, 4) * 10 ** normal(8, 200, 1)
    others = scalar.profile(x.norm(dim=1)) + (x - w).square().sum(1) / (2 * step)
    assert best <= float(others.min()) + 1e-12 * (1 + best)
    # The value is that of the norms, one group a row.
    assert float(regularizer.value(x)) == pytest.approx(float(scalar.profile(x.norm(dim=1)).sum()), rel=1e-12)


@each_concave
def test_factors_are_slopes_of_a_tangent_that_majorises(regularizer: Any) -> None:
    w = normal(9, 4, 6)
    stack = regularizer.groups.split(w)
    factors = regularizer.factors(w)
    assert factors.shape == (len(stack),)
    for scale in (1.001, 0.999, 0.5, 2.0, 0.0):
        for other in (scale * w, scale * w + 0.1 * normal(10, 4, 6)):
            rise = regularizer.groups.split(other).norm(dim=1) - stack.norm(dim=1)
            tangent = float(regularizer.value(w) + (factors * rise).sum())
            assert float(regularizer.value(other)) <= tangent + 1e-12
            if abs(scale - 1) < 0.01 and torch.equal(other, scale * w):
                assert float(regularizer.value(other)) == pytest.approx(tangent, abs=1e-4)


def numpy_value(regularizer: Any, w: Any) -> Any:
    """The definitions, group by group."""
    match regularizer:
        case TreeGroupLasso():
            factors = regularizer.factors or (1,) * len(regularizer.levels)
            levels = zip(regularizer.levels, factors, strict=True)
            return regularizer.strength * sum(
                f * sum(np.linalg.norm(g) for g in level.split(torch.tensor(w)).numpy()) for level, f in levels
            )
        case WeightedGroupLasso():
            return regularizer.strength * sum(f * np.linalg.norm(g) for f, g in zip(FACTORS.tolist(), w, strict=True))
        case _:
            total: Any = 0.0
            for g in regularizer.groups.split(torch.tensor(w)).numpy():
                match regularizer:
                    case GroupLasso():
                        total += np.linalg.norm(g)
                    case GroupLInf():
                        total += np.abs(g).max()
                    case SparseGroupLasso(l1_ratio=share):
                        total += share * np.abs(g).sum() + (1 - share) * np.linalg.norm(g)
                    case ExclusiveLasso():
                        total += np.abs(g).sum() ** 2 / 2
            return regularizer.strength * total


@pytest.mark.parametrize("regularizer", UNSORTED.values(), ids=UNSORTED.keys())
def test_values_and_expressions_are_the_definitions(regularizer: Any) -> None:
    for w in inputs():
        expected = numpy_value(regularizer, w.numpy())
        assert float(regularizer.value(w)) == pytest.approx(expected, rel=1e-13, abs=0)
        x = cvxpy.Variable(w.shape)
        x.value = w.numpy()
        assert float(regularizer.expression(x).value) == pytest.approx(expected, rel=1e-13, abs=1e-300)


WITH_DISTANCE = {name: r for name, r in ALL.items() if hasattr(r, "distance")}


@pytest.mark.parametrize("regularizer", WITH_DISTANCE.values(), ids=WITH_DISTANCE.keys())
def test_distance_is_zero_at_the_prox_and_not_lenient_elsewhere(regularizer: Any) -> None:
    for w in inputs()[:5]:
        for step in (0.05, 0.4, 2.0):
            p = regularizer.prox(w, step)
            rounding = 1e-14 * (1 + float(w.abs().max())) * (1 + 1 / step)
            assert float(regularizer.distance(p, (p - w) / step).abs().max()) <= rounding
            if not regularizer.convex:
                continue
            near = [p + s * normal(11, 4, 6) * k for s in (1e-4, 1e-2, 1.0) for k in (1, p != 0)]
            for y in (torch.zeros_like(p), p * (normal(12, 4, 6) > 0), w.sign(), *near):
                # Strong monotonicity of the objective's subdifferential, modulus 1 / step.
                found = float(regularizer.distance(y, (y - w) / step).norm())
                assert found >= float((y - p).norm()) / step * (1 - 1e-9) - 10 * rounding


def dual_ball(regularizer: Any, shape: tuple[int, int]) -> tuple[Any, list[Any]]:
    """dR(0) of a norm R: a CVXPY expression and the constraints under which it runs through that set."""

    def split(x: Any, groups: Any) -> list[Any]:
        index = groups.split(torch.arange(x.size).reshape(shape)).numpy()
        return [cvxpy.hstack([x[int(i) // shape[1], int(i) % shape[1]] for i in row]) for row in index]

    strength = regularizer.strength
    z = cvxpy.Variable(shape)
    match regularizer:
        case GroupLasso():
            return z, [cvxpy.norm(g) <= strength for g in split(z, regularizer.groups)]
        case WeightedGroupLasso():
            return z, [cvxpy.norm(g) <= strength * f for g, f in zip(split(z, Rows()), FACTORS.tolist(), strict=True)]
        case GroupLInf():
            return z, [cvxpy.norm1(g) <= strength for g in split(z, regularizer.groups)]
        case SparseGroupLasso(l1_ratio=share):
            y = cvxpy.Variable(shape)
            balls = [cvxpy.norm(g) <= strength * (1 - share) for g in split(y, regularizer.groups)]
            return z + y, [cvxpy.abs(z) <= strength * share, *balls]
        case TreeGroupLasso():
            parts = [cvxpy.Variable(shape) for _ in regularizer.levels]
            factors = regularizer.factors or (1.0,) * len(parts)
            levels = list(zip(parts, regularizer.levels, factors, strict=True))
            return sum(parts), [cvxpy.norm(g) <= strength * f for y, level, f in levels for g in split(y, level)]
    raise AssertionError(regularizer)


@pytest.mark.parametrize(
    "regularizer",
    [r for n, r in CONVEX.items() if n in WITH_DISTANCE and not isinstance(r, ExclusiveLasso)],
    ids=[n for n, r in CONVEX.items() if n in WITH_DISTANCE and not isinstance(r, ExclusiveLasso)],
)
def test_distance_is_that_to_the_projection_by_a_convex_solver(regularizer: Any) -> None:
    """For a norm, dR(w) holds the z of dR(0) with <z, w> = R(w)."""
    grad = 1.5 * normal(13, 4, 6)
    for w in inputs()[:5]:
        z, constraints = dual_ball(regularizer, (4, 6))
        face = cvxpy.sum(cvxpy.multiply(z, w.numpy())) >= float(regularizer.value(w)) - 1e-6
        problem = cvxpy.Problem(
            cvxpy.Minimize(cvxpy.norm(cvxpy.vec(z + grad.numpy(), order="C"))), [*constraints, face]
        )
        problem.solve(solver=cvxpy.CLARABEL)
        # A face of a round body is a point; the slack of 1e-6 there moves it by about the root of that.
        assert float(regularizer.distance(w, grad).norm()) == pytest.approx(problem.value, abs=5e-3)


@given(
    seed=st.integers(0, 10**6),
    size=st.integers(1, 40),
    spread=st.floats(0, 12),
    offset=st.floats(-20, 20),
    level=st.floats(-6, 1),
)
@settings(max_examples=200, deadline=None)
def test_metric_roots_solve_their_equation(seed: int, size: int, spread: float, offset: float, level: float) -> None:
    """Weights and steps over up to 24 orders of magnitude: n is the norm of x, and x is stationary to rounding."""
    w = normal(seed, 3, size) * 10 ** (spread * (normal(seed + 1, 3, size)).clamp(-1, 1) + offset)
    t = 10 ** (spread * normal(seed + 2, 3, size).clamp(-1, 1) + offset + level)
    x = metric_shrink(w, t)
    n = x.norm(dim=1, keepdim=True)
    zero = (n == 0).squeeze(1)
    assert bool(((w / t)[zero].square().sum(1) <= 1 + 1e-12).all())
    assert bool(((w / t)[~zero].square().sum(1) > 1 - 1e-12).all())
    # S(n) = 1 in its own terms, to a few roundings; n + t hides what n's own rounding cannot.
    total = (w / (n + t)).square().sum(1)[~zero]
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-13)
    torch.testing.assert_close(x[~zero], (w * n / (n + t))[~zero], rtol=1e-12, atol=0)


def test_a_metric_step_in_one_scale_is_exact_to_rounding() -> None:
    """All steps but one equal, that one at weight 0: the closed form, through Newton's method."""
    w = normal(14, 50, 8)
    w[:, 0] = 0
    steps = torch.full_like(w, 0.6)
    steps[:, 0] = 3.0
    norm = w.norm(dim=1, keepdim=True)
    expected = w * ((norm - 0.6 * 2) / norm).clamp(min=0)
    torch.testing.assert_close(GroupLasso(2.0).prox(w, steps), expected, rtol=1e-14, atol=1e-15)


DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@each
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_manners(regularizer: Any, dtype: torch.dtype) -> None:
    assert isinstance(regularizer, Regularizer)
    copy = pickle.loads(pickle.dumps(regularizer))
    for original in inputs():
        w = original.clamp(-1e4, 1e4).to(dtype).requires_grad_()
        before = w.detach().clone()
        for step in (0.0, 1e-8, 0.3, 1e6):
            p = regularizer.prox(w=w, step=step)
            assert torch.equal(w.detach(), before)
            assert p.data_ptr() != w.data_ptr()
            assert (p.shape, p.dtype, p.requires_grad, p.is_contiguous()) == (w.shape, dtype, False, True)
            assert bool(p.isfinite().all())
            assert not bool((p.signbit() & (p == 0)).any())
            assert bool((p * before >= 0).all())
            assert torch.equal(p, copy.prox(w, step))
            if step == 0:
                assert torch.equal(p, before)
        value = regularizer.value(w)
        assert (value.shape, value.dtype) == ((), torch.float64 if dtype == torch.float64 else torch.float32)


@each
def test_narrow_dtypes_are_rounded_once_from_wide_results(regularizer: Any) -> None:
    for original in inputs()[:4]:
        for dtype, wide in (
            (torch.float32, torch.float64),
            (torch.bfloat16, torch.float32),
            (torch.float16, torch.float32),
        ):
            w = original.to(dtype)
            p, reference = regularizer.prox(w, 0.4).double(), regularizer.prox(w.to(wide), 0.4).double()
            # float32 intermediates: a few roundings of what the largest entry is.
            bound = torch.finfo(dtype).eps * (4 if dtype == torch.float32 else 1.01) * float(w.abs().max())
            assert float((p - reference).abs().max()) <= bound


@each
@pytest.mark.parametrize("scale", [1e300, 1e-310, 1e-200, 1e150], ids=str)
def test_extreme_float64_entries(regularizer: Any, scale: float) -> None:
    w = normal(15, 4, 6).clamp(-3, 3) * scale
    for step in (1e-8, 1.0, 1e6):
        p = regularizer.prox(w, step)
        assert bool(p.isfinite().all())
        assert bool((p.abs() <= w.abs() * (1 + 1e-14)).all())
        assert not bool(regularizer.value(w).isnan())


@each
@pytest.mark.parametrize("scale", [1e38, 1e30, 1e-40, 1e-44, 1e-20], ids=str)
def test_extreme_float32_entries_give_what_float64_gives(regularizer: Any, scale: float) -> None:
    w = (normal(16, 4, 6).clamp(-3, 3) * scale).float()
    for step in (1e-8, 1.0, 1e6):
        p = regularizer.prox(w, step)
        assert bool(p.isfinite().all())
        reference = regularizer.prox(w.double(), step)
        bound = 1e-6 * float(w.double().abs().max()) + 2e-45
        assert float((p.double() - reference).abs().max()) <= bound
        assert not bool(regularizer.value(w).isnan())


@each_metric
@pytest.mark.parametrize("scale", [1e300, 1e-310], ids=str)
def test_extreme_entries_in_a_metric(regularizer: Any, scale: float) -> None:
    w = normal(17, 4, 6).clamp(-3, 3) * scale
    for factor in (1e-300, 1e-8, 1.0, 1e6):
        p = regularizer.prox(w, factor * (1 + torch.rand(4, 6, dtype=torch.float64)))
        assert bool(p.isfinite().all())
        assert bool((p.abs() <= w.abs() * (1 + 1e-14)).all())


@each
def test_other_shapes_and_layouts_or_a_refusal(regularizer: Any) -> None:
    w = normal(18, 4, 12)
    shapes = [
        w[0, 0],
        w[:0, :6],
        w[0, :0],
        w[0, :6],
        w.reshape(2, 4, 6),
        w[:, ::2],
        w.reshape(6, 8).t()[:4],
        w[:1, :6].expand(4, 6),
    ]
    for x in shapes:
        try:
            p, value = regularizer.prox(x, 0.3), regularizer.value(x)
            distance = regularizer.distance(x, torch.zeros_like(x)) if hasattr(regularizer, "distance") else value
        except ValueError:
            # Groups of matrices, factors of another number of groups.
            assert x.shape != (4, 6)
            continue
        assert p.shape == x.shape
        assert torch.equal(p, regularizer.prox(x.clone(memory_format=torch.contiguous_format), 0.3))
        assert value.shape == ()
        assert bool((distance >= 0).all())


@each
def test_strength_zero_and_step_zero_change_nothing(regularizer: Any) -> None:
    w = inputs()[2].clone()
    w[0, 0] = -0.0
    for same, step in (
        (regularizer, 0.0),
        (regularizer, torch.zeros(4, 6)),
        (dataclasses.replace(regularizer, strength=0.0), 3.0),
    ):
        p = same.prox(w, step)
        assert torch.equal(p, w)
        assert not bool((p.signbit() & (p == 0)).any())
    assert float(dataclasses.replace(regularizer, strength=0.0).value(1e308 * w.sign())) == 0


@each
def test_values_have_gradients_that_are_zero_at_zero_groups(regularizer: Any) -> None:
    w = inputs()[0].clone()
    if not isinstance(regularizer, GroupLogSum):
        # LogSum's profile has a NaN gradient at 0.
        w[1] = 0
    w.requires_grad_()
    regularizer.value(w).backward()
    assert w.grad is not None
    assert bool(w.grad.isfinite().all())
    if hasattr(regularizer, "distance"):
        with torch.no_grad():
            away = w.detach().clone()
            away[1] = 0.5 * normal(19, 6)
        leaf = away.clone().requires_grad_()
        regularizer.value(leaf).backward()
        assert leaf.grad is not None
        # Where R is smooth, its gradient is the subdifferential.
        assert float(regularizer.distance(away, -leaf.grad).abs().max()) <= 1e-12


@given(seed=st.integers(0, 10**6), step=st.floats(1e-3, 10), name=st.sampled_from(sorted(CONVEX)))
@settings(max_examples=150, deadline=None)
def test_convex_proxes_are_firmly_nonexpansive(seed: int, step: float, name: str) -> None:
    regularizer: Any = CONVEX[name]
    a, b = normal(seed, 4, 6), normal(seed + 1, 4, 6) * 2
    p, q = regularizer.prox(a, step), regularizer.prox(b, step)
    assert float(((p - q) * (a - b)).sum()) >= float((p - q).square().sum()) - 1e-12


@given(seed=st.integers(0, 10**6), step=st.floats(1e-3, 10), name=st.sampled_from(sorted(ALL)))
@settings(max_examples=100, deadline=None)
def test_proxes_commute_with_signs(seed: int, step: float, name: str) -> None:
    regularizer: Any = ALL[name]
    w, signs = normal(seed, 4, 6), normal(seed + 1, 4, 6).sign()
    assert torch.equal(regularizer.prox(signs * w, step), signs * regularizer.prox(w, step) + 0.0)


def test_groups_of_one_entry_are_the_scalar_penalties() -> None:
    w = normal(20, 5, 4)
    for step in (0.3, 2.0):
        torch.testing.assert_close(
            GroupMCP(0.7, 2.5, Elements()).prox(w, step), MCP(0.7, 2.5).prox(w, step), rtol=1e-14, atol=1e-15
        )
        soft = w.sign() * (w.abs() - 0.7 * step).clamp(min=0)
        for lasso in (GroupLasso, GroupLInf, SparseGroupLasso):
            torch.testing.assert_close(lasso(0.7, groups=Elements()).prox(w, step), soft, rtol=1e-14, atol=1e-15)


def test_nested_levels_of_one_kind_add_their_thresholds() -> None:
    w = normal(21, 4, 6)
    twice = TreeGroupLasso(0.2, (Rows(), Rows()), (1.0, 2.0))
    torch.testing.assert_close(twice.prox(w, 0.9), GroupLasso(0.6).prox(w, 0.9), rtol=1e-14, atol=1e-15)
    sparse = TreeGroupLasso(0.5, (Elements(), Rows()), (0.4, 0.6))
    torch.testing.assert_close(sparse.prox(w, 0.9), SparseGroupLasso(0.5, 0.4).prox(w, 0.9), rtol=1e-14, atol=1e-15)


def test_levels_that_cross_or_run_from_coarse_to_fine_are_refused() -> None:
    for levels in ((Columns(), Rows()), (Whole(), Rows()), (Blocks(2, 2), Rows())):
        for act in (lambda r: r.prox(torch.ones(4, 6), 1.0), lambda r: r.value(torch.ones(4, 6))):
            with pytest.raises(ValueError, match="lies across groups"):
                act(TreeGroupLasso(1.0, levels))


@pytest.mark.parametrize("strength", [-1.0, float("nan"), float("inf")])
@each
def test_bad_strengths_are_refused(regularizer: Any, strength: float) -> None:
    with pytest.raises(ValueError, match=f"strength {strength}"):
        dataclasses.replace(regularizer, strength=strength)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: WeightedGroupLasso(1.0, -1.0), "factors hold an entry < 0"),
        (lambda: WeightedGroupLasso(1.0, torch.tensor([1.0, torch.nan])), "factors hold an entry < 0"),
        (lambda: WeightedGroupLasso(1.0, torch.ones(3)).value(torch.ones(4, 6)), "3 factors for 4 groups"),
        (lambda: SparseGroupLasso(1.0, 1.5), "l1_ratio 1.5"),
        (lambda: SparseGroupLasso(1.0, float("nan")), "l1_ratio nan"),
        (lambda: TreeGroupLasso(1.0, ()), "no levels"),
        (lambda: TreeGroupLasso(1.0, (Rows(),), (1.0, 2.0)), "2 factors for 1 levels"),
        (lambda: TreeGroupLasso(1.0, (Rows(),), (-1.0,)), "factors -1.0"),
        (lambda: GroupMCP(1.0, 0.0), "gamma 0.0"),
        (lambda: GroupSCAD(1.0, 2.0), "a 2.0"),
        (lambda: GroupLogSum(1.0, 0.0), "eps 0.0"),
    ],
)
def test_bad_parameters_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@each
def test_the_device_gives_what_the_cpu_gives(regularizer: Any) -> None:
    for w in inputs():
        for step in (0.4, torch.full((4, 6), 0.4)):
            p = regularizer.prox(w.cuda(), step)
            assert p.device.type == "cuda"
            torch.testing.assert_close(p.cpu(), regularizer.prox(w, step), rtol=1e-12, atol=1e-12)
        assert float(regularizer.value(w.cuda())) == pytest.approx(float(regularizer.value(w)), rel=1e-12)
