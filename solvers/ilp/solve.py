"""One entry point for every way of solving a selection program, and the closed forms themselves."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import fields
from functools import cached_property, partial
from typing import Any, Literal

import torch
from torch import Tensor

from argprune.solvers.ilp import one_pass
from argprune.solvers.ilp.certificate import Certificate, of_one_count
from argprune.solvers.ilp.closed_form import kth_largest
from argprune.solvers.ilp.group_certificate import GroupCertificate
from argprune.solvers.ilp.problem import Selection, Solution, objective_of, refuse_infinite, refuse_nan
from argprune.solvers.ilp.rows import kept_counts, smallest_of_shards
from argprune.solvers.shards import ShardGroup

How = Literal["closed-form", "exact", "relaxed", "lagrangian", "dynamic"]

# Entries of groups that are sorted at a time, which bounds the memory that their int64 order takes.
_BATCH = 1 << 20


def solve(problem: Selection, how: How = "closed-form", **options: Any) -> Solution:
    """Solve a selection program; see `Solution` for what is proved.

    how: "closed-form" is exact for every `Selection` without budgets and takes a few passes over the costs, on their
    device. Ties go to the smaller position: earlier tensor, then smaller flat index; -0.0 equals 0.0. Option: certify
    (default True), whether to make the certificate, which takes up to two passes more. Objective and bound are added up
    when first read, and until then the solution holds the costs: see `LateSolution`.
    "exact" is a solver of integer programs, for comparison; options: see `solve_exact`. "relaxed" is the linear
    program; options: see `solve_relaxed`. Both copy the costs to float64 on the CPU.
    "lagrangian" is for budgets, however many the entries: their prices, the linear program's bound, and a mask close to
    it; options: see `solve_lagrangian`. "dynamic" is for tables of levels, which are no `Selection`: `choose_levels`.
    Raises ValueError for NaN, with budgets for infinite costs, for an unknown `how` or one that does not suit the
    problem, and for an unknown option.

    >>> solve(Selection([torch.tensor([3.0, 1.0]), torch.tensor([1.0, 2.0])], keep=2)).masks
    [tensor([False,  True]), tensor([ True, False])]
    """
    takes = {
        "closed-form": ("certify",),
        "exact": ("solver", "time_limit", "workers"),
        "relaxed": ("solver",),
        "lagrangian": ("tol", "num_steps"),
    }
    if how == "dynamic":
        raise ValueError(
            "solve: dynamic is for tables of levels, each with a cost and a latency, which a Selection cannot state. "
            "Give them to choose_levels."
        )
    if how not in takes:
        raise ValueError(f"solve: how {how!r}; give one of {', '.join(takes)}.")
    if problem.knapsacks and how == "closed-form":
        raise ValueError("solve: closed-form, but there is none for budgets; give exact, relaxed or lagrangian.")
    if not problem.knapsacks and how == "lagrangian":
        raise ValueError(
            "solve: lagrangian prices budgets, and the problem has none; give closed-form, which is exact."
        )
    for name in options:
        if name not in takes[how]:
            raise ValueError(f"solve: {how} has no option {name!r}; it takes {', '.join(takes[how])}.")
    start = time.perf_counter()
    if how == "closed-form":
        return _closed_form(problem, start, **options)
    refuse_nan(problem.tensors)
    if problem.knapsacks:
        refuse_infinite(problem.tensors)
    # Here, not above: these build on the closed form.
    if how == "exact":
        from argprune.solvers.ilp.exact import solve_exact

        return solve_exact(problem, **options)
    if how == "lagrangian":
        from argprune.solvers.ilp.lagrangian import solve_lagrangian

        return solve_lagrangian(problem, **options)
    from argprune.solvers.ilp.relaxed import solve_relaxed

    return solve_relaxed(problem, **options)


class LateSolution(Solution):
    """A solution proved optimal whose objective and bound, one and the same sum, are added up when first read.

    The masks are the answer and the certificate its proof; the sum can take longer than both. Until it is read, the
    costs stay in memory as long as the solution does. It is of the costs and masks as they were solved: where torch has
    written to one of them since, reading it raises ValueError (what NumPy writes goes unnoticed). A copy, and what is
    pickled, holds the sum and no costs.
    """

    @classmethod
    def of(
        cls, costs: Sequence[Tensor], masks: list[Tensor], seconds: float, certificate: Certificate | Any | None
    ) -> LateSolution:
        """The solution with these masks."""
        made = object.__new__(cls)
        made.__dict__.update(masks=masks, gap=0.0, status="optimal", seconds=seconds, certificate=certificate)
        if any(tensor.is_inference() for tensor in (*costs, *masks)):
            # These do not count what is written to them.
            made.__dict__["objective"] = _objective(costs, masks)
        else:
            made.__dict__["_solved"] = [(tensor, tensor._version) for tensor in (*costs, *masks)]
        return made

    @cached_property
    def objective(self) -> float:
        """The sum of kept costs."""
        solved = self.__dict__["_solved"]
        if any(tensor._version != version for tensor, version in solved):
            raise ValueError(
                "Solution: objective of costs or masks that were written to after they were solved; read it before."
            )
        tensors = [tensor for tensor, _ in solved]
        number = len(tensors) // 2
        result = _objective(tensors[:number], tensors[number:])
        del self.__dict__["_solved"]
        return result

    @cached_property
    def bound(self) -> float:
        """The objective: no mask costs less."""
        return self.objective

    def __reduce__(self) -> tuple[Any, ...]:
        return Solution, tuple(getattr(self, one.name) for one in fields(self))


def optimal_masks(problem: Selection) -> list[Tensor]:
    """The closed form's masks alone. Costs must not be NaN: nothing is checked."""
    if problem.groups is None:
        return smallest_within(problem.tensors, *problem.limits())
    split, join = problem.groups.split, problem.groups.join
    return [
        join(_smallest_of_rows(split(cost), counts.to(cost.device)), cost.shape).contiguous()
        for cost, counts in zip(problem.tensors, problem.group_counts(), strict=True)
    ]


