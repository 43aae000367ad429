"""Functions of singular values: every prox against a solver that knows nothing of singular values."""

from __future__ import annotations

import itertools
import pickle
from typing import Any

import cvxpy
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch import Tensor

from argprune.solvers.prox.base import Regularizer
from argprune.solvers.prox.spectral import Nuclear, Rank, RankBall, SpectralNorm, WeightedNuclear

OPERATORS = [
    Nuclear(0.7),
    Nuclear(0.0),
    WeightedNuclear(0.5, (0.0, 1.0, 3.0)),
    WeightedNuclear(0.7, (1.0,)),
    Rank(0.7),
    Rank(0.0),
    SpectralNorm(0.7),
    SpectralNorm(0.0),
    RankBall(1),
    RankBall(0),
    RankBall(10),
]
operators = pytest.mark.parametrize("operator", OPERATORS, ids=repr)
norms = pytest.mark.parametrize("norm", [Nuclear(0.7), SpectralNorm(0.7)], ids=repr)
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def matrix(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def objective(operator: Any, x: Tensor, w: Tensor, step: float) -> float:
    return float(operator.value(x)) + float((x - w).square().sum()) / (2 * step)


def rank_one_energy(w: Tensor, points: int = 2000) -> float:
    """max (u^T W v)^2 over unit u, v, for W of two rows: a dense search over u, for which the best v is known."""
    angle = torch.linspace(0, torch.pi, points, dtype=torch.float64)
    return float((torch.stack([angle.cos(), angle.sin()], 1) @ w).square().sum(1).max())


@norms
@pytest.mark.parametrize("step", [0.2, 1.0, 5.0])
@pytest.mark.parametrize("rank", [1, 3])
def test_a_convex_solver_finds_the_same_prox(norm: Any, step: float, rank: int) -> None:
    w = matrix(1, 3, rank) @ matrix(2, rank, 4)
    x = cvxpy.Variable(w.shape)
    problem = cvxpy.Problem(cvxpy.Minimize(norm.expression(x) + cvxpy.sum_squares(x - w.numpy()) / (2 * step)))
    problem.solve(solver=cvxpy.CLARABEL)
    p = norm.prox(w, step)
    # Clarabel's gaps are 1e-8 of the objective; a gap g bounds the distance by sqrt(2 step g).
    assert objective(norm, p, w, step) == pytest.approx(problem.value, rel=1e-6, abs=1e-7)
    np.testing.assert_allclose(p.numpy(), np.asarray(x.value), rtol=0, atol=1e-3)
    x.value = w.numpy()
    assert float(norm.expression(x).value) == pytest.approx(float(norm.value(w)), rel=1e-12)


@pytest.mark.parametrize("step", [0.1, 0.5, 2.0])
@pytest.mark.parametrize("weights", [(0.0, 1.0), (0.2, 3.0), (1.0,), (0.0, 0.0, 9.0)])
def test_no_descent_from_anywhere_beats_the_weighted_nuclear_prox(weights: tuple[float, ...], step: float) -> None:
    operator = WeightedNuclear(0.8, weights)
    w = 1.5 * matrix(3, 2, 2)
    own = objective(operator, operator.prox(w, step), w, step)

    def of_entries(entries: np.ndarray) -> float:
        # Singular values of a 2 x 2 matrix from its norm and determinant, not from a decomposition.
        a, b, c, d = entries
        total, determinant = float(entries @ entries), abs(a * d - b * c)
        plus, minus = np.sqrt(total + 2 * determinant), np.sqrt(max(total - 2 * determinant, 0.0))
        first, second = (plus + minus) / 2, (plus - minus) / 2
        heavy = weights[min(1, len(weights) - 1)]
        return float(
            0.8 * (weights[0] * first + heavy * second) + np.square(entries - w.flatten().numpy()).sum() / (2 * step)
        )

    starts = [w.flatten().numpy(), np.zeros(4), *(2 * np.random.default_rng(0).standard_normal((6, 4)))]
    options = {"maxiter": 1500, "xatol": 1e-8, "fatol": 1e-12}
    best = min(minimize(of_entries, start, method="Nelder-Mead", options=options).fun for start in starts)
    assert of_entries(operator.prox(w, step).flatten().numpy()) == pytest.approx(own, rel=1e-9)
    assert own <= best + 1e-9
    # The search is no weak opponent: it comes close.
    assert best <= own + 5e-3


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("columns", [2, 3])
def test_rank_prox_beats_every_matrix_of_every_rank(seed: int, columns: int) -> None:
    w = matrix(seed, 2, columns)
    energy = float(w.square().sum())
    misses = [energy, energy - rank_one_energy(w), 0.0]
    for strength, step in itertools.product((0.05, 0.3, 1.0), (0.2, 1.0, 4.0)):
        operator = Rank(strength)
        best = min(strength * rank + miss / (2 * step) for rank, miss in enumerate(misses))
        # 2000 angles miss the best by 1e-6 of the energy at most.
        assert objective(operator, operator.prox(w, step), w, step) == pytest.approx(best, abs=1e-5 * energy / step)
    p = RankBall(1).prox(w, 1.0)
    assert float((p - w).square().sum()) == pytest.approx(misses[1], abs=1e-5 * energy)
    assert float(RankBall(1).value(p)) == 0
    assert float(RankBall(1).value(w)) == torch.inf


@norms
def test_distance_is_the_steepest_descent_of_the_function_itself(norm: Any) -> None:
    """The distance of -grad to the subdifferential is max -<grad, d> - R'(W; d) over directions d of norm at most 1."""
    grad = matrix(5, 3, 4)
    deficient = matrix(6, 3, 2) @ matrix(7, 2, 4)
    equal = torch.linalg.qr(matrix(8, 4, 3)).Q.t()
    for w in (matrix(9, 3, 4), deficient, equal, torch.zeros(3, 4).double()):
        d, t = cvxpy.Variable((3, 4)), 1e-3
        slope = (norm.expression(w.numpy() + t * d) - float(norm.value(w))) / t
        gain = -cvxpy.sum(cvxpy.multiply(grad.numpy(), d)) - slope
        problem = cvxpy.Problem(cvxpy.Maximize(gain), [cvxpy.norm(d, "fro") <= 1])
        problem.solve(solver=cvxpy.CLARABEL)
        # The difference quotient exceeds the derivative by t times the curvature, which is below 1 here.
        assert problem.value <= float(norm.distance(w, grad)) + 1e-6
        assert float(norm.distance(w, grad)) <= problem.value + t


@norms
@pytest.mark.parametrize("shape", [(3, 4), (6, 4), (1, 5), (5, 1), (1, 1), (20, 30)])
def test_distance_vanishes_at_the_prox_and_nowhere_near(norm: Any, shape: tuple[int, int]) -> None:
    for seed, step in itertools.product(range(5), (0.1, 1.0, 5.0)):
        w = matrix(seed, *shape)
        p = norm.prox(w, step)
        # Polar factors are as accurate as their smallest singular value is large.
        assert float(norm.distance(p, (p - w) / step)) <= 1e-10
        y = p + 1e-3 * matrix(seed + 50, *shape)
        # The objective is strongly convex with modulus 1 / step.
        assert float(norm.distance(y, (y - w) / step)) >= float((y - p).norm()) / step * (1 - 1e-6)


@operators
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_manners_hold_in_every_dtype_and_layout(operator: Any, dtype: torch.dtype) -> None:
    assert isinstance(operator, Regularizer)
    assert pickle.loads(pickle.dumps(operator)) == operator
    dense = matrix(1, 4, 6).to(dtype)
    for w in (dense, dense.t(), dense[:, ::2], dense[:1].expand(4, 6), torch.zeros(4, 6, dtype=dtype), -dense[:0]):
        w = w.detach().requires_grad_()
        before = w.detach().clone()
        for step in (0.0, 0.1, 1.0, 1e6, torch.tensor(0.5), torch.full_like(w, 0.5)):
            p = operator.prox(w, step)
            assert torch.equal(w.detach(), before)
            assert (p.shape, p.dtype, p.requires_grad) == (w.shape, w.dtype, False)
            assert bool(p.isfinite().all())
            assert not bool((p.signbit() & (p == 0)).any())
            if isinstance(step, float) and step == 0 and not isinstance(operator, RankBall):
                assert torch.equal(p, before)
            wide = torch.promote_types(dtype, torch.float32)
            expected = operator.prox(w.to(wide), step).to(dtype)
            assert torch.equal(p, expected)
        value = operator.value(w)
        assert value.shape == ()
        assert value.dtype == wide
        assert not bool(value.isnan())


@operators
@pytest.mark.parametrize("scale", [1e30, 1e36, 1e-30, 1e-40, 1e-44])
def test_float32_of_any_size_is_as_good_as_float64(operator: Any, scale: float) -> None:
    w = (matrix(2, 4, 6) * scale).float()
    for step in (1.0, 1e-3 * scale, 1e6):
        p = operator.prox(w, step)
        assert bool(p.isfinite().all())
        expected = operator.prox(w.double(), step)
        # Rounding to the smallest subnormal is absolute.
        tolerance = 2e-6 * float(w.abs().max()) + 2e-45
        assert float((p.double() - expected).abs().max()) <= tolerance
    assert not bool(operator.value(w).isnan())


@given(
    power=st.integers(-900, 900),
    step=st.floats(0.01, 10),
    seed=st.integers(0, 50),
    norm=st.sampled_from([Nuclear(0.7), SpectralNorm(0.7), WeightedNuclear(0.7, (0.0, 1.0))]),
)
@settings(max_examples=60)
def test_norms_scale_with_their_input(power: int, step: float, seed: int, norm: Any) -> None:
    """prox(c w, c step) = c prox(w, step), to the bit for powers of two."""
    w, factor = matrix(seed, 3, 4), 2.0**power
    assert torch.equal(norm.prox(factor * w, factor * step), factor * norm.prox(w, step))


@operators
def test_the_prox_does_not_depend_on_the_basis(operator: Any) -> None:
    w = matrix(1, 4, 6)
    left, right = torch.linalg.qr(matrix(2, 4, 4)).Q, torch.linalg.qr(matrix(3, 6, 6)).Q
    turned = operator.prox(left @ w @ right, 0.5)
    torch.testing.assert_close(turned, left @ operator.prox(w, 0.5) @ right, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(4, 6), (1, 1), (2, 2), (64, 48)])
