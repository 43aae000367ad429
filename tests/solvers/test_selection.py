"""Selection programs: closed forms against brute force, CP-SAT, SCIP, HiGHS and linear programs."""

from __future__ import annotations

import copy
import gc
import itertools
import math
import pickle
import sys
import weakref
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from argprune.solvers.groups import Blocks, Columns, Rows, Whole
from argprune.solvers.ilp import Certificate, Selection, Solution, exact, keep_largest, one_pass, solve
from argprune.solvers.prox.structured_sets import NM

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
SOLVERS: list[tuple[Any, dict[str, Any]]] = [
    ("exact", {"solver": "cp-sat"}),
    ("exact", {"solver": "gscip"}),
    ("exact", {"solver": "highs"}),
    ("relaxed", {"solver": "highs"}),
    ("relaxed", {"solver": "cvxpy"}),
]
integers = st.one_of(st.just(0.0), st.integers(-4, 4).map(float))
reals = st.floats(-100, 100, width=16)
special = st.sampled_from([0.0, -0.0, 1.0, -2.0, math.inf, -math.inf])


@st.composite
def costs_of(draw: st.DrawFn, values: st.SearchStrategy[float], most: int = 8, tensors: int = 4) -> list[Tensor]:
    dtype = draw(st.sampled_from(DTYPES))
    equal = draw(st.booleans()) and draw(st.booleans())
    fixed = st.just(draw(values)) if equal else values
    return [
        torch.tensor(part, dtype=dtype)
        for part in draw(st.lists(st.lists(fixed, max_size=most), min_size=1, max_size=tensors))
    ]