def smallest(costs: Sequence[Tensor], keep: int) -> list[Tensor]:
    """Masks of the `keep` smallest costs over all tensors; ties go to the earlier tensor, then the smaller flat index.

    The k-th smallest of n is the (n - k + 1)-th largest: nothing is negated, which would copy the costs, and
    -0.0 stays equal to 0.0. costs: as for `Selection`, no NaN (not checked); 0 <= keep <= n.
    Source: dossier paper-pins-sparsebert, sections 4.1 and 4.4.
    """
    chosen = _choose(costs, keep)
    return _up_to_threshold(costs, keep) if chosen is None else chosen.masks


def _up_to_threshold(costs: Sequence[Tensor], keep: int) -> list[Tensor]:
    """`smallest` where one pass does not do: on any device, with a pass for each comparison."""
    total = sum(cost.numel() for cost in costs)
    if keep in (0, total):
        return [torch.full(cost.shape, keep > 0, dtype=torch.bool, device=cost.device) for cost in costs]
    threshold = kth_largest(costs, total - keep + 1)
    masks = [(cost <= threshold).contiguous() for cost in costs]
    surplus = sum(int(mask.count_nonzero()) for mask in masks) - keep
    # More entries than wanted share the threshold's value: the last of them are pruned.
    for mask, cost in zip(reversed(masks), reversed(costs), strict=True):
        if surplus == 0:
            break
        ties = (cost == threshold).flatten().nonzero().flatten()[-surplus:]
        mask.view(-1)[ties] = False
        surplus -= len(ties)
    return masks


