"""Constraint sets: projections against enumeration of supports, against convex solvers, and by hand."""

from __future__ import annotations

import functools
import itertools
import math
import pickle
from typing import Any

import cvxpy
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import optimize
from torch import Tensor

from argprune.solvers.groups import Blocks, Columns, Elements, Whole
from argprune.solvers.prox import structured_sets
from argprune.solvers.prox.balls import Box, L1Ball, L2Ball, Simplex
from argprune.solvers.prox.base import Regularizer
from argprune.solvers.prox.dykstra import Intersection
from argprune.solvers.prox.separable import L1
from argprune.solvers.prox.sets import FixedSupport, L0Ball, power_of_two
from argprune.solvers.prox.spectral import RankBall
from argprune.solvers.prox.structured_sets import NM, KGroups, KPerGroup, RowColumn, TransposableNM

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

# Each set with a shape small enough to try all supports, and what it allows, written out entry by entry.
Support = list[list[bool]]


def rows_of(support: Support) -> list[int]:
    return [sum(row) for row in support]


def columns_of(support: Support) -> list[int]:
    return [sum(column) for column in zip(*support, strict=True)]


def block_of(support: Support, size: tuple[int, int], row: int, column: int) -> Support:
    return [line[column : column + size[1]] for line in support[row : row + size[0]]]


SUPPORTS: dict[Any, tuple[tuple[int, int], Any]] = {
    L0Ball(3): ((2, 4), lambda s: sum(rows_of(s)) <= 3),
    KPerGroup(1): ((3, 3), lambda s: max(rows_of(s)) <= 1),
    KPerGroup(2, Columns()): ((3, 3), lambda s: max(columns_of(s)) <= 2),
    KPerGroup(1, Blocks(2, 2)): (
        (2, 4),
        lambda s: all(sum(rows_of(block_of(s, (2, 2), 0, column))) <= 1 for column in (0, 2)),
    ),
    KPerGroup(4, Whole()): ((2, 4), lambda s: sum(rows_of(s)) <= 4),
    KPerGroup(0, Elements()): ((2, 3), lambda s: sum(rows_of(s)) == 0),
    KGroups(1): ((3, 3), lambda s: sum(n > 0 for n in rows_of(s)) <= 1),
    KGroups(2, Columns()): ((2, 4), lambda s: sum(n > 0 for n in columns_of(s)) <= 2),
    KGroups(1, Blocks(1, 2)): (
        (2, 4),
        lambda s: sum(any(row[i : i + 2]) for row in s for i in (0, 2)) <= 1,
    ),
    NM(1, 2): ((2, 4), lambda s: all(sum(row[i : i + 2]) <= 1 for row in s for i in (0, 2))),
    NM(2, 3, axis=0): ((3, 3), lambda s: max(columns_of(s)) <= 2),
    NM(0, 2, axis=0): ((4, 2), lambda s: sum(rows_of(s)) == 0),
    RowColumn(1, 1): ((3, 4), lambda s: max(rows_of(s)) <= 1 and max(columns_of(s)) <= 1),
    RowColumn(2, 1): ((3, 4), lambda s: max(rows_of(s)) <= 2 and max(columns_of(s)) <= 1),
    RowColumn(2, 2): ((3, 4), lambda s: max(rows_of(s)) <= 2 and max(columns_of(s)) <= 2),
    RowColumn(2, 5): ((3, 3), lambda s: max(rows_of(s)) <= 2),
    RowColumn(5, 1): ((3, 3), lambda s: max(columns_of(s)) <= 1),
    RowColumn(0, 2): ((3, 3), lambda s: sum(rows_of(s)) == 0),
    RowColumn(2, 0): ((3, 3), lambda s: sum(rows_of(s)) == 0),
    TransposableNM(1, 2): (
        (2, 4),
        lambda s: all(
            max(rows_of(block_of(s, (2, 2), 0, c)) + columns_of(block_of(s, (2, 2), 0, c))) <= 1 for c in (0, 2)
        ),
    ),
    TransposableNM(2, 3): ((3, 3), lambda s: max(rows_of(s)) <= 2 and max(columns_of(s)) <= 2),
    TransposableNM(2, 2): ((2, 2), lambda s: True),
}
supports = pytest.mark.parametrize("constraint", SUPPORTS, ids=repr)
BALLS: list[Any] = [
    L1Ball(2.0),
    L1Ball(0.1),
    L2Ball(1.5),
    Simplex(),
    Simplex(3.0),
    Box(-0.5, 0.5),
    Box(0.0),
    Box(high=-0.3),
]
INTERSECTIONS: list[Any] = [
    Intersection(L1Ball(2.0), Box(-0.5, 0.5)),
    Intersection(L2Ball(1.5), Box(low=0.0)),
    Intersection(L1Ball(2.0), L2Ball(0.9)),
    Intersection(Simplex(), Box(high=0.2)),
]
LARGE = [
    L0Ball(5),
    KPerGroup(2),
    KGroups(2, Blocks(2, 2)),
    NM(1, 3),
    NM(2, 4, axis=0),
    RowColumn(3, 2),
    TransposableNM(1, 2),
    *BALLS,
    *INTERSECTIONS[:2],
]
# Few values, so that ties are common; their squares and sums are exact.
entries = st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, -2.0, 3.0, 1.25])


