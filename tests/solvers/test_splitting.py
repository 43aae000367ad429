"""ADMM: the splitting against textbook formulas, hand computation and convex solvers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quadratics import SETS, Quadratic, numbers, project, relaxations, rhos, vectors
from torch import Tensor

from argprune.solvers.admm import (
    BalancedRho,
    ConstantRho,
    GrowingRho,
    Residuals,
    Split,
    Splitting,
    SquaredDistance,
)
from argprune.solvers.prox import Box, L0Ball, L1Ball


def test_three_steps_of_two_weights_by_hand() -> None:
    """One nonzero of two, rho doubled at every step: U is halved as rho doubles."""
    splitting, members = Splitting(rule=GrowingRho(2.0)), project(L0Ball(1))
    split = splitting.init(torch.tensor([2.0, 1.0]), 1.0, members)
    assert (split.z.tolist(), split.u.tolist(), split.rho) == ([2.0, 0.0], [0.0, 0.0], 1.0)
    split, residuals = splitting.step(torch.tensor([3.0, 1.0]), split, members)
    assert (split.z.tolist(), split.u.tolist(), split.rho) == ([3.0, 0.0], [0.0, 0.5], 2.0)
    assert (residuals.primal, residuals.dual, residuals.force) == (1.0, 1.0, 1.0)
    assert residuals.size == pytest.approx(math.sqrt(10))
    # W + U = (1, 2.5): the second entry, kept out before, has the larger claim now.
    split, residuals = splitting.step(torch.tensor([1.0, 2.0]), split, members)
    assert (split.z.tolist(), split.u.tolist(), split.rho) == ([0.0, 2.5], [0.5, 0.0], 4.0)
    assert residuals.primal == pytest.approx(math.hypot(1, 0.5))
    assert residuals.dual == pytest.approx(2 * math.hypot(3, 2.5))
    assert (residuals.size, residuals.force) == (2.5, 2.0)


@pytest.mark.parametrize(("dual_first", "center"), [(False, [-2.0, 3.0]), (True, [0.0, 3.0])])
def test_where_a_newly_dropped_entry_is_pulled(dual_first: bool, center: list[float]) -> None:
    """Two nonzeros so far and W = Z; now one: past zero, unless U has its step first."""
    w = torch.tensor([2.0, 3.0])
    split, _ = Splitting(dual_first=dual_first).step(w, Split(w, torch.zeros(2), 1.0), project(L0Ball(1)))
    assert split.z.tolist() == [0.0, 3.0]
    assert split.center.tolist() == center


@given(vectors, vectors, vectors, rhos, relaxations, st.sampled_from([L0Ball(2), L1Ball(1.0), Box(-1.0, 0.5)]))
def test_a_step_is_the_textbook_formula(
    w: Tensor, z: Tensor, u: Tensor, rho: float, alpha: float, members: Any
) -> None:
    """Boyd et al. 2011, 3.4.3: alpha W + (1 - alpha) Z takes W's place in the Z- and U-step."""
    new, residuals = Splitting(alpha).step(w, Split(z, u, rho), project(members))
    relaxed = alpha * w + (1 - alpha) * z
    # Rounding may decide which of two equal magnitudes is kept; the set takes either.
    assert float(members.value(new.z)) == 0
    assert float((new.z - (relaxed + u)).norm()) == pytest.approx(
        float((members.prox(relaxed + u, 1.0) - (relaxed + u)).norm()), rel=1e-12, abs=1e-12
    )
    torch.testing.assert_close(new.u, u + relaxed - new.z, rtol=1e-12, atol=1e-12)
    assert residuals.primal == pytest.approx(float((w - new.z).norm()), rel=1e-12)
    assert residuals.dual == pytest.approx(rho * float((new.z - z).norm()), rel=1e-12)
    first, _ = Splitting(alpha, dual_first=True).step(w, Split(z, u, rho), project(members))
    torch.testing.assert_close(first.u, u + alpha * (w - z), rtol=1e-12, atol=1e-12)
    assert torch.equal(first.z, members.prox(w + first.u, 1.0))


