"""Budgets: enumeration, linear and integer programs against prices; bounds, certificates, and masks within limits."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from torch import Tensor

from argprune.solvers.groups import Blocks, Columns, Rows
from argprune.solvers.ilp import BudgetCertificate, Selection, Solution, lagrangian, rounding, solve

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
whole = st.integers(-4, 3).map(float)
reals = st.floats(-8, 4, width=16)


@st.composite
def problems(draw: st.DrawFn, values: st.SearchStrategy[float] = whole, weigh: Any = None) -> Selection:
    """Up to 8 entries or groups in up to 3 tensors, up to 3 budgets, with or without a count."""
    weigh = draw(st.sampled_from([st.integers(0, 4).map(float), st.floats(0, 4, width=16)])) if weigh is None else weigh
    dtype = draw(st.sampled_from(DTYPES))
    grouped = draw(st.booleans())
    numbers = draw(st.lists(st.integers(0, 4), min_size=1, max_size=3).filter(lambda parts: 0 < sum(parts) <= 8))

    def tensor(of: st.SearchStrategy[float], *shape: int) -> Tensor:
        size = math.prod(shape)
        return torch.tensor(draw(st.lists(of, min_size=size, max_size=size)), dtype=dtype).view(shape)

    costs = [tensor(values, number, 2) if grouped else tensor(values, number) for number in numbers]
    budgets = {}
    for index in range(draw(st.integers(1, 3))):
        weights: Any = [draw(weigh) if draw(st.booleans()) else tensor(weigh, number) for number in numbers]
        total = sum(float((torch.zeros(n) + w).sum()) for n, w in zip(numbers, weights, strict=True))
        budgets[f"b{index}"] = (weights, draw(st.sampled_from([0.0, 0.25, 0.5, 1.0])) * total)
    keep = draw(st.one_of(st.none(), st.integers(0, sum(numbers))))
    return Selection(costs, keep, Rows() if grouped else None, budgets=budgets)


def in_numbers(problem: Selection) -> tuple[Any, Any, Any]:
    """Costs (n,), weights (J, n) and limits (J,) from nothing but what the user gave."""
    assert problem.budgets is not None
    parts = [
        cost.double() if problem.groups is None else problem.groups.split(cost.double()).sum(1)
        for cost in problem.tensors
    ]
    rows = []
    for weights, _ in problem.budgets.values():
        assert isinstance(weights, list)
        rows.append(torch.cat([torch.zeros(len(part)).double() + w for part, w in zip(parts, weights, strict=True)]))
    limits = np.array([limit for _, limit in problem.budgets.values()])
    return torch.cat(parts).numpy(), torch.stack(rows).numpy(), limits


def feasible(problem: Selection) -> Iterator[Any]:
    """Every mask of the items that count and limits allow."""
    costs, weights, limits = in_numbers(problem)
    for kept in itertools.product((False, True), repeat=len(costs)):
        mask = np.array(kept)
        if problem.keep in (None, mask.sum()) and (weights @ mask <= limits + 1e-9 * limits).all():
            yield mask


def check_mask(problem: Selection, solution: Solution) -> float:
    """The cost of a solution's mask, after a look at count, limits and groups."""
    costs, weights, limits = in_numbers(problem)
    flags = []
    for mask, cost in zip(solution.masks, problem.tensors, strict=True):
        assert mask.shape == cost.shape
        stack = mask.view(-1, 1) if problem.groups is None else problem.groups.split(mask)
        assert torch.equal(stack.all(1), stack.any(1))
        flags.append(stack.any(1))
    kept = torch.cat(flags).numpy()
    assert problem.keep in (None, kept.sum())
    assert (weights @ kept <= limits * (1 + 1e-11)).all()
    assert solution.objective == pytest.approx(float(costs[kept].sum()), rel=1e-12, abs=1e-12)
    return float(costs[kept].sum())