def matrix(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@functools.cache
def allowed_masks(constraint: Any) -> Tensor:
    """All allowed supports of the constraint's small shape, (masks, rows, columns)."""
    (height, width), allows = SUPPORTS[constraint]
    masks = []
    for bits in itertools.product((False, True), repeat=height * width):
        support = [list(bits[i * width : (i + 1) * width]) for i in range(height)]
        if allows(support):
            masks.append(support)
    return torch.tensor(masks)


@supports
def test_a_support_is_allowed_exactly_where_the_definition_says(constraint: Any) -> None:
    (height, width), _ = SUPPORTS[constraint]
    allowed = {tuple(mask.flatten().tolist()) for mask in allowed_masks(constraint)}
    generator = torch.Generator().manual_seed(0)
    every = torch.rand(300, height, width, generator=generator) < torch.rand(300, 1, 1, generator=generator)
    for mask in [*every, *allowed_masks(constraint)[:50]]:
        inside = tuple(mask.flatten().tolist()) in allowed
        assert float(constraint.value(torch.where(mask, -0.5, 0.0))) == (0 if inside else math.inf)


@supports
@given(data=st.data())
@settings(max_examples=25)
def test_no_allowed_support_keeps_more(constraint: Any, data: st.DataObject) -> None:
    (height, width), _ = SUPPORTS[constraint]
    values = data.draw(st.lists(entries, min_size=height * width, max_size=height * width))
    w = torch.tensor(values, dtype=torch.float64).reshape(height, width)
    before, step = w.clone(), data.draw(st.sampled_from([0.0, 0.5, 1e6]))
    p = constraint.prox(w, step)
    assert torch.equal(w, before)
    assert torch.equal(p, torch.where(p != 0, w, 0))
    assert float(constraint.value(p)) == 0
    best = (allowed_masks(constraint) * w.square()).sum((1, 2)).max()
    assert float(p.square().sum()) == float(best)
    assert torch.equal(constraint.prox(p, step), p)
    assert torch.equal(torch.where(constraint.mask(w), w, 0), p)


@supports
def test_in_a_diagonal_metric_no_allowed_support_costs_less(constraint: Any) -> None:
    shape, _ = SUPPORTS[constraint]
    for seed in range(4):
        w, step = matrix(seed, *shape), matrix(seed + 20, *shape).exp()
        p = constraint.prox(w, step)
        kept = float((p.square() / step).sum())
        best = float((allowed_masks(constraint) * w.square() / step).sum((1, 2)).max())
        assert kept == pytest.approx(best, rel=1e-13)
        assert torch.equal(p, torch.where(p != 0, w, 0))
        assert torch.equal(constraint.prox(w.float(), step.float()) != 0, p != 0)
        assert torch.equal(constraint.prox(w, torch.full_like(w, 0.3)), constraint.prox(w, 0.3))


def test_entries_of_step_zero_are_kept_before_all_others_the_largest_first() -> None:
    w = torch.tensor([1e30, 1e-30, -2e-30, 5.0])
    step = torch.tensor([1e30, 0.0, 0.0, 1e-38])
    assert (L0Ball(1).prox(w, step) != 0).tolist() == [False, False, True, False]
    assert (L0Ball(2).prox(w, step) != 0).tolist() == [False, True, True, False]
    assert (L0Ball(3).prox(w, step) != 0).tolist() == [False, True, True, True]


def test_ties_go_to_the_smaller_index() -> None:
    w = torch.tensor([[1.0, -1.0, 1.0, 1.0], [1.0, 1.0, -1.0, 1.0]])
    assert KPerGroup(1).prox(w, 1.0).tolist() == [[1, 0, 0, 0], [1, 0, 0, 0]]
    assert KPerGroup(1, Columns()).prox(w, 1.0).tolist() == [[1, -1, 1, 1], [0, 0, 0, 0]]
    assert KPerGroup(1, Blocks(2, 2)).prox(w, 1.0).tolist() == [[1, 0, 1, 0], [0, 0, 0, 0]]
    assert KGroups(1).prox(w, 1.0).tolist() == [[1, -1, 1, 1], [0, 0, 0, 0]]
    assert KGroups(1, Columns()).prox(w.flip(1), 1.0).tolist() == [[1, 0, 0, 0], [1, 0, 0, 0]]
    assert NM(2, 4).prox(w, 1.0).tolist() == [[1, -1, 0, 0], [1, 1, 0, 0]]
    assert NM(1, 2, axis=0).prox(w, 1.0).tolist() == [[1, -1, 1, 1], [0, 0, 0, 0]]


@pytest.mark.parametrize("scale", [1e30, 1e38, 1e-38, 1e-44])
def test_sizes_of_groups_neither_overflow_nor_vanish(scale: float) -> None:
    w = torch.tensor([[1.0, 1.0, 1.0], [1.5, 0.0, 0.0], [0.0, 0.0, 3.0]]) * scale
    assert (KGroups(2).prox(w, 1.0) != 0).any(1).tolist() == [True, False, True]
    assert (TransposableNM(1, 3).prox(w, 1.0) != 0).tolist() == [
        [False, True, False],
        [True, False, False],
        [False, False, True],
    ]
    largest = torch.tensor([[1.0, 1.0], [0.9, 1.2]], dtype=torch.float64) * 1e308
    assert (KGroups(1).prox(largest, 1.0) != 0).tolist() == [[False, False], [True, True]]
    assert (KGroups(1).prox(largest, torch.tensor([[1.0, 1.0], [9.0, 9.0]])) != 0).any(1).tolist() == [True, False]


@given(seed=st.integers(0, 1000), n=st.integers(1, 3), data=st.data())
@settings(max_examples=30)
def test_transposable_masks_of_blocks_of_four_are_optimal(seed: int, n: int, data: st.DataObject) -> None:
    """Every mask of 4 x 4 with sums of at most n is tried; the patterns of the module are none of them."""
    w = matrix(seed, 8, 4).abs() ** data.draw(st.sampled_from([0.1, 1.0, 5.0]))
    p = TransposableNM(n, 4).prox(w, 1.0)
    assert float(TransposableNM(n, 4).value(p)) == 0
    for block, kept in zip(w.split(4), p.split(4), strict=True):
        best = float((four_by_four(n) @ block.square().flatten()).max())
        assert float(kept.square().sum()) == pytest.approx(best, rel=1e-13)


@functools.cache
def four_by_four(n: int) -> Tensor:
    rows = [row for row in itertools.product((0, 1), repeat=4) if sum(row) <= n]
    masks = [m for m in itertools.product(rows, repeat=4) if max(map(sum, zip(*m, strict=True))) <= n]
    return torch.tensor(masks, dtype=torch.float64).flatten(1)


def test_fewer_than_n_in_a_row_may_be_best() -> None:
    w = torch.tensor([[0.0, 5.0, 5.0], [0.0, 5.0, 5.0], [1.0, 1.0, 1.0]])
    assert (TransposableNM(2, 3).prox(w, 1.0) != 0).tolist() == [
        [False, True, True],
        [False, True, True],
        [True, False, False],
    ]


@pytest.mark.parametrize(("n", "m"), [(1, 5), (2, 5), (3, 6), (4, 8)])
def test_transposable_masks_of_larger_blocks_match_branch_and_bound(n: int, m: int) -> None:
    w = matrix(m, m, 2 * m)
    p = TransposableNM(n, m).prox(w, 1.0)
    assert float(TransposableNM(n, m).value(p)) == 0
    assert torch.equal(p, torch.where(p != 0, w, 0))
    for block, kept in zip(w.split(m, dim=1), p.split(m, dim=1), strict=True):
        assert float(kept.square().sum()) == pytest.approx(integer_program(block.square(), n, n), rel=1e-9)


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (2, 3), (3, 1), (4, 4)])
def test_row_and_column_masks_match_branch_and_bound(rows: int, columns: int) -> None:
    for seed, shape in enumerate(((6, 7), (9, 5), (5, 9))):
        w = matrix(seed, *shape)
        p = RowColumn(rows, columns).prox(w, 1.0)
        assert float(RowColumn(rows, columns).value(p)) == 0
        assert float(p.square().sum()) == pytest.approx(integer_program(w.square(), rows, columns), rel=1e-9)


