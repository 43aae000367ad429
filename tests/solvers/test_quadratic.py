"""The 0-1 quadratic program against enumeration, least squares, convex solvers and the closed form."""

from __future__ import annotations

import itertools
import math
from typing import Any

import cvxpy
import numpy as np
import pytest
import torch
from torch import Tensor

from argprune.solvers.ilp import keep_largest
from argprune.solvers.ilp.quadratic import Quadratic, greedy, swaps
from argprune.solvers.ilp.quadratic_bounds import Nodes, perspective_bound, relax, root
from argprune.solvers.ilp.quadratic_exact import How, solve_quadratic
from argprune.solvers.ilp.quadratic_sdp import sdp_bound

KINDS = ("random", "correlated", "singular", "ill-conditioned", "tied", "diagonal")


def instance(kind: str, n: int, keep: int, seed: int, refit: bool, gradient: float = 0.0) -> Quadratic:
    """H = 2 X^T X / N of a kind, normal weights, a gradient in H's range."""
    random = np.random.default_rng(seed)
    x, w = random.standard_normal((4 * n, n)), random.standard_normal(n)
    if kind == "correlated":
        x = (x[:, :3] @ random.standard_normal((3, n)) + x) * np.exp(random.standard_normal(n) / 2)
        x[:, random.integers(n)] *= 8
    elif kind == "singular":
        x = x[: n // 2]
    elif kind == "ill-conditioned":
        x = x @ np.diag(10.0 ** np.linspace(0, -4, n)) @ np.linalg.qr(random.standard_normal((n, n)))[0]
    elif kind == "tied":
        x, w = np.kron(np.eye(n), np.array([[1.0, 1.0], [0.0, 1.0]]))[:, :n], np.ones(n)
    elif kind == "diagonal":
        x = np.diag(np.exp(random.standard_normal(n)))
    h = 2 * x.T @ x / len(x)
    g = gradient * h @ random.standard_normal(n)
    return Quadratic(torch.from_numpy(h), torch.from_numpy(g), torch.from_numpy(w), keep, refit)


def all_pruned(problem: Quadratic) -> np.ndarray[Any, Any]:
    return np.array(list(itertools.combinations(range(problem.n), problem.prune)), dtype=np.intp)


def least(problem: Quadratic) -> float:
    """The optimum, less the constant."""
    return float(problem.excess(all_pruned(problem)).min())


def model_value(problem: Quadratic, h: np.ndarray[Any, Any], mask: Tensor) -> float:
    """g^T d + 1/2 d^T H d by its definition; the survivors' d from least squares with refit."""
    kept = mask.numpy()
    g, w = problem.gradient.numpy(), problem.weights.numpy()
    d = np.where(kept, 0.0, -w)
    if problem.refit and kept.any():
        right = -g[kept] - h[np.ix_(kept, ~kept)] @ d[~kept]
        d[kept] = np.linalg.lstsq(h[np.ix_(kept, kept)], right, rcond=None)[0]
    return float(g @ d + d @ h @ d / 2)


def effective(problem: Quadratic) -> np.ndarray[Any, Any]:
    """The Hessian that is solved, damping included, in the weights' own units."""
    return problem.scaled * problem.scale[:, None] * problem.scale


@pytest.mark.parametrize("refit", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_values_are_those_of_the_definition(kind: str, refit: bool) -> None:
    for seed in range(5):
        problem = instance(kind, 8, 3, seed, refit, gradient=0.5)
        h = effective(problem) if refit else problem.hessian.numpy()
        assert (problem.damping > 0) == (kind == "singular")
        # Damping a singular H leaves half of the digits.
        digits = 1e-4 if kind == "singular" else 1e-7
        for pruned in all_pruned(problem)[::7]:
            mask = problem.mask(pruned)
            expected = model_value(problem, h, mask)
            assert problem.value(mask) == pytest.approx(expected, rel=digits, abs=digits * (1 + abs(problem.constant)))


def test_refit_is_a_convex_solvers_and_never_worse_than_none() -> None:
    plain, refit = (instance("correlated", 10, 4, 3, refit, gradient=0.3) for refit in (False, True))
    for pruned in all_pruned(refit)[::40]:
        mask = refit.mask(pruned)
        d = cvxpy.Variable(10)
        quadratic = cvxpy.quad_form(d, cvxpy.psd_wrap(refit.hessian.numpy())) / 2
        program = cvxpy.Problem(
            cvxpy.Minimize(refit.gradient.numpy() @ d + quadratic), [d[pruned] == -refit.weights.numpy()[pruned]]
        )
        program.solve(solver=cvxpy.CLARABEL)
        assert refit.value(mask) == pytest.approx(program.value, rel=1e-6, abs=1e-6)
        assert refit.value(mask) <= plain.value(mask) + 1e-9


@pytest.mark.parametrize("kind", KINDS)
def test_branch_and_bound_is_enumeration(kind: str) -> None:
    for seed in range(25):
        n, keep = 8 + 2 * (seed % 3), (1, 3, 4, 6, 7)[seed % 5]
        problem = instance(kind, n, keep, seed, True, gradient=0.5 * (seed % 2))
        optimum, total = least(problem), solve_quadratic(problem, "enumerate")
        assert total.objective == pytest.approx(problem.constant + optimum, rel=1e-9)
        solution = solve_quadratic(problem, "branch-and-bound")
        rounding = 1e-6 * optimum + 1e-12 * abs(problem.constant) + 1e-300
        assert solution.status == "optimal"
        assert int(solution.mask.sum()) == keep
        assert solution.objective == problem.value(solution.mask)
        assert abs(solution.objective - total.objective) <= rounding
        # Two evaluations of one number differ by their rounding, also where the bound is the optimum itself.
        assert solution.bound <= total.objective + 1e-9 * optimum + 1e-15 * abs(problem.constant)
        assert 0 <= solution.gap <= rounding


@pytest.mark.parametrize("kind", KINDS)
def test_bounds_are_below_the_optimum(kind: str) -> None:
    for seed in range(40):
        n, keep = 6 + seed % 5, 1 + seed % 5
        problem = instance(kind, n, keep, seed, True)
        optimum = least(problem)
        random = np.random.default_rng(seed)
        single = Nodes(
            problem.inverse[None], problem.target[None], np.zeros(1), np.array([keep]), np.ones((1, n), bool)
        )
        # Any split that is feasible and any shares.
        split = random.uniform(0.01, 1, (1, n)) * np.linalg.eigvalsh(problem.scaled)[0]
        for steps in (1, 4):
            found = relax(single, split, random.uniform(0, 1, (1, n)), optimum, steps)
            assert found.bound[0] <= optimum * (1 + 1e-9)
        best = root(problem, optimum)
        assert found.bound[0] - 0.2 * optimum <= best.bound[0] <= optimum * (1 + 1e-9)
        # The dual's own conditions, checked from the outside.
        assert np.linalg.eigvalsh(problem.scaled - np.diag(best.split[0]))[0] > -1e-9
        assert best.split.min() > 0


def test_an_infeasible_split_is_not_used() -> None:
    problem = instance("random", 6, 3, 0, True)
    single = Nodes(problem.inverse[None], problem.target[None], np.zeros(1), np.array([3]), np.ones((1, 6), bool))
    for split in (np.full((1, 6), 1.5), np.full((1, 6), -0.1), np.full((1, 6), np.nan)):
        found = relax(single, split, np.full((1, 6), 0.5), 1.0, 1)
        assert np.linalg.eigvalsh(problem.scaled - np.diag(found.split[0]))[0] > 0
        assert found.bound[0] <= least(problem)


@pytest.mark.parametrize("kind", KINDS)
def test_convex_solvers_bounds(kind: str) -> None:
    for refit in (True, False):
        for seed in range(2):
            problem = instance(kind, 8, 3 + seed, seed, refit)
            optimum = problem.constant + least(problem)
            if refit and kind == "singular":
                continue
            bound = sdp_bound(problem)
            assert bound <= optimum + 1e-9 * abs(optimum)
            if kind in ("random", "diagonal"):
                assert bound >= optimum - 0.2 * abs(optimum)
            if refit and kind not in ("singular", "ill-conditioned"):
                weak, strong = perspective_bound(problem, "cvxpy"), perspective_bound(problem)
                assert weak <= optimum * (1 + 1e-9)
                assert strong <= optimum * (1 + 1e-9)
                # Enlarging the split's feasible set never lowers the best bound, up to where the ascent stopped.
                assert strong >= weak - 0.02 * optimum
                assert bound >= strong


def test_the_ascents_bound_at_its_split_is_clarabels() -> None:
    problem = instance("correlated", 12, 6, 1, True)
    best = root(problem, least(problem))
    split = best.split[0] * (1 - 1e-9)
    u, z = cvxpy.Variable(12), cvxpy.Variable(12)
    root_of_rest = np.linalg.cholesky(problem.scaled - np.diag(split))
    cones = sum(split[i] * cvxpy.quad_over_lin(u[i], z[i]) for i in range(12))
    straight = problem.scaled @ problem.target
    value = (cvxpy.sum_squares(root_of_rest.T @ u) + cones) / 2 - straight @ u + problem.target @ straight / 2
    program = cvxpy.Problem(cvxpy.Minimize(value), [z <= 1, cvxpy.sum(z) == 6])
    program.solve(solver=cvxpy.CLARABEL)
    assert float(best.bound[0]) == pytest.approx(program.value, rel=1e-2)
    assert float(best.bound[0]) <= program.value * (1 + 1e-5)
    assert perspective_bound(problem, "cvxpy", split) == pytest.approx(program.value, rel=1e-3)


def test_the_bounds_are_within_a_fifth_of_the_optimum_at_32() -> None:
    for seed in range(3):
        problem = instance("correlated", 32, 16, seed, True)
        solution = solve_quadratic(problem, "branch-and-bound")
        assert solution.status == "optimal"
        assert 0.8 * solution.objective <= perspective_bound(problem) <= solution.objective


@pytest.mark.parametrize("refit", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_swaps_never_worsen_and_end_in_a_local_optimum(kind: str, refit: bool) -> None:
    for seed in range(6):
        problem = instance(kind, 9, 3 + seed % 4, seed, refit, gradient=0.5)
        random = np.random.default_rng(seed)
        for start in (greedy(problem), random.permutation(9)[: problem.prune]):
            found, _ = swaps(problem, start)
            value = float(problem.excess(found[None])[0])
            assert len(set(found.tolist())) == problem.prune
            before = float(problem.excess(start[None])[0])
            assert value <= before + 1e-9 * abs(before)
            everything = all_pruned(problem)
            near = np.array([len(set(found.tolist()) - set(other.tolist())) <= 2 for other in everything])
            slack = 1e-6 * abs(value) + 1e-12
            assert value <= float(problem.excess(everything[near]).min()) + slack


@pytest.mark.parametrize("refit", [False, True])
def test_greedy_takes_the_cheapest_next_weight(refit: bool) -> None:
    problem = instance("correlated", 9, 4, 2, refit)
    taken: list[int] = []
    for index in greedy(problem):
        options = [i for i in range(9) if i not in taken]
        costs = problem.excess(np.array([[*taken, i] for i in options]))
        assert index == options[int(costs.argmin())]
        taken.append(int(index))


@pytest.mark.parametrize("kind", KINDS)
def test_cp_sat_is_enumeration_and_its_bound_allows_for_rounding(kind: str) -> None:
    pytest.importorskip("ortools")
    for seed in range(6):
        problem = instance(kind, 9, 3 + seed % 4, seed, False, gradient=0.5)
        optimum = least(problem)
        solution = solve_quadratic(problem, "cp-sat")
        assert solution.status == "optimal"
        assert solution.bound <= optimum + 1e-12 * abs(optimum)
        assert solution.gap <= 1e-5 * (1 + abs(optimum))
        assert solution.objective == pytest.approx(optimum, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("refit", [False, True])
def test_a_diagonal_hessian_gives_the_closed_form(refit: bool) -> None:
    for seed in range(5):
        problem = instance("diagonal", 12, 5, seed, refit)
        scores = problem.hessian.diagonal() * problem.weights**2
        expected = keep_largest([scores], 5)[0]
        methods: list[How] = ["enumerate", "greedy", "swaps", "branch-and-bound" if refit else "cp-sat"]
        for how in methods:
            assert torch.equal(solve_quadratic(problem, how).mask, expected)
    large = instance("diagonal", 60, 25, 0, True)
    assert solve_quadratic(large, "branch-and-bound").nodes <= 1
    # Every mask is optimal.
    same = Quadratic(torch.eye(40), torch.zeros(40), torch.ones(40), 20, True)
    assert solve_quadratic(same, "branch-and-bound").objective == pytest.approx(10)


@pytest.mark.parametrize("refit", [False, True])
def test_all_or_nothing(refit: bool) -> None:
    exact: How = "branch-and-bound" if refit else "cp-sat"
    methods: list[How] = ["enumerate", "greedy", "swaps", exact]
    for keep in (0, 6):
        problem = instance("correlated", 6, keep, 0, refit, gradient=0.5)
        values = []
        for how in methods:
            solution = solve_quadratic(problem, how)
            assert int(solution.mask.sum()) == keep
            values.append(solution.objective)
        assert values == [values[0]] * 4
        assert sdp_bound(problem) == values[0]
        assert values[0] == pytest.approx(problem.constant if keep else problem.value(torch.zeros(6, dtype=torch.bool)))
    nothing = Quadratic(torch.zeros(0, 0), torch.zeros(0), torch.zeros(0), 0, refit)
    assert solve_quadratic(nothing, "enumerate").objective == 0
    zeros = Quadratic(torch.eye(4), torch.zeros(4), torch.zeros(4), 2, refit)
    assert solve_quadratic(zeros, exact).objective == 0


def test_forty_and_more_are_proved_and_an_early_end_is_said() -> None:
    problem = instance("correlated", 40, 20, 1, True)
    solution = solve_quadratic(problem, "branch-and-bound", time_limit=60)
    assert solution.status == "optimal"
    assert solution.gap <= 2e-7 * solution.objective
    hard = instance("correlated", 80, 40, 5, True)
    stopped = solve_quadratic(hard, "branch-and-bound", time_limit=1e-3)
    assert stopped.status == "feasible"
    assert 0 < stopped.bound < stopped.objective
    assert stopped.gap == pytest.approx(stopped.objective - stopped.bound)
    early = solve_quadratic(instance("random", 20, 10, 0, True), "enumerate", time_limit=1e-6)
    assert early.status == "feasible"


@pytest.mark.parametrize("scale", [1e-12, 1e9])
def test_the_search_does_not_depend_on_units(scale: float) -> None:
    problem = instance("correlated", 24, 12, 4, True)
    spread = torch.logspace(-3, 3, 24, dtype=torch.float64)
    hessian = problem.hessian * spread[:, None] * spread
    other = Quadratic(hessian, problem.gradient, scale * problem.weights / spread, 12, True)
    one, two = (solve_quadratic(p, "branch-and-bound") for p in (problem, other))
    assert torch.equal(one.mask, two.mask)
    assert two.objective == pytest.approx(scale**2 * one.objective, rel=1e-9)
    assert two.nodes <= one.nodes + 4
    assert perspective_bound(other) == pytest.approx(scale**2 * perspective_bound(problem), rel=1e-3)
    for bound in (sdp_bound, lambda p: perspective_bound(p, "cvxpy")):
        assert bound(other) == pytest.approx(scale**2 * bound(problem), rel=1e-2)


def test_narrow_dtypes_and_float32_sums_are_taken() -> None:
    exact = instance("correlated", 10, 4, 0, True)
    single = Quadratic(exact.hessian.float(), exact.gradient.float(), exact.weights.float(), 4, True)
    assert torch.equal(*(solve_quadratic(p, "branch-and-bound").mask for p in (exact, single)))
    low = torch.randn(5, 12, generator=torch.Generator().manual_seed(0))
    singular = Quadratic(low.T @ low, torch.zeros(12), torch.ones(12), 6, True)
    assert 0 < singular.damping < 1e-5
    assert math.isfinite(solve_quadratic(singular, "branch-and-bound").objective)


def quadratic(**changes: Any) -> Quadratic:
    given = {"hessian": torch.eye(3), "gradient": torch.zeros(3), "weights": torch.ones(3), "keep": 1}
    return Quadratic(**{**given, **changes})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: quadratic(hessian=torch.eye(4)), r"hessian of shape \(4, 4\)"),
        (lambda: quadratic(gradient=torch.zeros(2)), r"gradient of shape \(2,\)"),
        (lambda: quadratic(weights=torch.ones(1, 3)), r"weights of shape \(1, 3\)"),
        (lambda: quadratic(weights=torch.ones(3, dtype=torch.int64)), "dtype torch.int64"),
        (lambda: quadratic(gradient=torch.tensor([0.0, torch.nan, 0.0])), "gradient contains NaN"),
        (lambda: quadratic(keep=4), "keep 4 of 3"),
        (lambda: quadratic(keep=-1), "keep -1"),
        (lambda: quadratic(keep=1.5), "keep 1.5"),
        (lambda: quadratic(keep=True), "keep True"),
        (lambda: quadratic(hessian=torch.eye(3) + torch.ones(3, 3).triu()), "transpose by 1"),
        (lambda: quadratic(hessian=torch.ones(3, 3) * 2 - torch.eye(3), refit=True), "eigenvalue -1"),
        (lambda: quadratic().value(torch.ones(3)), "torch.float32"),
        (lambda: quadratic().value(torch.ones(3, dtype=torch.bool)), "keeps 3 of 3"),
        (lambda: solve_quadratic(quadratic(), "simplex"), "how 'simplex'"),  # type: ignore[arg-type]
        (lambda: solve_quadratic(quadratic(), "greedy", time_limit=0), "time_limit 0"),
        (lambda: solve_quadratic(quadratic(), "branch-and-bound"), "refit=True"),
        (lambda: solve_quadratic(quadratic(refit=True), "cp-sat"), "no refit"),
        (lambda: solve_quadratic(instance("random", 40, 20, 0, False), "enumerate"), "137846528820 masks"),
        (lambda: perspective_bound(quadratic()), "refit=False"),
        (lambda: perspective_bound(quadratic(refit=True), "simplex"), "how 'simplex'"),  # type: ignore[arg-type]
        (lambda: perspective_bound(quadratic(refit=True), "cvxpy", [2.0, 0.0, 0.0]), "eigenvalue -1"),
    ],
)
def test_bad_input_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