@given(problem=st.one_of(problems(whole), problems(reals)))
@settings(max_examples=60, deadline=None)
def test_every_way_against_enumeration(problem: Selection) -> None:
    costs, _, _ = in_numbers(problem)
    optimum = min((float(costs[mask].sum()) for mask in feasible(problem)), default=math.inf)
    exact = solve(problem, "exact")
    priced = solve(problem, "lagrangian")
    relaxed = solve(problem, "relaxed")
    if optimum == math.inf:
        assert (exact.status, exact.masks, exact.objective) == ("infeasible", [], math.inf)
        for solution in (priced, relaxed):
            # The relaxation may have solutions where the program has none.
            assert solution.status in ("infeasible", "unknown")
            assert (solution.masks, solution.objective, solution.gap) == ([], math.inf, math.inf)
        assert (priced.status == "infeasible") == (relaxed.status == "infeasible")
        return
    assert exact.status == "optimal"
    assert check_mask(problem, exact) == pytest.approx(optimum, abs=1e-9)
    assert exact.bound <= optimum + 1e-9
    for solution in (priced, relaxed):
        assert solution.bound <= optimum + 1e-9
        if not solution.masks:
            assert (solution.status, problem.keep is None) == ("unknown", False)
            continue
        assert check_mask(problem, solution) >= optimum - 1e-9
        assert solution.gap == pytest.approx(solution.objective - solution.bound, abs=1e-9)
        if solution.status == "optimal":
            assert solution.objective == pytest.approx(optimum, abs=1e-5)
        assert isinstance(solution.certificate, BudgetCertificate)
        assert solution.certificate.check(problem, solution.masks) == solution.gap
        assert solution.certificate.bound == pytest.approx(solution.bound, abs=1e-9)
    # Two roads to one value: prices, and the linear program.
    assert priced.bound == pytest.approx(relaxed.bound, rel=1e-6, abs=1e-6)


@given(problem=problems(whole, st.integers(0, 4).map(float)))
@settings(max_examples=25, deadline=None)
def test_solvers_of_integer_programs_agree(problem: Selection) -> None:
    found = [solve(problem, "exact", solver=solver) for solver in ("cp-sat", "gscip", "highs")]
    assert len({solution.status for solution in found}) == 1
    assert len({solution.objective for solution in found}) == 1
    if found[0].masks:
        for solution in found:
            check_mask(problem, solution)
            assert solution.gap == pytest.approx(0, abs=1e-6)


def layers(n: int, number: int, seed: int, kind: str = "independent", dtype: Any = torch.float64) -> tuple[Any, Any]:
    """Importance of n entries in six layers, to be kept, and one weight a layer or an entry for each budget."""
    rng = np.random.default_rng(seed)
    size = n // 6
    costs = [-torch.from_numpy(np.abs(rng.normal(size=size)) * rng.lognormal()).to(dtype) for _ in range(6)]
    weights: Any = [[float(w) for w in rng.lognormal(size=6)] for _ in range(number)]
    if kind != "layers":
        weights = [[torch.from_numpy(rng.uniform(0.05, 1, size)) for _ in costs] for _ in range(number)]
    if kind == "correlated":
        weights = [[-cost.double() * w for cost, w in zip(costs, parts, strict=True)] for parts in weights]
    return costs, weights


def budgeted(
    n: int,
    number: int,
    seed: int,
    kind: str = "independent",
    keep: float | None = None,
    share: float = 0.3,
    **options: Any,
) -> Selection:
    """Keep what is most important at a share of the total of each budget."""
    costs, weights = layers(n, number, seed, kind, **options)
    budgets = {
        f"b{index}": (
            parts,
            share * sum(float((torch.zeros_like(c).double() + w).sum()) for c, w in zip(costs, parts, strict=True)),
        )
        for index, parts in enumerate(weights)
    }
    return Selection(costs, None if keep is None else int(keep * n), budgets=budgets)


@pytest.mark.parametrize("kind", ["independent", "correlated", "layers"])
@pytest.mark.parametrize("number", [1, 3])
@pytest.mark.parametrize("keep", [None, 0.33])
def test_prices_reach_the_linear_program(kind: str, number: int, keep: float | None) -> None:
    problem = budgeted(600, number, 7, kind, keep)
    priced = solve(problem, "lagrangian")
    costs, weights, limits = in_numbers(problem)
    count = {} if keep is None else {"A_eq": np.ones((1, 600)), "b_eq": [problem.keep]}
    program = linprog(costs, weights, limits, bounds=(0, 1), method="highs", **count)
    if program.status == 2:
        assert priced.status == "infeasible"
        return
    assert priced.bound == pytest.approx(program.fun, rel=1e-6)
    assert priced.bound <= program.fun + 1e-9 * abs(program.fun)
    assert check_mask(problem, priced) <= program.fun + 0.02 * abs(program.fun)


