"""Every registered regularizer: its prox is the argmin, its distance is the optimality condition, its manners."""

from __future__ import annotations

import pickle
from typing import Any

import cvxpy
import numpy as np
import pytest
import torch
from cvxpy.atoms.suppfunc import SuppFuncAtom
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from argprune.solvers.prox import L1, Regularizer, WeightedL1, separable, soft_threshold_
from argprune.solvers.prox.base import LONG_CHUNK, apply_prox_
from argprune.solvers.registry import registered

EXAMPLES = [
    pytest.param(entry.cls, dict(kwargs), id=f"{name}-{index}")
    for name, entry in registered("regularizers").items()
    for index, kwargs in enumerate(entry.examples)
]
# What the examples cannot hold as plain data: factors that differ from entry to entry, zeros among them.
FACTORS = torch.tensor([[0.0, 0.5, 1.0], [2.0, 3.0, 0.1], [1.0, 0.0, 7.0], [0.3, 0.3, 0.3]], dtype=torch.float64)
EXAMPLES.append(pytest.param(WeightedL1, {"strength": 0.4, "factors": FACTORS}, id="weighted_l1-tensor"))
regularizers = pytest.mark.parametrize(("cls", "kwargs"), EXAMPLES)
STEPS = (0.0, 0.1, 1.0, 5.0)


def matrices() -> list[Tensor]:
    """Inputs of shape (4, 3): of several scales, with zeros among them, and zero altogether."""
    generator = torch.Generator().manual_seed(1)
    w = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    with_zeros = w.clone()
    with_zeros[0], with_zeros[2, 1] = 0, -0.0
    return [w, 1e-3 * w, 1e3 * w, with_zeros, torch.zeros_like(w)]


def objective(regularizer: Any, x: Tensor, w: Tensor, step: float) -> float:
    return float(regularizer.value(x) + (x - w).square().sum() / (2 * step))