@pytest.mark.parametrize("rank", [0, 1, 2])
def test_truncated_matrices_have_the_rank_they_were_cut_to(
    dtype: torch.dtype, shape: tuple[int, int], rank: int
) -> None:
    for seed in range(5):
        w = matrix(seed, *shape).to(dtype)
        p = RankBall(rank).prox(w, 1.0)
        assert float(RankBall(rank).value(p)) == 0
        assert float(Rank(1.0).value(p)) == min(rank, *shape)
        assert float(Rank(2.0).value(w)) == 2 * min(shape)
        # Projecting again moves no more than the rounding of the first time.
        apart = float((RankBall(rank).prox(p, 1.0) - p).double().norm())
        assert apart <= 8 * torch.finfo(dtype).eps * float(w.double().norm())


def test_nothing_is_lost_where_no_singular_value_is_cut() -> None:
    w = matrix(4, 4, 6)
    assert torch.equal(RankBall(4).prox(w, 1.0), w)
    assert torch.equal(Rank(1e-9).prox(w, 1.0), w)


def test_weights_beyond_the_list_are_the_last() -> None:
    w = matrix(5, 4, 6)
    assert torch.equal(WeightedNuclear(1.0, (0.5,)).prox(w, 0.3), Nuclear(0.5).prox(w, 0.3))
    assert float(WeightedNuclear(1.0, (0.5,)).value(w)) == pytest.approx(float(Nuclear(0.5).value(w)))
    long, short = (0.0, 1.0, 2.0, 2.0, 7.0), (0.0, 1.0, 2.0)
    assert torch.equal(WeightedNuclear(1.0, long).prox(w, 0.3), WeightedNuclear(1.0, short).prox(w, 0.3))