@given(vectors, vectors, vectors, rhos)
def test_relaxation_one_is_plain_admm(w: Tensor, z: Tensor, u: Tensor, rho: float) -> None:
    members = project(L0Ball(3))
    new, _ = Splitting(1.0).step(w, Split(z, u, rho), members)
    expected = members(w + u)
    assert torch.equal(new.z, expected)
    assert torch.equal(new.u, (w + u) - expected)


@given(vectors, vectors, vectors, rhos, rhos)
def test_a_new_rho_leaves_the_multiplier_as_it_is(w: Tensor, z: Tensor, u: Tensor, rho: float, other: float) -> None:
    """The augmented Lagrangian's linear term is rho U'(W - Z): only its quadratic term may change with rho."""
    before, after = Split(z, u, rho), Split(z, u, rho).rescaled(other)
    assert after.rho == other
    torch.testing.assert_close(after.rho * after.u, rho * u, rtol=1e-12, atol=0.0)
    forces = [split.rho * (w - split.center) - split.rho * (w - z) for split in (before, after)]
    torch.testing.assert_close(*forces, rtol=1e-9, atol=1e-9)


RULES = [ConstantRho(), BalancedRho(), BalancedRho(relative=True)]


@pytest.mark.parametrize("dual_first", [False, True])
@pytest.mark.parametrize(("relaxation", "rule"), [(1.0, RULES[0]), (1.6, RULES[0]), (1.0, RULES[1]), (1.6, RULES[2])])
@pytest.mark.parametrize("name", SETS)
def test_convex_problems_reach_the_convex_solvers_answer(
    name: str, rule: Any, relaxation: float, dual_first: bool
) -> None:
    """Primal and dual: W is the minimiser, and the multiplier rho U is minus the loss's gradient there."""
    quadratic, members = Quadratic(), SETS[name]
    w, split, history = quadratic.solve(members, Splitting(relaxation, rule, dual_first))
    assert history[-1][1].primal < 1e-8
    # The convex solver's tolerance of 1e-9 in the objective is the square of that in the minimiser.
    torch.testing.assert_close(w, quadratic.minimiser(members), rtol=0, atol=3e-5)
    torch.testing.assert_close(split.rho * split.u, -quadratic.gradient(w), rtol=0, atol=1e-6)


@pytest.mark.parametrize("rho", [1e-4, 1e4])
def test_balancing_mends_a_bad_rho(rho: float) -> None:
    """From a rho that is off by four orders, the residuals come within the threshold and stay near it."""
    quadratic, members, rule = Quadratic(), SETS["l1_ball"], BalancedRho()
    _, _, history = quadratic.solve(members, Splitting(rule=rule), rho)
    _, _, constant = quadratic.solve(members, Splitting(), rho, most=500)
    assert len(history) < 200
    assert len(constant) == 500
    # log2 of 1e4 is 13.3: that many halvings or doublings. After them, as long as residuals are not all rounding.
    ratios = [residuals.primal / residuals.dual for _, residuals in history[16:] if residuals.primal > 1e-6]
    assert len(ratios) > 10
    # One step may overshoot the threshold by what rho can change in a step; the next is turned back.
    assert all(1 / (4 * rule.threshold) < ratio < 4 * rule.threshold for ratio in ratios)
    within = sum(1 / rule.threshold <= ratio <= rule.threshold for ratio in ratios)
    assert within > 0.8 * len(ratios)


def test_relaxation_saves_steps() -> None:
    quadratic, members = Quadratic(), SETS["box"]
    plain, relaxed = (len(quadratic.solve(members, Splitting(alpha))[2]) for alpha in (1.0, 1.6))
    assert relaxed < 0.8 * plain