def integer_program(energy: Tensor, rows: int, columns: int) -> float:
    height, width = energy.shape
    sums = np.zeros((height + width, height, width))
    for i in range(height):
        sums[i, i, :] = 1
    for j in range(width):
        sums[height + j, :, j] = 1
    limits = optimize.LinearConstraint(sums.reshape(height + width, -1), ub=[rows] * height + [columns] * width)
    bounds, binary = optimize.Bounds(0, 1), np.ones(height * width)
    found = optimize.milp(
        -energy.flatten().numpy(), constraints=limits, bounds=bounds, integrality=binary, options={"mip_rel_gap": 0}
    )
    return float(-found.fun)


@pytest.mark.parametrize("constraint", [RowColumn(1, 1), RowColumn(2, 1), RowColumn(2, 2)], ids=repr)
def test_energies_of_all_magnitudes_are_told_apart(constraint: Any) -> None:
    """A linear program solver's tolerance, 1e-7 of the largest coefficient, hides most of these."""
    for seed in range(6):
        w = (3 * matrix(seed, 3, 4)).exp() * 10.0 ** (3 * matrix(seed + 9, 3, 1))
        p = constraint.prox(w, 1.0)
        best = float((allowed_masks(constraint) * w.square()).sum((1, 2)).max())
        assert float(p.square().sum()) == pytest.approx(best, rel=1e-14)


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (2, 1), (2, 2), (3, 2)])
def test_any_feasible_start_is_improved_to_the_optimum(
    monkeypatch: pytest.MonkeyPatch, rows: int, columns: int
) -> None:
    """What HiGHS leaves undone is done by exchanges along cycles, here all of the work."""
    monkeypatch.setattr(structured_sets, "_vertex", lambda energy, *limits: np.zeros(energy.shape, dtype=bool))
    for seed in range(8):
        w = matrix(seed, 5, 6)
        p = RowColumn(rows, columns).prox(w, 1.0)
        assert float(RowColumn(rows, columns).value(p)) == 0
        assert float(p.square().sum()) == pytest.approx(integer_program(w.square(), rows, columns), rel=1e-9)