@st.composite
def problems(draw: st.DrawFn, values: st.SearchStrategy[float]) -> Selection:
    """One count, a count a tensor, a count under bounds, or a count a group."""
    costs = draw(costs_of(values))
    counts = [draw(st.integers(0, len(cost))) for cost in costs]
    kind = draw(st.sampled_from(["total", "tensors", "laminar", "groups"]))
    if kind == "tensors":
        return Selection(costs, counts)
    if kind == "laminar":
        least = [draw(st.integers(0, count)) for count in counts]
        most = [draw(st.integers(count, len(cost))) for count, cost in zip(counts, costs, strict=True)]
        return Selection(costs, sum(counts), least=least, most=most)
    if kind == "groups":
        costs = [cost[: len(cost) // 2 * 2].view(2, -1) for cost in costs]
        return Selection(costs, [draw(st.integers(0, cost.shape[1])) for cost in costs for _ in range(2)], Rows())
    return Selection(costs, draw(st.sampled_from([0, sum(counts), sum(map(len, costs))])))


@given(data=st.data(), costs=st.one_of(costs_of(reals), costs_of(integers), costs_of(special)))
@settings(max_examples=150, deadline=None)
def test_one_count_is_a_stable_sort(data: st.DataObject, costs: list[Tensor]) -> None:
    flat = torch.cat([cost.double() for cost in costs])
    keep = data.draw(st.integers(0, len(flat)))
    expected = torch.zeros(len(flat), dtype=torch.bool)
    expected[flat.sort(stable=True).indices[:keep]] = True
    solution = solve(Selection(costs, keep))
    assert torch.equal(torch.cat(solution.masks), expected)
    assert (solution.status, solution.gap) == ("optimal", 0)
    for mask, largest in zip(solution.masks, keep_largest([-cost for cost in costs], keep), strict=True):
        assert torch.equal(mask, largest)


@given(
    data=st.data(),
    costs=st.one_of(costs_of(reals), costs_of(integers), costs_of(special)),
    piece=st.integers(1, 9),
    sample=st.sampled_from([1, 4, 1 << 16]),
    crowd=st.sampled_from([0.3, 1.0]),
    threads=st.integers(1, 3),
)
@settings(max_examples=200, deadline=None)
def test_one_pass_is_the_same_whatever_its_sample(
    data: st.DataObject, costs: list[Tensor], piece: int, sample: int, crowd: float, threads: int
) -> None:
    keep = data.draw(st.integers(0, sum(map(len, costs))))
    problem = Selection(costs, keep)
    expected = solve(problem)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("LEAST", 0), ("_PIECE", piece), ("_SAMPLE", sample), ("_CROWD", crowd)):
            patch.setattr(one_pass, name, value)
        patch.setattr(torch, "get_num_threads", lambda: threads)
        solution = solve(problem)
        uncertified = solve(problem, certify=False)
        objective = solution.objective
    assert solution.certificate == expected.certificate
    assert uncertified.certificate is None
    for mask, other, same in zip(solution.masks, uncertified.masks, expected.masks, strict=True):
        assert torch.equal(mask, same)
        assert torch.equal(other, same)
    if math.isinf(expected.objective):
        assert objective == expected.objective
    assert objective == pytest.approx(expected.objective, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("size", [5, 1 << 17])
def test_the_objective_is_summed_when_read_and_lets_go_of_the_costs(size: int) -> None:
    def solved() -> tuple[Solution, weakref.ref[Tensor]]:
        cost = torch.arange(float(size))
        problem = Selection([cost[:2], cost[2:]], 4)
        return solve(problem), weakref.ref(problem.tensors[1])

    solution, cost = solved()
    gc.collect()
    assert cost() is not None
    assert solution.objective == solution.bound == 6
    gc.collect()
    assert cost() is None
    # What is left is a plain solution with all its fields.
    again = replace(solution, seconds=0.0)
    assert (again.objective, again.bound, again.gap, again.certificate) == (6, 6, 0, solution.certificate)


def test_an_unread_objective_survives_a_copy_and_no_change_of_its_costs() -> None:
    costs, message = torch.tensor([3.0, 1.0, 2.0]), "objective of costs or masks that were written to"
    for copied in (pickle.loads(pickle.dumps(solve(Selection(costs, 2)))), copy.deepcopy(solve(Selection(costs, 2)))):
        assert type(copied) is Solution
        assert (copied.objective, copied.bound, copied.masks[0].tolist()) == (3, 3, [False, True, True])
    read, mask_changed = (solve(Selection(costs.clone(), 2)) for _ in range(2))
    assert read.objective == 3
    read.masks[0].zero_()
    assert (read.objective, read.bound) == (3, 3)
    mask_changed.masks[0].zero_()
    changed = costs.clone()
    late = solve(Selection(changed, 2))
    changed.view(-1)[0] = -5.0
    for solution in (late, mask_changed):
        with pytest.raises(ValueError, match=message):
            _ = solution.objective
        with pytest.raises(ValueError, match=message):
            _ = solution.bound


def test_costs_that_do_not_count_changes_are_summed_at_once() -> None:
    with torch.inference_mode():
        costs = torch.tensor([3.0, 1.0, 2.0])
        solution = solve(Selection(costs, 2))
        costs[0] = -5.0
        assert (solution.objective, solution.bound) == (3, 3)


def large() -> dict[str, Tensor]:
    """Many entries, on some of which an evenly spaced sample says little or the wrong thing."""
    n = 1 << 18
    ramp = torch.arange(n, dtype=torch.float32)
    return {
        "normal": torch.randn(n, generator=torch.Generator().manual_seed(0)),
        "half": torch.randn(n, generator=torch.Generator().manual_seed(0)).half(),
        "bfloat16": torch.randn(n, generator=torch.Generator().manual_seed(0)).bfloat16(),
        "double, strided": torch.randn(2 * n, generator=torch.Generator().manual_seed(1), dtype=torch.float64)[::2],
        "ascending": ramp,
        "constant": torch.ones(n),
        "only the sampled entries are small": torch.where(ramp % 4 == 0, -ramp, ramp),
        "only the sampled entries are large": torch.where(ramp % 4 == 0, ramp + n, -ramp),
        "infinities": torch.where(ramp % 3 == 0, math.inf, -math.inf),
        "few infinities": torch.where(ramp < 100, math.inf, torch.where(ramp > n - 100, -math.inf, ramp)),
    }


@pytest.mark.parametrize("name", large())
def test_many_entries_are_a_stable_sort(name: str) -> None:
    costs = large()[name]
    problem_sizes = [1000, len(costs) - 1000]
    order = costs.double().sort(stable=True).indices
    for keep in (1, 50, len(costs) // 10, len(costs) // 2, len(costs) - 1):
        parts = list(torch.split(costs, problem_sizes))
        solution = solve(Selection(parts, keep))
        expected = torch.zeros(len(costs), dtype=torch.bool)
        expected[order[:keep]] = True
        assert torch.equal(torch.cat(solution.masks), expected)
        assert solution.certificate == Certificate.of(parts, solution.masks)
        assert solution.certificate.check(parts, solution.masks) == 0
        kept = costs[expected].double()
        # +inf outweighs -inf.
        total = math.inf if math.inf in kept else float(kept.sum())
        assert solution.objective == pytest.approx(total, rel=1e-12)


@given(problem=problems(integers))
@settings(max_examples=100, deadline=None)
def test_every_solver_finds_the_same_value_of_integers(problem: Selection) -> None:
    closed = solve(problem)
    for how, options in SOLVERS:
        other = solve(problem, how, **options)
        assert other.objective == closed.objective, (how, options)
        assert other.status == "optimal"
        assert other.bound == pytest.approx(closed.objective, abs=1e-5)
        assert other.gap == pytest.approx(0, abs=1e-5)
        if options["solver"] == "cp-sat":
            assert other.gap == 0


@given(problem=problems(special))
@settings(max_examples=25, deadline=None)
def test_infinities_go_last_and_first_in_every_solver(problem: Selection) -> None:
    closed = solve(problem)
    for how, options in (("exact", {"solver": "cp-sat"}), ("exact", {"solver": "highs"}), ("relaxed", {})):
        other = solve(problem, how, **options)  # type: ignore[arg-type]
        assert _kept(problem, other.masks) == _kept(problem, closed.masks)
        assert other.objective == closed.objective
        assert not math.isnan(other.bound)
        if closed.certificate is not None:
            assert closed.certificate.check(problem.tensors, other.masks) == 0


def _kept(problem: Selection, masks: list[Tensor]) -> list[float]:
    return sorted(float(c) for cost, mask in zip(problem.tensors, masks, strict=True) for c in cost[mask])


@given(
    costs=st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=10),
    scale=st.sampled_from([1e-300, 1e-9, 1.0, 1e300]),
    room=st.sampled_from([2.0**6, 2.0**20, exact._EXACT]),
    data=st.data(),
)
@settings(max_examples=60, deadline=None)
def test_bound_of_rounding_holds(costs: list[float], scale: float, room: float, data: st.DataObject) -> None:
    problem = Selection(scale * torch.tensor(costs, dtype=torch.float64), data.draw(st.integers(0, len(costs))))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exact, "_EXACT", room)
        rounded = solve(problem, "exact")
    optimum = solve(problem).objective
    tiny = 1e-15 * scale * 1e4
    assert rounded.bound <= optimum + tiny
    assert optimum <= rounded.objective + tiny
    assert rounded.gap == pytest.approx(rounded.objective - rounded.bound, abs=tiny)
    # What is hidden is at most half a unit an entry, of `room` / (entries x largest) units.
    largest = float(problem.tensors[0].abs().max())
    assert rounded.gap <= 4 * len(costs) ** 2 * largest / room + tiny


def test_integers_are_compared_exactly_up_to_fifty_bits() -> None:
    big = 2.0**49
    problem = Selection(torch.tensor([big + 1, big, big + 2], dtype=torch.float64), keep=1)
    solution = solve(problem, "exact")
    assert solution.masks[0].tolist() == [False, True, False]
    assert solution.gap == 0
    values, exponent, hidden = exact.integers(np.array([3.0, -4.0]), 1)
    assert (values.tolist(), exponent, hidden) == ([3, -4], 0, 0)


@given(data=st.data(), costs=costs_of(integers, most=5, tensors=3))
@settings(max_examples=150, deadline=None)
def test_bounds_of_tensors_against_every_split_of_the_count(data: st.DataObject, costs: list[Tensor]) -> None:
    ranges = [sorted(data.draw(st.tuples(*[st.integers(0, len(cost))] * 2))) for cost in costs]
    least, most = (list(side) for side in zip(*ranges, strict=True))
    keep = data.draw(st.integers(sum(least), sum(most)))
    ordered = [cost.double().sort().values for cost in costs]
    best = min(
        sum(float(cost[:count].sum()) for cost, count in zip(ordered, counts, strict=True))
        for counts in itertools.product(*(range(low, high + 1) for low, high in zip(least, most, strict=True)))
        if sum(counts) == keep
    )
    solution = solve(Selection(costs, keep, least=least, most=most))
    assert solution.objective == best
    counts = [int(mask.sum()) for mask in solution.masks]
    assert sum(counts) == keep
    assert all(low <= count <= high for low, count, high in zip(least, counts, most, strict=True))
    # Ties by position, in every tensor: its mask is the closed form of its own count.
    for mask, cost, count in zip(solution.masks, costs, counts, strict=True):
        assert torch.equal(mask, solve(Selection(cost, count)).masks[0])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("groups", [Rows(), Columns(), Blocks(1, 4), Blocks(2, 2), Whole()], ids=str)
def test_counts_of_groups_against_sorting_each(dtype: torch.dtype, groups: Any, monkeypatch: Any) -> None:
    generator = torch.Generator().manual_seed(3)
    costs = [torch.randint(-3, 4, shape, generator=generator).to(dtype) for shape in ((4, 8), (2, 4), (4, 4))]
    # Zeros of both signs: equal, whatever their bits.
    costs[2] *= 0.0
    monkeypatch.setattr(sys.modules["argprune.solvers.ilp.solve"], "_BATCH", 16)
    sizes = [groups.split(cost).shape for cost in costs]
    keep = [index % (size + 1) for rows, size in sizes for index in range(rows)]
    for counts in (keep, 2):
        problem = Selection(costs, counts, groups)
        masks = solve(problem).masks
        wanted = iter(keep)
        for cost, mask in zip(costs, masks, strict=True):
            assert mask.shape == cost.shape
            for row, kept in zip(groups.split(cost).tolist(), groups.split(mask).tolist(), strict=True):
                count = next(wanted) if counts is keep else 2
                order = sorted(range(len(row)), key=lambda index, row=row: (row[index], index))  # type: ignore[misc]
                assert [index for index, flag in enumerate(kept) if flag] == sorted(order[:count])


def test_n_of_m_is_the_projection_onto_n_of_m() -> None:
    w = torch.randn(6, 8, generator=torch.Generator().manual_seed(1))
    solution = solve(Selection(-w.square(), keep=2, groups=Blocks(1, 4)))
    assert torch.equal(solution.masks[0], NM(2, 4).select(w.abs()))


def test_strided_costs_and_scalars() -> None:
    costs = [torch.tensor([[1.0, 2.0, 1.0], [1.0, 1.0, 2.0]]).t(), torch.ones(4)[::2], torch.tensor(1.0)]
    flat = torch.cat([cost.flatten() for cost in costs])
    for keep in range(10):
        expected = torch.zeros(9, dtype=torch.bool)
        expected[flat.sort(stable=True).indices[:keep]] = True
        solution = solve(Selection(costs, keep))
        assert torch.equal(torch.cat([mask.flatten() for mask in solution.masks]), expected)
        assert [mask.shape for mask in solution.masks] == [cost.shape for cost in costs]


@pytest.mark.parametrize("solver", ["cp-sat", "highs"])
def test_out_of_time_is_said(solver: str) -> None:
    costs = torch.randn(3000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    solution = solve(Selection(costs, keep=1000), "exact", solver=solver, time_limit=1e-9)
    optimum = solve(Selection(costs, keep=1000)).objective
    if not solution.masks:
        assert (solution.status, solution.gap, solution.bound) == ("unknown", math.inf, -math.inf)
    else:
        assert solution.bound <= optimum + 1e-9 <= solution.objective + 2e-9


def test_missing_solvers_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Selection(torch.ones(3), keep=1)
    monkeypatch.setitem(sys.modules, "ortools.sat.python.cp_model", None)
    monkeypatch.setitem(sys.modules, "ortools.math_opt.python.mathopt", None)
    monkeypatch.setitem(sys.modules, "cvxpy", None)
    for how, solver in (("exact", "cp-sat"), ("exact", "gscip"), ("relaxed", "cvxpy")):
        with pytest.raises(ImportError, match=r"pip install 'argprune\[exact\]'"):
            solve(problem, how, solver=solver)  # type: ignore[arg-type]


ONE = torch.ones(4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Selection([], 0), "empty sequence"),
        (lambda: Selection(torch.ones(3, dtype=torch.int64), 1), "torch.int64"),
        (lambda: Selection([ONE, ONE.double()], 1), "torch.float64 on cpu beside torch.float32"),
        (lambda: Selection([[1.0]], 1), "costs: list"),  # type: ignore[list-item]
        (lambda: Selection(ONE, 5), "keep 5 of 4 entries; need 0 <= keep <= 4"),
        (lambda: Selection(ONE, -1), "keep -1"),
        (lambda: Selection(ONE, True), "keep True"),
        (lambda: Selection(ONE, 2.5), "keep 2.5"),  # type: ignore[arg-type]
        (lambda: Selection([ONE, ONE], [1]), "1 counts; give one for each of the 2 tensors"),
        (lambda: Selection([ONE, ONE], [1, 5]), "keep 5 of 4 entries of tensor 1"),
        (lambda: Selection([ONE, ONE], [1, 1], least=[0, 0]), "leaves nothing to bound"),
        (lambda: Selection([ONE, ONE], 2, least=[3, 0], most=[2, 4]), "least 3 and most 2 of tensor 0"),
        (lambda: Selection([ONE, ONE], 2, most=[5, 4]), "least 0 and most 5 of tensor 0 with 4 entries"),
        (lambda: Selection([ONE, ONE], 2, least=[2, 1]), "keep 2, but the bounds of the tensors allow 3 to 8"),
        (lambda: Selection([ONE, ONE], 7, most=[2, 4]), "allow 0 to 6"),
        (lambda: Selection(ONE.view(2, 2), 3, Rows()), "keep 3 in groups of 2"),
        (lambda: Selection(ONE.view(2, 2), [1, 1, 1], Rows()), "3 counts; give one for each of the 2 groups"),
        (lambda: Selection(ONE.view(2, 2), 1, Rows(), least=[1]), "without groups"),
        (lambda: Selection(ONE.view(2, 2), 1, Blocks(1, 3)), "does not divide"),
        (lambda: solve(Selection([ONE, ONE * math.nan], 1)), "tensor 1 contain NaN"),
        (lambda: solve(Selection(ONE, 1), "magic"), "how 'magic'; give one of closed-form"),  # type: ignore[arg-type]
        (lambda: solve(Selection(ONE, 1), solver="highs"), "closed-form has no option 'solver'"),
        (lambda: solve(Selection(ONE, 1), "exact", solver="glpk"), "solver 'glpk'"),
        (lambda: solve(Selection(ONE, 1), "exact", time_limit=0.0), "time_limit 0.0"),
        (lambda: solve(Selection(ONE, 1), "exact", workers=0), "workers 0"),
        (lambda: solve(Selection(ONE, 1), "relaxed", solver="glpk"), "solver 'glpk'"),
    ],
)
def test_refusals(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_groups_filled_up_with_zeros_are_refused() -> None:
    with pytest.raises(ValueError, match=r"fill a tensor of shape \(3, 4\) up with zeros.*give sizes that divide"):
        Selection(torch.ones(3, 4), keep=1, groups=Blocks(2, 2, pad=True))