@settings(max_examples=25)
@given(st.lists(numbers, min_size=2, max_size=6), st.data())
def test_cardinality_of_separable_losses_of_one_curvature_is_solved(values: list[float], data: Any) -> None:
    """f = ||w - c||^2 / 2: the optimum keeps the largest |c|."""
    c = torch.tensor(values, dtype=torch.float64)
    keep = data.draw(st.integers(0, len(values)))
    splitting, members = Splitting(), project(L0Ball(keep))
    split = splitting.init(c, 1.0, members)
    for _ in range(60):
        w = (c + split.rho * split.center) / (1 + split.rho)
        split, _ = splitting.step(w, split, members)
    best = float(c.abs().sort().values[: len(values) - keep].square().sum())
    assert float((split.z - c).square().sum()) == pytest.approx(best, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(("rho", "kept"), [(1.0, [False, True]), (5.0, [True, False])])
def test_rho_decides_which_supports_are_fixed_points(rho: float, kept: list[bool]) -> None:
    """A support is kept if rho * (least magnitude on it) is at least the largest gradient off it.

    f = (0.1 (w_1 - 2)^2 + 4 (w_2 - 1.5)^2) / 2, one nonzero: the optimum is (0, 1.5), magnitude pruning of the dense
    optimum keeps the other entry. There the gradient off the support is 6, and the weight on it 2.
    """
    c, h = torch.tensor([2.0, 1.5], dtype=torch.float64), torch.tensor([0.1, 4.0], dtype=torch.float64)
    splitting, members = Splitting(), project(L0Ball(1))
    split = splitting.init(c, rho, members)
    for _ in range(200):
        split, _ = splitting.step((h * c + rho * split.center) / (h + rho), split, members)
    assert (split.z != 0).tolist() == kept
    assert split.z[kept].tolist() == pytest.approx(c[kept].tolist(), rel=1e-9)


def test_totals_are_norms_of_the_parts() -> None:
    total = Residuals.total([Residuals(3.0, 0.0, 1.0, 6.0), Residuals(4.0, 2.0, 0.0, 8.0)])
    assert total == Residuals(5.0, 2.0, 1.0, 10.0)
    assert (total.relative_primal, total.relative_dual) == (5.0, 0.2)
    assert Residuals(0.0, 0.0, 0.0, 0.0).relative_primal == 0
    # No multiplier yet.
    assert Residuals(0.0, 3.0, 1.0, 0.0).relative_dual == 1


@given(vectors, vectors, st.floats(0, 100))
def test_the_squared_distance_and_its_prox(w: Tensor, center: Tensor, step: float) -> None:
    regularizer = SquaredDistance(center)
    found = regularizer.prox(w, step)
    torch.testing.assert_close(found, (w + step * center) / (1 + step), rtol=1e-12, atol=1e-12)
    steps = torch.full_like(w, step)
    torch.testing.assert_close(regularizer.prox(w, steps.clone()), found, rtol=1e-12, atol=1e-12)
    part = slice(2, 5)
    pieces = w[part].clone()
    regularizer.prox_(pieces, steps[part], part)
    torch.testing.assert_close(pieces, found[part], rtol=1e-12, atol=1e-12)
    assert float(regularizer.value(w)) == pytest.approx(float((w - center) @ (w - center)) / 2, rel=1e-12)
    torch.testing.assert_close(regularizer.gradient(w), w - center)
    half = SquaredDistance(center, torch.tensor([1.0, 0.0, 1.0, 0.0, 1.0, 0.0], dtype=torch.float64))
    torch.testing.assert_close(half.prox(w, step)[::2], found[::2], rtol=1e-12, atol=1e-12)
    assert torch.equal(half.prox(w, steps)[1::2], w[1::2])
    assert float(half.value(w)) == pytest.approx(float((w - center)[::2].square().sum()) / 2, rel=1e-12)
    assert not bool(half.gradient(w)[1::2].any())


def test_a_free_support_is_the_minimiser_over_z_within_it() -> None:
    """What the pull descends is then the distance of W + U to the subspace of the support, not to a point of it."""
    members = L0Ball(3)
    w, u = torch.randn(6, dtype=torch.float64), torch.zeros(6, dtype=torch.float64)
    kept = members.mask(w)
    u[~kept] = torch.randn(3, dtype=torch.float64)
    moved = w + torch.randn(6, dtype=torch.float64)
    term = SquaredDistance(members.prox(w, 1.0) - u, (~kept).double())
    nearest = torch.where(kept, moved + u, 0)
    assert float(term.value(moved)) == pytest.approx(float((moved + u - nearest).square().sum()) / 2, rel=1e-12)