@pytest.mark.parametrize("ball", [*BALLS, *INTERSECTIONS], ids=repr)
def test_a_convex_solver_finds_the_same_projection(ball: Any) -> None:
    for seed, scale in ((0, 1.0), (1, 5.0), (2, 0.01)):
        w = scale * matrix(seed, 3, 4)
        x = cvxpy.Variable(w.shape)
        problem = cvxpy.Problem(cvxpy.Minimize(cvxpy.sum_squares(x - w.numpy())), ball.constraints(x))
        problem.solve(solver=cvxpy.CLARABEL)
        p = ball.prox(w, 1.0)
        assert float(ball.value(p)) == 0
        # Clarabel's gaps are 1e-8 of the objective; a gap g bounds the distance by sqrt(g).
        assert float((p - w).square().sum()) == pytest.approx(problem.value, rel=1e-6, abs=1e-7)
        np.testing.assert_allclose(p.numpy(), np.asarray(x.value), rtol=0, atol=1e-3 * (1 + scale))
        outside = p + 0.01 * (w - p) / max(1e-12, float((w - p).norm()))
        if not torch.equal(p, w):
            assert float(ball.value(outside)) == math.inf


@pytest.mark.parametrize("ball", [*BALLS, *INTERSECTIONS[:2]], ids=repr)
@given(seed=st.integers(0, 200), scale=st.sampled_from([1e-3, 1.0, 3.0]))
@settings(max_examples=6)
def test_projections_onto_convex_sets_are_firmly_nonexpansive(ball: Any, seed: int, scale: float) -> None:
    v, w = scale * matrix(seed, 3, 4), scale * matrix(seed + 1, 3, 4)
    p, q = ball.prox(v, 1.0), ball.prox(w, 1.0)
    assert float(((p - q) * (v - w)).sum()) >= float((p - q).square().sum()) - 1e-9 * scale
    torch.testing.assert_close(ball.prox(p, 1.0), p, rtol=1e-11, atol=1e-11)


