"""Selection programs by solvers of integer programs: what the closed form is compared with."""

from __future__ import annotations

import datetime
import math
import time
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from argprune.solvers.ilp.items import ROUNDING, Items
from argprune.solvers.ilp.problem import Selection, Solution, Status, objective_of

Solver = Literal["cp-sat", "gscip", "highs"]

# Sums of integers up to this are exact in float64, which CP-SAT reports its bound in.
_EXACT = 2.0**52
# Solvers in floating point compare with absolute tolerances of about 1e-7; costs are brought near this.
_MAGNITUDE = 10


@dataclass(frozen=True)
class Program:
    """A selection program in numbers: minimise costs . z, low <= sum of z over rows[j] <= high, z in {0,1}^n.

    With budgets, z is over items, entries or groups, and weights @ z <= items.limits besides.
    costs: (n,) float64, all finite: infinities are replaced by numbers beyond all others, which leaves the same masks
    optimal, as only the order of the costs decides under counts (the masks are bases of a matroid, up to bounds).
    rows: of (indices, low, high); weights: (J, n).
    """

    costs: Any
    rows: list[tuple[Any, int, int]]
    problem: Selection
    items: Items | None = None
    weights: Any = None

    def masks(self, kept: Any) -> list[Tensor]:
        """A boolean (n,) array as masks shaped like the problem's costs."""
        if self.items is not None:
            return self.items.masks(self.problem, self.items.split(torch.from_numpy(kept)))
        parts = torch.split(torch.from_numpy(kept), [cost.numel() for cost in self.problem.tensors])
        return [part.view(cost.shape).to(cost.device) for part, cost in zip(parts, self.problem.tensors, strict=True)]

    def matrix(self) -> tuple[Any, Any, Any]:
        """Rows and budgets as a sparse matrix, their lower and their upper limits; budgets in units of `scale`."""
        from scipy import sparse

        owners = [np.full(len(indices), owner) for owner, (indices, _, _) in enumerate(self.rows)]
        columns = np.concatenate([np.empty(0, dtype=np.int64), *(indices for indices, _, _ in self.rows)])
        where = (np.concatenate([np.empty(0, dtype=np.int64), *owners]), columns)
        matrix = sparse.csr_array((np.ones(len(columns)), where), shape=(len(self.rows), len(self.costs)))
        low, high = (np.array([float(row[side]) for row in self.rows]) for side in (1, 2))
        if self.items is None:
            return matrix, low, high
        matrix = sparse.vstack([matrix, sparse.csr_array(self.weights / self.scale()[:, None])]).tocsr()
        limits = self.items.limits / self.scale()
        return matrix, np.append(low, np.full(len(limits), -math.inf)), np.append(high, limits)

    def scale(self) -> Any:
        """The largest weight of each budget, (J,)."""
        largest = self.weights.max(1, initial=0.0)
        return np.where(largest > 0, largest, 1.0)

    def most_kept(self) -> int:
        """How many entries any mask keeps, at most."""
        if self.items is not None:
            return len(self.costs) if self.items.keep is None else self.items.keep
        if self.problem.groups is None:
            return self.problem.limits()[0]
        return sum(int(counts.sum()) for counts in self.problem.group_counts())

    def broken(self, kept: Any) -> tuple[Any, int, int] | None:
        """A row that a mask beyond a limit does not meet, and all masks within the limits do; None for one of these.

        Some heaviest items of the mask do not fit together, nor do as many of these and of items as heavy: an extended
        cover of the budget.
        """
        if self.items is None:
            return None
        for weights, limit in zip(self.weights, self.items.limits, strict=True):
            indices = np.flatnonzero(kept)
            indices = indices[np.argsort(-weights[indices], kind="stable")]
            over = np.flatnonzero(weights[indices].cumsum() > limit * (1 + ROUNDING))
            if len(over):
                cover = indices[: over[0] + 1]
                heavy = np.flatnonzero(weights >= weights[cover].max())
                return np.union1d(cover, heavy), 0, len(cover) - 1
        return None


