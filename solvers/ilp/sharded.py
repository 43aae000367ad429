"""The closed form of one count over processes, each of which holds a part of the costs.

min sum_i c_i m_i subject to sum_i m_i = k, where i runs over the entries of all ranks. The costs stay where they are:
a sample of them brackets the threshold, counts add up over the ranks, and digits of what lies inside the bracket are
counted until one value is left. What is sent does not grow with the costs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from argprune.solvers.ilp import digits, one_pass
from argprune.solvers.ilp.bracket import bracket, evenly, wide
from argprune.solvers.ilp.problem import Solution, as_tensors, objective_of, refuse_nan
from argprune.solvers.ilp.threshold import certificate_at, combined, masks_up_to, split_ties, weigh
from argprune.solvers.sampling import stride_of

T = TypeVar("T")


def solve_sharded(costs: Tensor | Sequence[Tensor], keep: int, group: dist.ProcessGroup | None = None) -> Solution:
    """Keep the `keep` smallest costs of all processes of a group together; every one of them must call this.

    costs: of this process, as for `Selection`, of one dtype on all; a sequence may be empty. keep: of all the costs,
    0 <= keep <= their number, the same on all. group: of torch.distributed, default all processes; with NCCL, each
    needs its CUDA device to be set. Ties go to the smaller rank, then the earlier tensor, then the smaller flat index:
    the masks are those that `solve` makes of all costs in order of rank.
    Returns the masks of this process's costs; objective and certificate are of all costs and the same on all.
    Raises ValueError on every process for what is wrong on any: NaN, types that differ, a count out of range.
    Source: dossier paper-pins-sparsebert, section 4.
    """
    start = time.perf_counter()
    share = _Share(costs, keep, group)
    k = max(keep, 1)
    if not share.total:
        certificate = certificate_at(share.sizes, 0, 0.0, math.inf, 0)
        masks = [torch.zeros(cost.shape, dtype=torch.bool, device=cost.device) for cost in share.tensors]
        return Solution(masks, 0.0, 0.0, 0.0, "optimal", time.perf_counter() - start, certificate)
    seen = share.look(k)
    if seen is None:
        parts, dtype, before, sum_before = share.flat, share.dtype, 0, 0.0
    else:
        parts, dtype = [torch.from_numpy(seen.values)], wide(share.dtype)
        before, sum_before = seen.below, seen.total
    rank = k - sum(share.gather(before))
    threshold = digits.narrow(lambda prefix: share.add_up(digits.count(parts, prefix)), dtype, rank).low
    weighed = weigh(parts, threshold)
    everyone = share.gather((weighed, before + weighed.below))
    ties = [of_rank.ties for of_rank, _ in everyone]
    ties_kept = split_ties(ties, keep - sum(below for _, below in everyone))
    above = min(of_rank.next_above for of_rank, _ in everyone)
    if sum(ties_kept) < sum(ties):
        above = threshold
    elif seen is not None and math.isinf(above):
        # What follows the threshold may lie outside of the bracket.
        above = min(share.gather(weigh(share.flat, threshold).next_above))
    own = ties_kept[share.rank]
    masks = masks_up_to(share.tensors, threshold, own) if seen is None else seen.masks(share.tensors, threshold, own)
    objective = sum_before + weighed.total + (own * threshold if own else 0.0)
    if not math.isfinite(objective):
        objective = objective_of(share.tensors, masks)
    objective = combined(share.gather(objective))
    certificate = certificate_at(share.sizes, keep, threshold, above, sum(ties))
    return Solution(masks, objective, objective, 0.0, "optimal", time.perf_counter() - start, certificate)


@dataclass(frozen=True)
class _Holding:
    """What a process says of its costs before any are looked at; error: what is wrong with them, None for nothing."""

    sizes: tuple[int, ...]
    kind: tuple[torch.dtype, str] | None
    keep: Any
    error: str | None


class _Share:
    """The costs of this process among those of all, and what it tells the others; each method is called by all."""

    def __init__(self, costs: Tensor | Sequence[Tensor], keep: int, group: dist.ProcessGroup | None) -> None:
        self._group = group
        self.rank = dist.get_rank(group)
        self.tensors: tuple[Tensor, ...] = ()
        error = None
        try:
            # None at all is fine here, unlike in a `Selection`.
            self.tensors = as_tensors(costs) if isinstance(costs, Tensor) or len(costs) else ()
            if not isinstance(keep, int) or isinstance(keep, bool) or keep < 0:
                raise ValueError(f"keep {keep!r}; a count is an integer >= 0.")
        except ValueError as problem:
            error = str(problem)
        self.flat = [cost.reshape(-1) for cost in self.tensors]
        own = tuple(len(part) for part in self.flat)
        kind = (self.tensors[0].dtype, self.tensors[0].device.type) if self.tensors else None
        holdings = self.gather(_Holding(own, kind, keep, error))
        _check(holdings)
        self.dtype = next(one.kind[0] for one in holdings if one.kind is not None)
        self._all_on_cpu = all(one.kind is None or one.kind[1] == "cpu" for one in holdings)
        self.sizes = tuple(size for one in holdings for size in one.sizes)
        self.total = sum(self.sizes)
        self._offset = sum(sum(one.sizes) for one in holdings[: self.rank])

    def gather(self, value: T) -> list[T]:
        """What each process gave, in order of rank."""
        result: list[Any] = [None] * dist.get_world_size(self._group)
        dist.all_gather_object(result, value, self._group)
        return result

    def add_up(self, counts: Tensor) -> Tensor:
        """The sum of all processes' counts, on the CPU."""
        device = "cuda" if dist.get_backend(self._group) == "nccl" else "cpu"
        counts = counts.to(device)
        dist.all_reduce(counts, group=self._group)
        return counts.cpu()

    def look(self, k: int) -> one_pass.Looks | None:
        """One pass with a bracket from everybody's sample; None, on all processes, where that does not settle it."""
        seen = None
        if self._all_on_cpu:
            stride = stride_of(self.total, one_pass.sample_size(self.total))
            sample = np.concatenate(self.gather(evenly(self.flat, stride, -self._offset % stride)))
            low, high = bracket(sample, k, self.total)
            # Where the ranks differ, all of the bracket may be on one of them.
            seen = one_pass.look(self.flat, low, high, one_pass.LEAST + int(one_pass._CROWD * sum(map(len, self.flat))))
        error = None
        if seen is None or seen.nan:
            try:
                refuse_nan(self.tensors)
            except ValueError as problem:
                error = str(problem)
        counts = None if seen is None else (seen.below, len(seen.values))
        everyone = self.gather((counts, error))
        _refuse([error for _, error in everyone])
        found = [counts for counts, _ in everyone if counts is not None]
        below, inside = (sum(column) for column in zip(*found, strict=True)) if found else (0, 0)
        return seen if len(found) == len(everyone) and below < k <= below + inside else None


def _check(holdings: Sequence[_Holding]) -> None:
    _refuse([one.error for one in holdings])
    keeps = {one.keep for one in holdings}
    if len(keeps) > 1:
        raise ValueError(f"keep {', '.join(map(str, sorted(keeps)))} on different ranks; give all of them the same.")
    kinds = {one.kind[0] for one in holdings if one.kind is not None}
    if not kinds:
        raise ValueError("costs: no rank holds any tensor; give at least one on some rank.")
    if len(kinds) > 1:
        raise ValueError(f"costs: {', '.join(sorted(map(str, kinds)))} on different ranks; give all of them one dtype.")
    total = sum(sum(one.sizes) for one in holdings)
    [keep] = keeps
    if keep > total:
        raise ValueError(f"keep {keep} of {total} entries on all ranks; need 0 <= keep <= {total}.")


def _refuse(errors: Sequence[str | None]) -> None:
    for rank, error in enumerate(errors):
        if error is not None:
            raise ValueError(f"rank {rank}: {error}")