def test_projections_from_far_away_lose_nothing() -> None:
    far = torch.tensor([1e30, -1e30, 1e20, 0.0])
    assert L1Ball(1.0).prox(far, 1.0).tolist() == [0.5, -0.5, 0.0, 0.0]
    assert Simplex(1.0).prox(far, 1.0).tolist() == [1.0, 0.0, 0.0, 0.0]
    assert Simplex(2.0).prox(torch.tensor([1e16, 1e16 - 2, -1e300], dtype=torch.float64), 1.0).tolist() == [
        2.0,
        0.0,
        0.0,
    ]
    torch.testing.assert_close(L2Ball(2.0).prox(far, 1.0), torch.tensor([2**0.5, -(2**0.5), 2**0.5 * 1e-10, 0.0]))
    largest = torch.full((3, 4), torch.finfo(torch.float64).max, dtype=torch.float64)
    torch.testing.assert_close(L2Ball(1.0).prox(largest, 1.0), torch.full((3, 4), 12**-0.5).double())
    torch.testing.assert_close(L1Ball(1.0).prox(largest, 1.0), torch.full((3, 4), 1 / 12).double())


@pytest.mark.parametrize("ball", [L1Ball(1.0), L1Ball(1e-30), Simplex(1.0), Simplex(1e6), L2Ball(1e-3)], ids=repr)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_many_entries_stay_feasible(ball: Any, dtype: torch.dtype) -> None:
    w = matrix(0, 100_000)
    for scale in (1e-3, 1.0, 1e4):
        assert float(ball.value(ball.prox((w * scale).to(dtype), 1.0))) == 0


def test_boxes_clamp_in_the_dtype_of_the_weights() -> None:
    w = torch.tensor([-3.0, -0.0, 0.05, 0.3], dtype=torch.float64)
    for dtype in DTYPES:
        p = Box(-0.1, 0.1).prox(w.to(dtype), torch.rand(4))
        assert p.tolist() == torch.tensor([-0.1, 0.0, 0.05, 0.1], dtype=dtype).tolist()
        assert float(Box(-0.1, 0.1).value(p)) == 0
        assert float(Box(-0.1, 0.1).value(w.to(dtype))) == math.inf
    target = w.clone()
    assert Box(0.0).prox_(target, 1.0, slice(3, 7)) is target
    assert target.tolist() == pytest.approx([0.0, 0.0, 0.05, 0.3])
    assert Box().constraints(cvxpy.Variable(3)) == []


def test_a_fixed_support_is_projected_onto_by_parts_and_known_to_a_convex_solver() -> None:
    mask = torch.tensor([[True, False, True], [False, True, True]])
    support, w = FixedSupport(mask), matrix(0, 2, 3)
    expected = torch.where(mask, w, 0)
    parts = w.clone()
    for part in (slice(0, 4), slice(4, 8)):
        support.prox_(parts.view(-1)[part], torch.rand(4), part)
    assert torch.equal(parts, expected)
    x = cvxpy.Variable((2, 3))
    cvxpy.Problem(cvxpy.Minimize(cvxpy.sum_squares(x - w.numpy())), support.constraints(x)).solve(cvxpy.CLARABEL)
    np.testing.assert_allclose(np.asarray(x.value), expected.numpy(), atol=1e-6)


@pytest.mark.parametrize("constraint", LARGE, ids=repr)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_manners_hold_in_every_dtype_and_layout(constraint: Any, dtype: torch.dtype) -> None:
    assert isinstance(constraint, Regularizer)
    assert pickle.loads(pickle.dumps(constraint)) == constraint
    dense = matrix(1, 12, 12).to(dtype)
    layouts = [dense[:4, :6], dense.t()[:4, :6], dense[::3, ::2], dense[:1, :6].expand(4, 6), -0.0 * dense[:4, :6]]
    for w in layouts:
        w = w.detach().requires_grad_()
        before = w.detach().clone()
        # Dykstra's algorithm takes its time, and steps mean nothing to it.
        steps = (1.0,) if isinstance(constraint, Intersection) else (0.0, 1.0, 1e6, torch.full_like(w, 0.5))
        for step in steps:
            p = constraint.prox(w, step)
            assert torch.equal(w.detach(), before)
            assert (p.shape, p.dtype, p.requires_grad) == (w.shape, w.dtype, False)
            assert bool(p.isfinite().all())
            assert p.data_ptr() != w.data_ptr()
            assert not bool((p.signbit() & (p == 0)).any())
            assert float(constraint.value(p)) == 0
            assert torch.equal(p, constraint.prox(w.detach().clone(memory_format=torch.contiguous_format), step))
        value = constraint.value(w)
        assert value.shape == ()
        assert value.dtype == torch.promote_types(dtype, torch.float32)