def cast(kwargs: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    return {name: value.to(dtype) if isinstance(value, Tensor) else value for name, value in kwargs.items()}


@regularizers
def test_prox_beats_every_competitor_near_it(cls: Any, kwargs: dict[str, Any]) -> None:
    regularizer = cls(**kwargs)
    for w in matrices():
        for step in STEPS[1:]:
            p = regularizer.prox(w, step)
            best = objective(regularizer, p, w, step)
            competitors = [w, torch.zeros_like(w)]
            competitors += [p + scale * torch.randn_like(p) for scale in (1e-4, 1e-2, 1.0) for _ in range(8)]
            for index in range(p.numel()):
                for value in (0.0, float(w.flatten()[index])):
                    other = p.clone()
                    other.view(-1)[index] = value
                    competitors.append(other)
            # Rounding of the objective itself: some ten additions of terms as large as the objective.
            slack = 1e-13 * (abs(best) + 1)
            assert best <= min(objective(regularizer, x, w, step) for x in competitors) + slack


@regularizers
def test_distance_is_zero_at_the_prox_and_not_lenient_near_it(cls: Any, kwargs: dict[str, Any]) -> None:
    regularizer = cls(**kwargs)
    if not hasattr(regularizer, "distance"):
        pytest.skip("has no distance")
    for w in matrices():
        for step in STEPS[1:]:
            p = regularizer.prox(w, step)
            # (p - w) / step loses as many digits as w is larger than the step.
            rounding = 1e-14 * (1 + float(w.abs().max())) * (1 + 1 / step)
            assert float(regularizer.distance(p, (p - w) / step).abs().max()) <= rounding
            if not getattr(regularizer, "convex", False):
                continue
            # All entries moved, those off zero only, and points that are zero where the prox is not.
            points = [torch.zeros_like(p), *(p * (torch.rand_like(p) < 0.5) for _ in range(3))]
            for scale in (1e-4, 1e-2, 1.0):
                points += [p + scale * torch.randn_like(p), p + scale * torch.randn_like(p) * (p != 0)]
            for y in points:
                # Strong monotonicity of the prox objective's subdifferential, modulus 1 / step.
                bound = float((y - p).norm()) / step
                found = float(regularizer.distance(y, (y - w) / step).norm())
                assert found >= bound * (1 - 1e-9) - 10 * rounding


@regularizers
def test_a_convex_solver_finds_the_same(cls: Any, kwargs: dict[str, Any]) -> None:
    regularizer = cls(**kwargs)
    if not (getattr(regularizer, "convex", False) and hasattr(regularizer, "expression")):
        pytest.skip("has no convex expression")
    w = matrices()[0]
    x = cvxpy.Variable(w.shape)
    penalty = regularizer.expression(x)
    for step in (0.1, 1.0):
        p = regularizer.prox(w, step)
        x.value = w.numpy()
        # The same sum in another order, except where CVXPY must solve a problem of its own for an atom's value.
        rounding = 1e-6 if SuppFuncAtom in penalty.atoms() else 1e-13
        assert float(penalty.value) == pytest.approx(float(regularizer.value(w)), rel=rounding, abs=0)
        problem = cvxpy.Problem(cvxpy.Minimize(penalty + cvxpy.sum_squares(x - w.numpy()) / (2 * step)))
        problem.solve(solver=cvxpy.CLARABEL)
        # Clarabel stops at gaps of 1e-8; a gap g bounds the distance by sqrt(2 step g), here 1.5e-4.
        assert objective(regularizer, p, w, step) <= problem.value + 1e-7
        np.testing.assert_allclose(p.numpy(), x.value, rtol=0, atol=1.5e-4)


@regularizers
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_manners(cls: Any, kwargs: dict[str, Any], dtype: torch.dtype) -> None:
    regularizer = cls(**cast(kwargs, dtype))
    assert isinstance(regularizer, Regularizer)
    copy = pickle.loads(pickle.dumps(regularizer))
    for original in matrices():
        w = original.to(dtype).requires_grad_()
        for step in STEPS:
            before = w.detach().clone()
            p = regularizer.prox(w=w, step=step)
            assert torch.equal(w.detach(), before)
            assert p.data_ptr() != w.data_ptr()
            assert not p.requires_grad
            assert (p.shape, p.dtype, p.device) == (w.shape, w.dtype, w.device)
            assert bool(p.isfinite().all())
            assert torch.equal(p, regularizer.prox(w, step))
            assert torch.equal(p, copy.prox(w, step))
            assert not bool((p.signbit() & (p == 0)).any())
            # Out of its domain a regularizer has no limit of small steps but the nearest point of the domain.
            if step == 0 and bool(regularizer.value(before).isfinite()):
                assert torch.equal(p, before)
        assert regularizer.value(w).shape == ()


@regularizers
def test_in_place_is_the_same_operator(cls: Any, kwargs: dict[str, Any]) -> None:
    regularizer = cls(**kwargs)
    for w in matrices():
        expected, target = regularizer.prox(w, 0.3), w.clone()
        assert apply_prox_(regularizer, target, 0.3) is target
        assert torch.equal(target, expected)


@regularizers
def test_tensor_steps_act_entry_by_entry(cls: Any, kwargs: dict[str, Any]) -> None:
    regularizer = cls(**kwargs)
    if not getattr(regularizer, "separable", False):
        pytest.skip("entries are tied")
    w = matrices()[0]
    steps = torch.linspace(0, 2, w.numel(), dtype=w.dtype).view_as(w)
    p = regularizer.prox(w, steps)
    for index, step in enumerate(steps.flatten()):
        alone = regularizer.prox(w, float(step)).flatten()[index]
        # Step and strength may be multiplied in another order: one rounding of a number below 10.
        assert float(p.flatten()[index]) == pytest.approx(float(alone), rel=0, abs=1e-14)


def test_apply_prox_without_an_in_place_form() -> None:
    class Halve:
        def value(self, w: Tensor) -> Tensor:
            return w.square().sum()

        def prox(self, w: Tensor, step: float | Tensor) -> Tensor:
            return w / 2

    w = torch.tensor([2.0, -4.0])
    assert apply_prox_(Halve(), w, 1.0) is w
    assert w.tolist() == [1.0, -2.0]


weights = st.floats(-4, 4)
amounts = st.floats(0, 4)


@given(w=weights, step=st.floats(1e-2, 4), strength=amounts, factor=amounts)
@settings(max_examples=60)
def test_weighted_l1_against_a_dense_search(w: float, step: float, strength: float, factor: float) -> None:
    """The minimiser lies between 0 and w; the search looks at 20,001 points of [-4, 4]."""
    grid = np.linspace(-4, 4, 20_001)
    best = grid[np.argmin(strength * factor * np.abs(grid) + (grid - w) ** 2 / (2 * step))]
    one = torch.tensor([w], dtype=torch.float64)
    factors = torch.tensor([factor], dtype=torch.float64)
    # The objective is convex, so the best grid point is a neighbour of the minimiser: at most one spacing away.
    for regularizer in (WeightedL1(strength, factors), WeightedL1(strength, factor), L1(strength * factor)):
        assert abs(float(regularizer.prox(one, step)) - best) <= 8 / 20_000 * (1 + 1e-9)


DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@given(
    values=st.lists(weights, max_size=40),
    limits=st.lists(amounts, min_size=40, max_size=40),
    scale=st.sampled_from([0.0, 0.3, 1.0, 2.0]),
    dtype=st.sampled_from(DTYPES),
    chunk=st.sampled_from([1, 7, 16, 1 << 17]),
)
def test_soft_threshold_in_chunks(
    values: list[float], limits: list[float], scale: float, dtype: torch.dtype, chunk: int
) -> None:
    """Chunks, the plain path and the definition agree; nothing changes sign or grows; zeros are +0."""
    w = torch.tensor(values, dtype=dtype)
    threshold = torch.tensor(limits[: len(values)], dtype=dtype)
    amount = threshold.double() * scale
    expected = w.double().sign() * (w.double().abs() - amount).clamp(min=0)
    # Two roundings (the product, the difference) of numbers up to |w| + amount; the plain path rounds no more.
    tolerance = 2 * torch.finfo(dtype).eps * (w.double().abs() + amount)
    chunked = w.clone()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(separable, "LONG_CHUNK", chunk)
        assert soft_threshold_(chunked, threshold, scale) is chunked
    strided = torch.stack([w, w], dim=1)[:, 0]
    results = [chunked, soft_threshold_(strided, threshold, scale)]
    results.append(soft_threshold_(w.clone(), torch.stack([threshold, threshold], dim=1)[:, 1], scale))
    for result in results:
        assert bool(((result.double() - expected).abs() <= tolerance).all())
        assert bool((result.abs() <= w.abs()).all())
        assert bool((result * w >= 0).all())
        assert not bool((result.signbit() & (result == 0)).any())


@given(value=weights, limit=amounts, scale=amounts, dtype=st.sampled_from(DTYPES))
def test_soft_threshold_at_a_number(value: float, limit: float, scale: float, dtype: torch.dtype) -> None:
    w = torch.tensor([value, 0.0, -0.0, -value], dtype=dtype)
    result = soft_threshold_(w.clone(), limit, scale)
    amount = limit * scale
    expected = w.double().sign() * (w.double().abs() - amount).clamp(min=0)
    # The threshold is rounded to the weights' dtype, then the difference is.
    tolerance = 2 * torch.finfo(dtype).eps * (w.double().abs() + amount)
    # Below the smallest normal number a half-precision threshold is rounded to its grid.
    assert bool(((result.double() - expected).abs() <= tolerance + torch.finfo(dtype).smallest_normal).all())
    assert not bool((result.signbit() & (result == 0)).any())


@pytest.mark.parametrize("numel", [LONG_CHUNK - 1, LONG_CHUNK, 2 * LONG_CHUNK + 5])
def test_soft_threshold_across_real_chunks(numel: int) -> None:
    w, threshold = torch.randn(numel), torch.rand(numel)
    # Powers of two make product and difference of these float32 exact in float64, so only the last rounding differs.
    expected = (w.double().sign() * (w.double().abs() - threshold.double() * 0.5).clamp(min=0)).float()
    torch.testing.assert_close(soft_threshold_(w, threshold, 0.5), expected, rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (1,)])