@pytest.mark.parametrize("shape", [(), (5,), (2, 3, 4)])
@operators
def test_what_is_no_matrix_is_refused(operator: Any, shape: tuple[int, ...]) -> None:
    name = type(operator).__name__
    for call in (lambda w: operator.prox(w, 1.0), operator.value):
        with pytest.raises(ValueError, match=rf"{name}: .*singular values are those of a matrix"):
            call(torch.ones(shape))


@operators
def test_steps_that_differ_or_are_no_steps_are_refused(operator: Any) -> None:
    w = matrix(1, 2, 3)
    with pytest.raises(ValueError, match=rf"{type(operator).__name__}: a step that differs"):
        operator.prox(w, torch.rand(2, 3))
    for step in (-1.0, float("nan"), float("inf"), torch.tensor(-1.0)):
        with pytest.raises(ValueError, match="a prox step is finite and >= 0"):
            operator.prox(w, step)


@pytest.mark.parametrize("strength", [-1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("cls", [Nuclear, Rank, SpectralNorm, lambda strength: WeightedNuclear(strength, (1.0,))])
def test_bad_strengths_are_refused(cls: Any, strength: float) -> None:
    with pytest.raises(ValueError, match=f"strength {strength}"):
        cls(strength)


def test_bad_weights_and_ranks_are_refused() -> None:
    for weights, message in (
        ((), "no weights"),
        ((2.0, 1.0), "nondecreasing"),
        ((-1.0, 1.0), "weights hold -1"),
        ((0.0, float("nan")), "weights hold nan"),
        ((0.0, float("inf")), "weights hold inf"),
    ):
        with pytest.raises(ValueError, match=message):
            WeightedNuclear(1.0, weights)
    for rank in (-1, 1.5, True):
        with pytest.raises(ValueError, match=f"RankBall: rank {rank}"):
            RankBall(rank)  # type: ignore[arg-type]