@pytest.mark.parametrize("kind", ["independent", "correlated"])
@pytest.mark.parametrize("number", [1, 2])
def test_dossier_table_of_budgets(kind: str, number: int) -> None:
    """The optimum lies between bound and priced mask, both close in faster as n grows than importance alone does."""
    above, below, alone = {}, {}, {}
    for n in (12, 36, 84):
        rows = []
        for seed in range(3):
            problem = budgeted(n, number, seed, kind)
            exact, priced = solve(problem, "exact", time_limit=10.0), solve(problem, "lagrangian")
            size = abs(exact.objective)
            assert priced.bound - 1e-6 * size <= exact.objective <= priced.objective + 1e-6 * size
            rows.append(
                (
                    (exact.objective - priced.bound) / size,
                    (priced.objective - exact.objective) / size,
                    (greedy(problem) - exact.objective) / size,
                )
            )
        above[n], below[n], alone[n] = (float(value) for value in np.mean(rows, axis=0))
    assert above[12] > above[36] > above[84]
    assert above[84] < 0.005
    assert below[84] < 0.03
    assert below[84] < alone[84]
    if kind == "correlated":
        assert alone[84] > 0.05


def greedy(problem: Selection) -> float:
    """The cost of keeping in the order of costs what still fits."""
    costs, weights, left = in_numbers(problem)
    total = 0.0
    for index in np.argsort(costs):
        if (weights[:, index] <= left).all():
            left = left - weights[:, index]
            total += costs[index]
    return total


@pytest.mark.parametrize("keep", [None, 0.3])
def test_gap_of_grouped_costs_vanishes_with_size(keep: float | None) -> None:
    gaps = []
    for n in (600, 24_000, 240_000):
        solution = solve(budgeted(n, 1, 0, "layers", keep, 0.2, dtype=torch.float32), "lagrangian")
        assert isinstance(solution.certificate, BudgetCertificate)
        assert solution.certificate.prices["b0"] > 0
        gaps.append(solution.gap / abs(solution.objective))
    # The dossier's are 1.1e-2, 4.0e-5 and 9.7e-6.
    assert gaps[0] < 1.1e-2
    assert gaps[1] < 4e-5
    assert gaps[2] < 9.7e-6