def smallest_within(
    costs: Sequence[Tensor],
    keep: int,
    least: Sequence[int],
    most: Sequence[int],
    group: ShardGroup | None = None,
) -> list[Tensor]:
    """Masks of least cost with `keep` kept in total and least_l to most_l in tensor l; exact, ties as in `smallest`.

    Clamp and re-select. Order all entries by (cost, position); call n_l(p) the entries of tensor l among the first p.
    The optimal mask takes the first clamp(n_l(p*), least_l, most_l) of each tensor, where p* makes these sum to `keep`:
    a tensor's sorted costs increase, so its best cost is convex in its count, and greedy is optimal for a sum of
    convex functions under bounds and a total. The clamped counts' sum N(p) climbs in steps of 0 or 1 from sum(least)
    to sum(most), so p* exists. At p = keep, N(p) = keep + deficit - excess of the plain selection's counts. Where
    deficit >= excess, some p* <= p, and tensors at or below `least` at p are so at p*: their count is least_l. Else
    some p* >= p, and those at or above `most` have most_l. That settles at least one tensor (deficit or excess is
    positive); the others are the same problem again, so that there are at most as many rounds as tensors.
    group: where every process holds some rows of each tensor, these processes; all must call this.
    Source: dossier paper-pins-sparsebert, section 5, laminar family.
    """
    select = smallest if group is None else partial(smallest_of_shards, group=group)
    masks: list[Tensor | None] = [None] * len(costs)
    # Tensors with a count of their own need no round.
    settled = {index: low for index, (low, high) in enumerate(zip(least, most, strict=True)) if low == high}
    while True:
        for index, count in settled.items():
            [masks[index]] = select([costs[index]], count)
            keep -= count
        free = [index for index, mask in enumerate(masks) if mask is None]
        if not free:
            break
        selected = select([costs[index] for index in free], keep)
        counts = dict(zip(free, kept_counts(selected, group), strict=True))
        deficit = sum(max(least[index] - count, 0) for index, count in counts.items())
        excess = sum(max(count - most[index], 0) for index, count in counts.items())
        if deficit == excess == 0:
            for index, mask in zip(free, selected, strict=True):
                masks[index] = mask
            break
        if deficit >= excess:
            settled = {index: least[index] for index, count in counts.items() if count <= least[index]}
        else:
            settled = {index: most[index] for index, count in counts.items() if count >= most[index]}
    return [mask for mask in masks if mask is not None]


def _smallest_of_rows(stack: Tensor, counts: Tensor) -> Tensor:
    """Mask of the counts_g smallest entries of each row g, ties to the smaller column; in batches of rows."""
    rows, size = stack.shape
    mask = torch.empty(stack.shape, dtype=torch.bool, device=stack.device)
    columns = torch.arange(size, device=stack.device)
    step = max(1, _BATCH // max(size, 1))
    for start in range(0, rows, step):
        part = slice(start, start + step)
        chosen = columns < counts[part, None]
        # Adding 0 turns -0.0 into 0.0, which sorts by bit pattern would tell apart.
        order = (stack[part] + 0.0).sort(dim=1, stable=True).indices
        mask[part] = torch.empty_like(chosen).scatter_(1, order, chosen)
    return mask


def _choose(costs: Sequence[Tensor], keep: int) -> one_pass.Chosen | None:
    total = sum(cost.numel() for cost in costs)
    if costs[0].device.type != "cpu" or total < one_pass.LEAST or keep in (0, total):
        return None
    return one_pass.choose(costs, keep)


def _objective(costs: Sequence[Tensor], masks: Sequence[Tensor]) -> float:
    if costs[0].device.type == "cpu" and sum(cost.numel() for cost in costs) >= one_pass.LEAST:
        result = one_pass.kept_sum(costs, masks)
        if math.isfinite(result):
            return result
    return objective_of(costs, masks)


def _closed_form(problem: Selection, start: float, certify: bool = True) -> Solution:
    bounded = problem.groups is not None or problem.least is not None or problem.most is not None
    one_count = isinstance(problem.keep, int) and not bounded
    chosen = _choose(problem.tensors, problem.limits()[0]) if one_count else None
    if chosen is not None:
        masks = chosen.masks
    else:
        # The one pass finds NaN on its way.
        refuse_nan(problem.tensors)
        masks = _up_to_threshold(problem.tensors, problem.limits()[0]) if one_count else optimal_masks(problem)
    certificate: Certificate | GroupCertificate | None = None
    if certify and problem.groups is not None:
        certificate = GroupCertificate.of(problem.tensors, masks, problem.groups)
    elif certify and chosen is not None and chosen.smallest_pruned is not None:
        sizes = [cost.numel() for cost in problem.tensors]
        keep, edge, above = problem.limits()[0], chosen.largest_kept, chosen.smallest_pruned
        certificate = of_one_count(sizes, keep, edge, above, chosen.ties)
    elif certify:
        per_tensor = not isinstance(problem.keep, int)
        certificate = Certificate.of(
            problem.tensors, masks, per_tensor=per_tensor, least=problem.least, most=problem.most
        )
    return LateSolution.of(problem.tensors, masks, time.perf_counter() - start, certificate)