def program(problem: Selection) -> Program:
    """The problem in numbers on the CPU, for solvers that take small ones; costs must not be NaN."""
    if problem.knapsacks:
        return _budget_program(problem)
    costs = torch.cat([cost.flatten().double() for cost in problem.tensors]).cpu().numpy()
    finite = np.abs(costs[np.isfinite(costs)])
    beyond = 2 * float(finite.max(initial=0.0)) + 1
    if len(finite) < len(costs) and not math.isfinite(beyond):
        raise ValueError(f"costs up to {finite.max():g} beside infinities; scale them down to at most 1e307.")
    costs = np.clip(costs, -beyond, beyond)
    sizes = [cost.numel() for cost in problem.tensors]
    offsets = np.cumsum([0, *sizes])
    rows: list[tuple[Any, int, int]] = []
    if problem.groups is not None:
        for cost, counts, offset in zip(problem.tensors, problem.group_counts(), offsets, strict=False):
            stack = problem.groups.split(torch.arange(cost.numel()).view(cost.shape)).numpy() + offset
            rows += [(indices, int(count), int(count)) for indices, count in zip(stack, counts, strict=True)]
        return Program(costs, rows, problem)
    keep, least, most = problem.limits()
    rows.append((np.arange(len(costs)), keep, keep))
    for offset, size, low, high in zip(offsets, sizes, least, most, strict=False):
        if low > 0 or high < size:
            rows.append((np.arange(offset, offset + size), low, high))
    return Program(costs, rows, problem)


def _budget_program(problem: Selection) -> Program:
    items = Items.of(problem)
    costs = torch.cat([cost.double() for cost in items.costs]).cpu().numpy()
    weights = np.empty((len(items.limits), len(costs)))
    for row, parts in zip(weights, items.weights, strict=True):
        given = [torch.zeros_like(cost, dtype=torch.float64) + w for cost, w in zip(items.costs, parts, strict=True)]
        row[:] = torch.cat(given).cpu().numpy()
    rows = [] if items.keep is None else [(np.arange(len(costs)), items.keep, items.keep)]
    return Program(costs, rows, problem, items, weights)


def solve_exact(
    problem: Selection, solver: Solver | None = None, time_limit: float = 60.0, workers: int = 1
) -> Solution:
    """Solve by an integer program; for problems of up to some ten thousand entries, as a check of the other ways.

    solver: None is "highs" with budgets, else "cp-sat". "cp-sat" (OR-Tools) works on integers, as which weights of
    budgets must be given, up to a power of two. Costs are multiplied by a power of two and rounded; integers, and
    whatever else has few enough bits, are then compared exactly. What rounding can hide in the worst case is in the
    solution's bound and gap. "gscip" (SCIP by OR-Tools' MathOpt) and "highs" (by scipy) work in floating point; their
    bound is what they report. time_limit: seconds, > 0; workers: threads of OR-Tools' solvers.
    Status "optimal" where the solver proves it, up to the gap; "feasible" or "unknown" where time runs out.
    Raises ValueError for other arguments, ImportError without OR-Tools.
    """
    solvers = {"cp-sat": _cp_sat, "gscip": _gscip, "highs": _highs}
    if solver is None:
        solver = "highs" if problem.knapsacks else "cp-sat"
    if solver not in solvers:
        raise ValueError(f"exact: solver {solver!r}; give one of {', '.join(solvers)}.")
    if not 0 < time_limit < math.inf:
        raise ValueError(f"exact: time_limit {time_limit}; give seconds, finite and > 0.")
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
        raise ValueError(f"exact: workers {workers}; give a number of threads >= 1.")
    start = time.perf_counter()
    numbers = program(problem)
    status, kept, bound = solvers[solver](numbers, time_limit, workers)
    # Solvers in floating point have tolerances: what is beyond a limit all the same is ruled out.
    while kept is not None and (row := numbers.broken(kept)) is not None:
        numbers.rows.append(row)
        left = time_limit - (time.perf_counter() - start)
        status, kept, bound = solvers[solver](numbers, left, workers) if left > 0 else ("unknown", None, bound)
    seconds = time.perf_counter() - start
    if kept is None:
        return Solution([], math.inf, math.inf if status == "infeasible" else -math.inf, math.inf, status, seconds)
    masks = numbers.masks(kept)
    # The gap is that of the numbers the solver saw; with infinite costs, the objective has none of its own.
    gap = max(math.fsum(numbers.costs[kept]) - bound, 0.0)
    objective = objective_of(problem.tensors, masks)
    return Solution(masks, objective, objective - gap, gap, status, seconds)