@pytest.mark.parametrize("number", [1, 3])
@pytest.mark.parametrize("keep", [None, 100, 1000])
def test_samples_and_windows_change_nothing(number: int, keep: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = budgeted(6000, number, 5, "independent", None if keep is None else keep / 6000)
    plain = solve(problem, "lagrangian")
    assert plain.bound == pytest.approx(solve(problem, "relaxed").bound, rel=1e-6)
    monkeypatch.setattr(lagrangian, "_SAMPLE", 300)
    for name, value in (("_FEW", 10), ("_LEAST", 2), ("_SAMPLE", 500)):
        monkeypatch.setattr(rounding, name, value)
    small = solve(problem, "lagrangian")
    check_mask(problem, small)
    assert small.bound == pytest.approx(plain.bound, rel=1e-7)
    assert small.gap <= 2e-3 * abs(small.objective)


@pytest.mark.parametrize("keep", [None, 20_000])
@pytest.mark.parametrize("values", ["one", "bfloat16"])
def test_ties_are_shared_out(keep: int | None, values: str) -> None:
    """Thousands of equal priced costs: whole tensors change sides at one price."""
    generator = torch.Generator().manual_seed(6)
    shapes = [(100, 300), (200, 100), (120, 250)]
    costs = [-torch.ones(shape) if values == "one" else -torch.rand(shape, generator=generator) for shape in shapes]
    costs = [cost.bfloat16() for cost in costs]
    flops = [1.0, 2.0, 4.0]
    problem = Selection(costs, keep, budgets={"flops": (flops, 40_000.0), "bytes": ([3.0, 2.0, 1.0], 60_000.0)})
    solution = solve(problem, "lagrangian")
    counts = np.array([int(mask.sum()) for mask in solution.masks])
    assert counts @ flops <= 40_000
    assert counts @ [3, 2, 1] <= 60_000
    assert keep in (None, counts.sum())
    assert solution.gap <= 1e-3 * abs(solution.objective)
    if values == "one":
        assert solution.gap <= 1e-7 * abs(solution.objective)


def test_counts_that_limits_barely_allow() -> None:
    """Filling up in the order of prices misses the count; room left for it, or an integer program, does not."""
    for seed in range(6):
        problem = budgeted(120, 4, seed, "independent", 0.3, share=0.32)
        solution = solve(problem, "lagrangian")
        exact = solve(problem, "relaxed")
        if solution.status == "infeasible":
            assert exact.status == "infeasible"
            continue
        assert solution.masks
        check_mask(problem, solution)


@given(problem=problems(whole, st.integers(0, 4).map(float)), data=st.data())
@settings(max_examples=60, deadline=None)
def test_any_prices_bound_every_mask(problem: Selection, data: st.DataObject) -> None:
    masks = list(feasible(problem))
    assume(masks)
    costs, weights, limits = in_numbers(problem)
    # Eighths: equal, not close.
    eighths = st.integers(0, 40).map(lambda value: value / 8)
    prices = {name: data.draw(eighths) for name in problem.budgets or {}}
    nu = 0.0 if problem.keep is None else data.draw(eighths) - 2
    mask = masks[data.draw(st.integers(0, len(masks) - 1))]
    parts = torch.split(torch.from_numpy(mask), [len(cost) for cost in problem.tensors])
    shaped = [
        part if problem.groups is None else part[:, None].expand(cost.shape)
        for part, cost in zip(parts, problem.tensors, strict=True)
    ]
    certificate = BudgetCertificate.of(problem, shaped, prices, nu)
    price = np.array(list(prices.values()))
    bound = nu * (problem.keep or 0) - price @ limits + np.minimum(costs + price @ weights - nu, 0).sum()  # type: ignore[operator]
    assert certificate.bound == bound
    assert certificate.gap == certificate.check(problem, shaped) == costs[mask].sum() - bound
    assert certificate.bound <= min(costs[other].sum() for other in masks)
    again = BudgetCertificate.from_dict(json.loads(json.dumps(certificate.to_dict(), allow_nan=False)))
    assert again == certificate


@pytest.mark.parametrize("groups", [Blocks(2, 3), Rows(), Columns()], ids=str)
def test_groups_are_kept_together(groups: Any) -> None:
    generator = torch.Generator().manual_seed(8)
    costs = [torch.randn(4, 6, generator=generator), torch.randn(2, 9, generator=generator)]
    numbers = [groups.split(cost).shape[0] for cost in costs]
    weights: Any = [torch.rand(numbers[0], generator=generator), 0.5]
    problem = Selection(costs, 3, groups, budgets={"flops": (weights, 1.2)})
    exact, priced = solve(problem, "exact"), solve(problem, "lagrangian")
    sums = torch.cat([groups.split(cost).sum(1) for cost in costs])
    heavy = torch.cat([weights[0], torch.full((numbers[1],), 0.5)])
    best = min(
        float(sums[list(kept)].sum())
        for kept in itertools.combinations(range(len(sums)), 3)
        if float(heavy[list(kept)].sum()) <= 1.2
    )
    assert exact.objective == pytest.approx(best, rel=1e-6)
    assert priced.bound <= best + 1e-6 <= priced.objective + 2e-6
    for solution in (exact, priced):
        flags = [groups.split(mask) for mask in solution.masks]
        assert all(torch.equal(stack.all(1), stack.any(1)) for stack in flags)
        assert sum(int(stack.any(1).sum()) for stack in flags) == 3


@pytest.mark.parametrize("scale", [1e-30, 1e30])
@pytest.mark.parametrize("heavy", [1e-30, 1e30])
def test_units_do_not_matter(scale: float, heavy: float) -> None:
    problem = budgeted(60, 2, 9)
    assert problem.budgets is not None
    budgets: Any = {
        name: ([weight * heavy for weight in parts], limit * heavy)  # type: ignore[union-attr]
        for name, (parts, limit) in problem.budgets.items()
    }
    other = Selection([cost * scale for cost in problem.tensors], budgets=budgets)
    for how in ("lagrangian", "relaxed", "exact"):
        one, two = solve(problem, how), solve(other, how)
        assert two.objective / scale == pytest.approx(one.objective, rel=1e-2)
        assert two.bound / scale == pytest.approx(one.bound, rel=1e-6)


@pytest.mark.parametrize("solver", ["highs", "gscip"])
def test_limits_are_met_to_rounding(solver: str) -> None:
    costs = -torch.ones(40)
    # 0.1 + 0.1 + 0.1 > 0.3 by rounding alone, which fits; by less than a solver's tolerance, which does not.
    assert solve(Selection(costs, budgets={"b": (0.1, 0.3)}), "exact", solver=solver).objective == -3
    just_below = solve(Selection(costs, budgets={"b": (0.1, 0.3 - 1e-9)}), "exact", solver=solver)
    assert (just_below.objective, just_below.status) == (-2, "optimal")


def test_no_budget_binds() -> None:
    costs = [torch.tensor([1.0, -2.0, 0.0]), torch.zeros(0), torch.tensor(-3.0)]
    problem = Selection(costs, budgets={"free": (0.0, 0.0), "wide": ([1.0, 1.0, 1.0], 9.0)})
    for how in ("lagrangian", "relaxed", "exact"):
        solution = solve(problem, how)
        assert (solution.objective, solution.status) == (-5, "optimal")
        assert [mask.shape for mask in solution.masks] == [cost.shape for cost in costs]
        assert not solution.masks[0][0]
    nothing = solve(Selection(torch.zeros(0), budgets={"b": (1.0, 1.0)}), "lagrangian")
    assert (nothing.objective, nothing.status) == (0, "optimal")


def test_few_steps_still_bound() -> None:
    problem = budgeted(600, 3, 11)
    best = solve(problem, "relaxed").bound
    bounds = [solve(problem, "lagrangian", num_steps=steps).bound for steps in (1, 3, 100)]
    assert bounds[0] <= bounds[1] <= bounds[2] <= best + 1e-9 * abs(best)
    assert bounds[2] == pytest.approx(best, rel=1e-6)


ONE = torch.ones(4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Selection(ONE), "neither keep nor budgets"),
        (lambda: Selection(ONE, budgets={}), "give at least one"),
        (lambda: Selection(ONE, budgets={"f": 1.0}), r"budget 'f' is a float; give \(weights, limit\)"),  # type: ignore[dict-item]
        (lambda: Selection(ONE, budgets={"f": (1.0, -1.0)}), "limit -1.0; give a finite number >= 0"),
        (lambda: Selection(ONE, budgets={"f": (1.0, math.nan)}), "limit nan"),
        (lambda: Selection(ONE, budgets={"f": (-1.0, 1.0)}), "tensor 0: weight -1.0"),
        (lambda: Selection(ONE, budgets={"f": ("x", 1.0)}), "tensor 0: weight 'x'"),  # type: ignore[dict-item]
        (lambda: Selection(ONE, budgets={"f": ([1.0, 2.0], 1.0)}), "has 2 weights; give a number"),
        (lambda: Selection(ONE, budgets={"f": (-ONE, 1.0)}), "a weight is negative, infinite or NaN"),
        (lambda: Selection(ONE, budgets={"f": (ONE * math.nan, 1.0)}), "a weight is negative, infinite or NaN"),
        (
            lambda: Selection(ONE, budgets={"f": (ONE[:3], 1.0)}),
            r"shape \(3,\) on cpu; give a number or real ones of shape",
        ),
        (lambda: Selection(ONE.view(2, 2), None, Rows(), budgets={"f": (ONE, 1.0)}), r"shape \(2,\) on cpu"),
        (lambda: Selection(ONE, 5, budgets={"f": (1.0, 1.0)}), "keep 5 of 4 entries"),
        (lambda: Selection(ONE.view(2, 2), 3, Rows(), budgets={"f": (1.0, 1.0)}), "keep 3 of 2 groups"),
        (lambda: Selection(ONE, [2], budgets={"f": (1.0, 1.0)}), r"keep \[2\]"),
        (lambda: Selection(ONE, 2, least=[1], budgets={"f": (1.0, 1.0)}), "least and most beside budgets"),
        (lambda: Selection(ONE, budgets={"f": (1.0, 1.0)}).limits(), "limits of a problem without counts"),
        (lambda: Selection(ONE, budgets={"f": (1.0, 1.0)}).group_counts(), "without counts of groups"),
        (
            lambda: solve(Selection(ONE, budgets={"f": (1.0, 1.0)})),
            "none for budgets; give exact, relaxed or lagrangian",
        ),
        (lambda: solve(Selection(ONE, budgets={"f": (1.0, 1.0)}), "dynamic"), "Give them to choose_levels"),
        (lambda: solve(Selection(ONE, 1), "dynamic"), "Give them to choose_levels"),
        (lambda: solve(Selection(ONE, 1), "lagrangian"), "lagrangian prices budgets, and the problem has none"),
        (lambda: solve(Selection(-ONE * math.inf, budgets={"f": (1.0, 1.0)}), "lagrangian"), "contain an infinity"),
        (lambda: solve(Selection(ONE, budgets={"f": (1.0, 1.0)}), "lagrangian", tol=0.0), "tol 0.0"),
        (lambda: solve(Selection(ONE, budgets={"f": (1.0, 1.0)}), "lagrangian", num_steps=0), "num_steps 0"),
        (
            lambda: solve(Selection(ONE, budgets={"f": (1 / 3, 1.0)}), "exact", solver="cp-sat"),
            "weights of budget 'f' have too many digits, as 0.333",
        ),
    ],
)
def test_refusals(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_certificate_refuses_other_masks_and_problems() -> None:
    problem = Selection(-ONE.view(2, 2), 1, Rows(), budgets={"f": (1.0, 1.0)})
    kept = torch.tensor([[True, True], [False, False]])
    certificate = BudgetCertificate.of(problem, kept, {"f": 0.5})
    with pytest.raises(ValueError, match="tensor 0 keeps a group in part"):
        certificate.check(problem, kept.t())
    with pytest.raises(ValueError, match="keeps 0; it must keep 1"):
        certificate.check(problem, kept & False)
    with pytest.raises(ValueError, match=r"torch\.bool of shape \(4,\); give torch\.bool of shape \(2, 2\)"):
        certificate.check(problem, kept.flatten())
    with pytest.raises(ValueError, match="the problem has limits"):
        certificate.check(Selection(-ONE.view(2, 2), 1, Rows(), budgets={"f": (1.0, 2.0)}), kept)
    loose = Selection(-ONE, budgets={"f": (1.0, 1.0)})
    with pytest.raises(ValueError, match=r"the mask takes {'f': 4\.0}; the limits are {'f': 1\.0}"):
        BudgetCertificate.of(loose, ONE.bool(), {"f": 0.5})
    with pytest.raises(ValueError, match="give finite ones >= 0 of the budgets f"):
        BudgetCertificate.of(loose, ~ONE.bool(), {"f": -0.5})
    with pytest.raises(ValueError, match="give finite ones >= 0 of the budgets f"):
        BudgetCertificate.of(loose, ~ONE.bool(), {"g": 0.5})
    with pytest.raises(ValueError, match=r"nu 0\.5; give a finite number, and 0 without a count"):
        BudgetCertificate.of(loose, ~ONE.bool(), {"f": 0.5}, nu=0.5)
    with pytest.raises(ValueError, match="a problem without budgets"):
        certificate.check(Selection(ONE, 2), ONE.bool())
    with pytest.raises(ValueError, match="entries keep; give bound, gap"):
        BudgetCertificate.from_dict({"keep": 1})