@pytest.mark.parametrize("constraint", [c for c in LARGE if not isinstance(c, Intersection)], ids=repr)
@pytest.mark.parametrize("scale", [1e30, 1e38, 1e-38, 1e-40, 1e-45])
def test_projections_of_any_size_are_feasible(constraint: Any, scale: float) -> None:
    w = (matrix(3, 4, 6).clamp(-3, 3) * scale).float()
    p = constraint.prox(w, 1.0)
    assert bool(p.isfinite().all())
    assert float(constraint.value(p)) == 0


@pytest.mark.parametrize(
    "constraint", [L0Ball(1), KPerGroup(1), KGroups(1), L1Ball(1.0), L2Ball(1.0), Box(0.2), Box(0.0, 0.5), Simplex()]
)
def test_tensors_without_dimensions_or_entries(constraint: Any) -> None:
    p = constraint.prox(torch.tensor(0.75), 1.0)
    assert p.shape == ()
    assert float(constraint.value(p)) == 0
    if not isinstance(constraint, Simplex):
        for shape in ((0,), (3, 0), (0, 6)):
            p = constraint.prox(torch.empty(shape), torch.empty(shape))
            assert p.shape == shape
            assert float(constraint.value(p)) == 0
    for empty in ((0, 6), (4, 0)):
        for structured in (NM(1, 2), RowColumn(1, 1), TransposableNM(1, 2), TransposableNM(1, 5)):
            if structured != TransposableNM(1, 5):
                assert structured.prox(torch.empty(empty), 1.0).shape == empty


def test_the_empty_tensor_is_in_no_simplex() -> None:
    with pytest.raises(ValueError, match="cannot sum to 1"):
        Simplex().prox(torch.empty(0), 1.0)
    assert float(Simplex().value(torch.empty(0))) == math.inf


@pytest.mark.parametrize("constraint", [L1Ball(1.0), L2Ball(1.0), Simplex(), RankBall(1), INTERSECTIONS[0]], ids=repr)
def test_a_step_that_differs_is_refused_where_the_metric_matters(constraint: Any) -> None:
    w = matrix(0, 2, 3)
    with pytest.raises(ValueError, match=rf"{type(constraint).__name__}: a step that differs"):
        constraint.prox(w, torch.rand(2, 3))
    assert torch.equal(constraint.prox(w, torch.ones(2, 3)), constraint.prox(w, 1.0))


@pytest.mark.parametrize("constraint", [L0Ball(1), KPerGroup(1), KGroups(1), NM(1, 2), TransposableNM(1, 2)], ids=repr)
def test_what_is_no_step_or_no_number_is_refused(constraint: Any) -> None:
    w = matrix(0, 4, 6)
    for bad in (-1.0, math.nan, math.inf):
        for step in (bad, torch.full((4, 6), bad), torch.where(w > 0, 1.0, bad)):
            with pytest.raises(ValueError, match="a prox step is finite and >= 0"):
                constraint.prox(w, step)
    with pytest.raises(ValueError, match="Give equal shapes"):
        constraint.prox(w, torch.rand(6))
    with pytest.raises(ValueError, match="NaN"):
        constraint.prox(torch.where(w > 1, torch.nan, w), 1.0)