def test_soft_threshold_of_degenerate_shapes(shape: tuple[int, ...]) -> None:
    for threshold in (0.25, torch.full(shape, 0.25)):
        result = soft_threshold_(torch.ones(shape), threshold, 2.0)
        assert torch.equal(result, torch.full(shape, 0.5))


def test_thresholds_of_another_shape_broadcast_or_are_refused() -> None:
    w = torch.ones(2, 3)
    assert soft_threshold_(w.clone(), torch.tensor([0.0, 0.5, 2.0])).tolist() == [[1.0, 0.5, 0.0]] * 2
    assert soft_threshold_(w.clone(), torch.tensor(0.5)).tolist() == [[0.5] * 3] * 2
    # As many entries, but another shape: which entry belongs to which is not ours to guess.
    with pytest.raises(RuntimeError):
        soft_threshold_(w.clone(), torch.ones(3, 2))


def test_factors_of_another_dtype_than_the_weights() -> None:
    w = torch.tensor([1.0, -0.25], dtype=torch.bfloat16)
    p = WeightedL1(0.5, torch.tensor([1.0, 1.0])).prox(w, 1.0)
    assert p.dtype == torch.bfloat16
    assert p.tolist() == [0.5, 0.0]


def test_infinite_weights_and_thresholds() -> None:
    inf = torch.inf
    w = torch.tensor([inf, -inf, 1.0, -1.0])
    assert soft_threshold_(w.clone(), torch.tensor([1.0, 1.0, inf, inf])).tolist() == [inf, -inf, 0.0, 0.0]
    assert soft_threshold_(w.clone(), 1.0).tolist() == [inf, -inf, 0.0, 0.0]


@pytest.mark.parametrize("strength", [-1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("cls", [L1, WeightedL1])
def test_bad_strengths_are_refused(cls: Any, strength: float) -> None:
    with pytest.raises(ValueError, match=rf"{cls.__name__}: strength {strength}"):
        cls(strength)


@pytest.mark.parametrize("factors", [-1.0, float("nan"), torch.tensor([1.0, -1e-9]), torch.tensor([1.0, torch.nan])])
def test_bad_factors_are_refused(factors: Any) -> None:
    with pytest.raises(ValueError, match="every factor must be >= 0"):
        WeightedL1(1.0, factors)


def test_good_parameters_are_not_refused() -> None:
    w = torch.ones(2, 2)
    for factors in (0.0, 1e30, torch.zeros(2, 2), torch.tensor([[0.0, 1e-30], [1.0, 1e30]])):
        assert float(WeightedL1(0.0, factors).value(w)) == 0
