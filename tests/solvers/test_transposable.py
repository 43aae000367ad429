"""Transposable masks: counts of rows and columns, optimal by enumeration, linear programs and assignments."""

from __future__ import annotations

import functools
import itertools
import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from scipy.optimize import linear_sum_assignment, linprog
from torch import Tensor

from argprune.solvers.groups import Blocks
from argprune.solvers.ilp import TransposableCertificate, solve_transposable, transposable

integers = st.integers(-3, 3).map(float)
reals = st.floats(-100, 100, width=16)


@functools.cache
def all_masks(height: int, width: int, rows: int, columns: int) -> Tensor:
    """Every mask with these counts."""
    patterns = [[int(i in kept) for i in range(width)] for kept in itertools.combinations(range(width), rows)]
    masks = torch.tensor(list(itertools.product(patterns, repeat=height))).view(-1, height, width).bool()
    return masks[(masks.sum(1) == columns).all(1)]


def linear_program(costs: Any, rows: int, columns: int) -> float:
    """The value of the relaxation, by scipy."""
    height, width = costs.shape
    of_rows = sparse.kron(sparse.identity(height), np.ones((1, width)))
    of_columns = sparse.kron(np.ones((1, height)), sparse.identity(width))
    counts = np.repeat([rows, columns], [height, width])
    solved = linprog(costs.ravel(), A_eq=sparse.vstack([of_rows, of_columns]).tocsr(), b_eq=counts, bounds=(0, 1))
    return float(solved.fun)


@st.composite
def matrices(draw: st.DrawFn) -> tuple[Tensor, int, int]:
    """A matrix of up to 4 x 6, and counts of its rows and columns that suit each other."""
    height, width = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    unit = width // math.gcd(height, width)
    rows = unit * draw(st.integers(0, math.gcd(height, width)))
    values = draw(st.sampled_from([integers, reals]))
    dtype = draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]))
    entries = draw(st.lists(values, min_size=height * width, max_size=height * width))
    return torch.tensor(entries, dtype=dtype).view(height, width), rows, rows * height // width


@given(matrix=matrices(), strided=st.booleans())
@settings(max_examples=200, deadline=None)
def test_whole_matrices_against_every_mask(matrix: tuple[Tensor, int, int], strided: bool) -> None:
    costs, rows, columns = matrix
    if strided:
        costs = costs.t().contiguous().t()
    solution = solve_transposable(costs, rows, columns)
    masks = all_masks(*costs.shape, rows, columns)
    values = (costs.double() * masks).sum((1, 2))
    assert (solution.masks[0].sum(1) == rows).all()
    assert (solution.masks[0].sum(0) == columns).all()
    assert solution.objective == pytest.approx(float(values.min()), rel=1e-14, abs=1e-12)
    certificate = solution.certificate
    assert certificate is not None
    assert 0 <= solution.gap <= 1e-9
    for mask, value in zip(masks[:50], values, strict=False):
        # A bound for every mask, and the distance from the optimum: the program is tight.
        assert certificate.check(costs, mask) == pytest.approx(float(value) - solution.objective, abs=1e-9)