def integers(costs: Any, most_kept: int) -> tuple[Any, int, float]:
    """Integers close to 2^exponent * costs, the exponent, and how much any mask's cost may exceed its scaled-back one.

    costs: (n,) float64, finite. Every mask keeps at most `most_kept`. For any mask z,
    costs . z >= 2^-exponent integers . z - error, where error is the sum of the `most_kept` largest roundings up.
    Integers are left alone where all sums stay exact; else the exponent is the largest at which they do.
    """
    largest = float(np.abs(costs).max(initial=0.0))
    room = _EXACT / max(len(costs), 1)
    if largest <= room and bool((costs == np.rint(costs)).all()):
        return costs.astype(np.int64), 0, 0.0
    exponent = math.frexp(room)[1] - 1 - math.frexp(largest)[1]
    scaled = np.rint(times_power(costs, exponent))
    up = np.maximum(times_power(scaled, -exponent) - costs, 0.0)
    return scaled.astype(np.int64), exponent, math.fsum(np.sort(up)[len(up) - most_kept :])


def near_one(costs: Any) -> tuple[Any, int]:
    """2^exponent * costs of a size that floating-point solvers' absolute tolerances suit, and the exponent."""
    exponent = _MAGNITUDE - math.frexp(float(np.abs(costs).max(initial=0.0)))[1]
    return times_power(costs, exponent), exponent


def load_ortools(module: str) -> Any:
    """A module of OR-Tools. Raises ImportError that names the extra to install."""
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError("exact solvers need OR-Tools: pip install 'argprune[exact]'.") from error


def times_power(values: Any, exponent: int) -> Any:
    # In two steps: 2^exponent itself can lie beyond float64 where the product does not.
    half = exponent // 2
    return np.ldexp(np.ldexp(values, half), exponent - half)


def _cp_sat(numbers: Program, time_limit: float, workers: int) -> tuple[Status, Any, float]:
    cp_model = load_ortools("ortools.sat.python.cp_model")
    values, exponent, hidden = integers(numbers.costs, numbers.most_kept())
    model = cp_model.CpModel()
    kept = [model.new_bool_var(f"z{index}") for index in range(len(values))]
    for indices, low, high in numbers.rows:
        model.add_linear_constraint(sum(kept[index] for index in indices), low, high)
    for weights, limit in _whole_budgets(numbers):
        model.add(cp_model.LinearExpr.weighted_sum(kept, weights.tolist()) <= limit)
    model.minimize(cp_model.LinearExpr.weighted_sum(kept, values.tolist()))
    solver = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds = time_limit
    solver.parameters.num_workers = workers
    code = solver.solve(model)
    names: dict[Any, Status] = {
        cp_model.OPTIMAL: "optimal",
        cp_model.FEASIBLE: "feasible",
        cp_model.INFEASIBLE: "infeasible",
    }
    status = names.get(code, "unknown")
    if status not in ("optimal", "feasible"):
        return status, None, -math.inf
    chosen = np.array([solver.boolean_value(variable) for variable in kept], dtype=bool)
    bound = math.ceil(solver.best_objective_bound) if status == "feasible" else int(values[chosen].sum())
    return status, chosen, float(times_power(float(bound), -exponent)) - hidden