def test_the_nearest_point_of_two_sets_by_hand() -> None:
    """Of the l1 ball of radius 1 cut to at most 0.6: the largest entry is cut, what is left goes to the second."""
    both = Intersection(L1Ball(1.0), Box(-0.6, 0.6))
    torch.testing.assert_close(
        both.prox(torch.tensor([2.0, -1.0, 0.1], dtype=torch.float64), 1.0),
        torch.tensor([0.6, -0.4, 0.0], dtype=torch.float64),
        rtol=0,
        atol=1e-10,
    )
    # Alternating projections would end elsewhere.
    half = Intersection(Box(high=0.0), L2Ball(1.0))
    torch.testing.assert_close(
        half.prox(torch.tensor([3.0, -4.0]).double(), 1.0), torch.tensor([0.0, -1.0]).double(), rtol=0, atol=1e-10
    )
    inside = torch.tensor([0.1, -0.2])
    assert torch.equal(both.prox(inside, 1.0), inside)
    assert float(both.value(torch.tensor([0.7, 0.0]))) == math.inf
    assert float(both.value(torch.tensor([0.6, 0.5]))) == math.inf
    for far in (1e200, math.inf):
        assert float(both.value(torch.tensor([far, 0.0], dtype=torch.float64))) == math.inf
    nested = Intersection(both, Box(low=0.0))
    torch.testing.assert_close(nested.prox(torch.tensor([2.0, -1.0, 0.1]), 1.0), torch.tensor([0.6, 0.0, 0.1]))


def test_intersections_are_refused_with_a_reason() -> None:
    for first, message in (
        (L0Ball(2), "L0Ball is not convex"),
        (RankBall(1), "RankBall is not convex"),
        (L1(1.0), "L1 is not a set"),
    ):
        for pair in ((first, Box(0.0)), (Box(0.0), first)):
            with pytest.raises(ValueError, match=message):
                Intersection(*pair)
    with pytest.raises(ValueError, match=r"50 steps end .* apart, .*Do Box.* and Box.* intersect\?"):
        Intersection(Box(1.0, 2.0), Box(3.0, 4.0), num_steps=50).prox(torch.zeros(3), 1.0)
    with pytest.raises(ValueError, match="too far from sets"):
        Intersection(L1Ball(1.0), Box(-0.5, 0.5)).prox(torch.tensor([1e30, 9e29, 8e29]), 1.0)
    for tol in (0.0, -1.0, 1.0, math.nan):
        with pytest.raises(ValueError, match=f"tol {tol}"):
            Intersection(Box(), Box(), tol=tol)
    with pytest.raises(ValueError, match="num_steps 0"):
        Intersection(Box(), Box(), num_steps=0)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: L0Ball(1.5), r"L0Ball: keep 1\.5"),  # type: ignore[arg-type]
        (lambda: KPerGroup(-1), "KPerGroup: keep -1"),
        (lambda: KGroups(-2), "KGroups: keep -2"),
        (lambda: NM(3, 2), "NM: n 3 of m 2"),
        (lambda: NM(-1, 2), "NM: n -1"),
        (lambda: NM(0, 0), "NM: m 0"),
        (lambda: NM(1, 2, axis=2), "NM: axis 2"),
        (lambda: RowColumn(-1, 1), "RowColumn: per_row -1"),
        (lambda: RowColumn(1, -1), "RowColumn: per_column -1"),
        (lambda: TransposableNM(5, 4), "TransposableNM: n 5 of m 4"),
        (lambda: L1Ball(-1.0), r"L1Ball: radius -1\.0"),
        (lambda: L2Ball(math.nan), "L2Ball: radius nan"),
        (lambda: Simplex(0.0), r"Simplex: total 0\.0"),
        (lambda: Box(1.0, 0.0), r"Box: low 1\.0, high 0\.0"),
        (lambda: Box(math.nan, 0.0), "Box: low nan"),
        (lambda: Box(math.inf, math.inf), "Box: low inf"),
        (lambda: NM(1, 4).prox(torch.ones(4, 6), 1.0), "4 does not divide axis 1"),
        (lambda: NM(1, 2).prox(torch.ones(4), 1.0), "axis 1 of a tensor of shape"),
        (lambda: RowColumn(1, 1).prox(torch.ones(4), 1.0), "give a matrix"),
        (lambda: TransposableNM(1, 4).prox(torch.ones(4, 6), 1.0), "4 does not divide both sides"),
        (lambda: TransposableNM(1, 2).value(torch.ones(4)), "Give a divisor, and a matrix"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        build()
    assert "\n" not in str(error.value)


@given(st.floats(min_value=0, allow_nan=False))
def test_powers_of_two_scale_below_two_and_exactly(x: float) -> None:
    assume(math.isfinite(x))
    scale = float(power_of_two(torch.tensor(x, dtype=torch.float64)))
    assert math.frexp(scale)[0] == 0.5
    assert x == 0 or 1 <= x / scale < 2
    assert (x / scale) * scale == x
    assert float(power_of_two(torch.tensor(math.inf))) == 1