@pytest.mark.parametrize(("n", "m"), [(1, 2), (2, 3), (1, 4), (2, 4), (3, 4), (2, 5), (3, 6), (4, 8), (0, 4), (4, 4)])
@pytest.mark.parametrize("ties", [False, True])
def test_tiles_against_linear_programs(n: int, m: int, ties: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    # Several batches, the last one smaller.
    monkeypatch.setattr(transposable, "_BATCH", 4 * m * m)
    generator = torch.Generator().manual_seed(m)
    costs = [torch.randn(2 * m, 3 * m, generator=generator), torch.randn(m, m, generator=generator)]
    if ties:
        costs = [cost.mul(2).round() for cost in costs]
    solution = solve_transposable(costs, n, n, tile=m)
    for cost, mask in zip(costs, solution.masks, strict=True):
        for tile, kept in zip(Blocks(m, m).split(cost), Blocks(m, m).split(mask), strict=True):
            assert (kept.view(m, m).sum(0) == n).all()
            assert (kept.view(m, m).sum(1) == n).all()
            best = linear_program(tile.view(m, m).double().numpy(), n, n)
            assert float(tile[kept].double().sum()) == pytest.approx(best, abs=1e-6)
    assert solution.status == "optimal"
    assert solution.gap <= 1e-10
    assert solution.bound == solution.objective - solution.gap


@pytest.mark.parametrize(
    ("shape", "rows", "columns"), [((24, 24), 12, 12), ((12, 30), 5, 2), ((30, 12), 2, 5), ((40, 40), 1, 1)]
)
@pytest.mark.parametrize("scale", [0.0, 1e-300, 1.0, 1e300])
def test_larger_matrices_of_any_scale(shape: tuple[int, int], rows: int, columns: int, scale: float) -> None:
    costs = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    solution = solve_transposable(scale * costs, rows, columns)
    assert (solution.masks[0].sum(1) == rows).all()
    assert (solution.masks[0].sum(0) == columns).all()
    # Of 40 bits, and hundreds of entries.
    assert solution.gap <= 1e-10 * scale
    if scale:
        best = linear_program(costs.numpy(), rows, columns)
        assert solution.objective / scale == pytest.approx(best, rel=1e-9)
    if scale and rows == columns == 1:
        assert torch.equal(solution.masks[0].int().argmax(1), torch.tensor(linear_sum_assignment(costs)[1]))


def test_enumeration_and_paths_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    costs = torch.randint(-2, 3, (64, 64), generator=torch.Generator().manual_seed(2)).double()
    patterns = solve_transposable(costs, 2, 2, tile=4)
    monkeypatch.setattr(transposable, "_ENUMERABLE", 0)
    paths = solve_transposable(costs, 2, 2, tile=4)
    assert patterns.objective == paths.objective
    assert patterns.gap == paths.gap == 0
    # Optimal duals of one prove the other's masks.
    assert patterns.certificate is not None
    assert patterns.certificate.check(costs, paths.masks) == 0


def test_equal_costs_are_spread_over_the_columns_without_a_path(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    distances = transposable._distances

    def counted(*given: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        calls.append(given)
        return distances(*given)

    monkeypatch.setattr(transposable, "_distances", counted)
    solution = solve_transposable(torch.ones(96, 96), 48, 48)
    assert (solution.objective, solution.gap) == (48 * 96, 0)
    # The dual values take one.
    assert len(calls) == 1


def test_both_directions_are_n_of_m() -> None:
    costs = torch.randn(32, 64, generator=torch.Generator().manual_seed(3))
    [mask] = solve_transposable(costs, 2, 2, tile=4).masks
    assert (mask.view(-1, 4).sum(1) == 2).all()
    assert (mask.t().reshape(-1, 4).sum(1) == 2).all()


@pytest.mark.parametrize("tile", [None, 4, 6])
def test_certificate_survives_json(tile: int | None) -> None:
    costs = [torch.randn(12, 12, generator=torch.Generator().manual_seed(4)).half()] * 2
    solution = solve_transposable(costs, 2, 2, tile)
    assert solution.certificate is not None
    data = json.loads(json.dumps(solution.certificate.to_dict(), allow_nan=False))
    again = TransposableCertificate.from_dict(data)
    assert again.check(costs, solution.masks) == solution.certificate.gap == solution.gap
    turned = [mask.roll(1, 0) for mask in solution.masks]
    if tile is None:
        above = sum(float(cost[mask].double().sum()) for cost, mask in zip(costs, turned, strict=True))
        assert again.check(costs, turned) == pytest.approx(above - solution.objective, rel=1e-9)


ONE = torch.ones(4, 6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: solve_transposable(torch.ones(4), 1, 1), r"shape \(4,\); give matrices"),
        (lambda: solve_transposable(torch.ones(0, 4), 1, 1), "not empty"),
        (lambda: solve_transposable(ONE, 2, 2), "keep_rows 2 and keep_columns 2 of 4 x 6"),
        (lambda: solve_transposable(ONE, 9, 6), "at most every entry"),
        (lambda: solve_transposable(ONE, -3, -2), "keep_rows -3"),
        (lambda: solve_transposable(ONE, True, 1), "keep_rows True"),
        (lambda: solve_transposable(ONE, 1, 1, tile=3), "tiles of 3 do not divide a 4 x 6"),
        (lambda: solve_transposable(ONE, 1, 1, tile=0), "tiles of 0"),
        (lambda: solve_transposable(ONE * math.nan, 3, 2), "tensor 0 contain NaN"),
        (lambda: solve_transposable(ONE * math.inf, 3, 2), "tensor 0 contain an infinity"),
    ],
)
def test_refusals(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_certificate_refuses_masks_of_other_counts() -> None:
    costs = torch.randn(8, 8, generator=torch.Generator().manual_seed(5))
    certificate = solve_transposable(costs, 2, 2, tile=4).certificate
    assert certificate is not None
    with pytest.raises(ValueError, match="mask 0 does not keep 2 in every row"):
        certificate.check(costs, torch.ones(8, 8, dtype=torch.bool))
    with pytest.raises(ValueError, match="of 1 matrices; 2 were given"):
        certificate.check([costs, costs], [costs > 0, costs > 0])
    with pytest.raises(ValueError, match="there are 2 tiles of 4 x 4"):
        certificate.check(costs[:4], costs[:4] > 0)
    with pytest.raises(ValueError, match=r"mask of shape \(4, 8\)"):
        certificate.check(costs, costs[:4] > 0)
    with pytest.raises(ValueError, match="entries tile; give columns"):
        TransposableCertificate.from_dict({"tile": 4})