def _whole_budgets(numbers: Program) -> list[tuple[Any, int]]:
    """Weights and limit of each budget as integers."""
    if numbers.items is None:
        return []
    result = []
    for knapsack, weights in zip(numbers.problem.knapsacks, numbers.weights, strict=True):
        # Halves, quarters and so on are integers in a smaller unit.
        powers = (power for power in range(53) if (np.ldexp(weights, power) % 1 == 0).all())
        power = next(powers, 0)
        whole = np.ldexp(weights, power)
        if (whole % 1).any() or whole.sum() > _EXACT:
            raise ValueError(
                f"exact: cp-sat takes integers, and weights of budget {knapsack.name!r} have too many digits, as "
                f"{weights[0]:.17g}. Round them, or give solver 'highs' or 'gscip'."
            )
        result.append((whole.astype(np.int64), math.floor(math.ldexp(knapsack.limit * (1 + ROUNDING), power))))
    return result


def _gscip(numbers: Program, time_limit: float, workers: int) -> tuple[Status, Any, float]:
    mathopt = load_ortools("ortools.math_opt.python.mathopt")
    costs, exponent = near_one(numbers.costs)
    model = mathopt.Model(name="selection")
    kept = [model.add_binary_variable(name=f"z{index}") for index in range(len(costs))]
    for indices, low, high in numbers.rows:
        model.add_linear_constraint(lb=low, ub=high, expr=mathopt.fast_sum(kept[index] for index in indices))
    if numbers.items is not None:
        for weights, limit, unit in zip(numbers.weights, numbers.items.limits, numbers.scale(), strict=True):
            terms = (weight * z for weight, z in zip((weights / unit).tolist(), kept, strict=True))
            model.add_linear_constraint(ub=float(limit / unit), expr=mathopt.fast_sum(terms))
    model.minimize(mathopt.fast_sum(cost * z for cost, z in zip(costs.tolist(), kept, strict=True)))
    parameters = mathopt.SolveParameters(
        time_limit=datetime.timedelta(seconds=time_limit),
        threads=workers,
        relative_gap_tolerance=0.0,
        absolute_gap_tolerance=0.0,
    )
    result = mathopt.solve(model, mathopt.SolverType.GSCIP, params=parameters)
    if not result.has_primal_feasible_solution():
        infeasible = result.termination.reason == mathopt.TerminationReason.INFEASIBLE
        return "infeasible" if infeasible else "unknown", None, -math.inf
    chosen = np.array(result.variable_values(kept), dtype=np.float64) > 0.5
    status: Status = "optimal" if result.termination.reason == mathopt.TerminationReason.OPTIMAL else "feasible"
    bound = float(result.termination.objective_bounds.dual_bound)
    return status, chosen, float(times_power(bound, -exponent))


def _highs(numbers: Program, time_limit: float, workers: int) -> tuple[Status, Any, float]:
    from scipy.optimize import Bounds, LinearConstraint, milp

    if len(numbers.costs) == 0:
        return "optimal", np.zeros(0, dtype=bool), 0.0
    costs, exponent = near_one(numbers.costs)
    matrix, low, high = numbers.matrix()
    result = milp(
        costs,
        integrality=np.ones(len(costs)),
        bounds=Bounds(0, 1),
        constraints=LinearConstraint(matrix, low, high),
        options={"time_limit": time_limit, "mip_rel_gap": 0.0},
    )
    if result.x is None:
        return "infeasible" if result.status == 2 else "unknown", None, -math.inf
    bound = result.fun if result.mip_dual_bound is None else result.mip_dual_bound
    return "optimal" if result.status == 0 else "feasible", result.x > 0.5, float(times_power(bound, -exponent))
