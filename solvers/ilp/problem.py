"""The 0-1 selection program, stated once for every way of solving it, and what a solution says about itself."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from argprune.solvers.groups import Groups
from argprune.solvers.ilp.budgets import Budgets, Knapsack, as_knapsacks

if TYPE_CHECKING:
    from argprune.solvers.ilp.certificate import Certificate

Status = Literal["optimal", "feasible", "infeasible", "unknown"]

_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
# Entries taken at a time: their temporaries stay in the cache of a CPU; other devices want fewer, larger calls.
_CHUNK, _DEVICE_CHUNK = 1 << 18, 1 << 24


@dataclass(frozen=True, eq=False)
class Selection:
    """Minimise the sum of kept costs subject to exact counts or budgets: which entries of one or many tensors to keep.

    costs: one tensor or a sequence of tensors of any shapes, of one dtype (float64, float32, bfloat16, float16) and on
    one device; never concatenated. The smaller, the rather kept; -inf before and +inf after all numbers.
    keep: an int, so many of all tensors together; a sequence of ints, so many of each tensor; with `groups`, an int
    for every group or a sequence of one int a group, the groups of all tensors in order.
    groups: how each tensor splits into groups, as `Blocks(1, m)` for N:M sparsity along the rows.
    least, most: with an int `keep` and no groups, bounds on each tensor's count, one int a tensor; either may be left
    out.
    budgets: (weights, limit) for each named budget: the weights of what is kept sum to at most the limit, up to 1e-12
    of it. Weights: a number for every entry of every tensor, or a sequence of one number or one tensor like its costs
    a tensor. Then `keep` may be None, or an int; and `groups` are kept together: a group costs the sum of its entries,
    weights are of groups, in tensors of shape (groups,), and `keep` counts groups.
    Raises ValueError for anything else and for counts that no mask meets; NaN is found when solving.
    Source: dossier paper-pins-sparsebert, sections 4 to 6.

    >>> Selection([torch.tensor([3.0, 1.0]), torch.tensor([2.0])], keep=2).total
    3
    >>> Selection([torch.ones(4), torch.ones(2)], budgets={"flops": ([10.0, 30.0], 60.0)}).knapsacks[0].weights
    (10.0, 30.0)
    """

    costs: Tensor | Sequence[Tensor]
    keep: int | Sequence[int] | None = None
    groups: Groups | None = None
    least: Sequence[int] | None = None
    most: Sequence[int] | None = None
    budgets: Budgets | None = None
    tensors: tuple[Tensor, ...] = field(init=False, repr=False)
    total: int = field(init=False)
    knapsacks: tuple[Knapsack, ...] = field(init=False, repr=False, default=())

    def __post_init__(self) -> None:
        tensors = as_tensors(self.costs)
        object.__setattr__(self, "tensors", tensors)
        object.__setattr__(self, "total", sum(cost.numel() for cost in tensors))
        if self.budgets is not None:
            self._check_budgets(self.budgets)
        elif self.keep is None:
            raise ValueError("Selection: neither keep nor budgets; give at least one of them.")
        elif self.groups is not None:
            if self.least is not None or self.most is not None:
                raise ValueError("Selection: least and most bound the tensors' counts; give them without groups.")
            self.group_counts()
        else:
            self._check_counts()

    def group_counts(self) -> list[Tensor]:
        """With groups: how many to keep of each group, an int64 tensor a tensor of costs."""
        if self.groups is None or self.keep is None:
            raise ValueError("Selection: group_counts of a problem without counts of groups; give groups and keep.")
        shapes = self._group_shapes(self.groups)
        for cost, (rows, size) in zip(self.tensors, shapes, strict=True):
            if rows * size != cost.numel():
                raise ValueError(
                    f"Selection: {self.groups} fill a tensor of shape {tuple(cost.shape)} up with zeros, which would "
                    f"be kept for free; give sizes that divide."
                )
        number = sum(rows for rows, _ in shapes)
        if isinstance(self.keep, int):
            counts = torch.tensor(_count("keep", self.keep)).expand(number)
        else:
            counts = torch.tensor(_counts("keep", self.keep, number, "group"), dtype=torch.int64)
        result = torch.split(counts, [rows for rows, _ in shapes])
        for part, (rows, size) in zip(result, shapes, strict=True):
            if rows and int(part.max()) > size:
                raise ValueError(f"Selection: keep {int(part.max())} in groups of {size}; need 0 <= keep <= {size}.")
        return list(result)

    def limits(self) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
        """Without groups: how many to keep in total, and the least and the most of each tensor."""
        if self.keep is None:
            raise ValueError("Selection: limits of a problem without counts; give keep.")
        sizes = tuple(cost.numel() for cost in self.tensors)
        if not isinstance(self.keep, int):
            counts = tuple(self.keep)
            return sum(counts), counts, counts
        return self.keep, tuple(self.least or (0,) * len(sizes)), tuple(self.most or sizes)

    def _group_shapes(self, groups: Groups) -> list[torch.Size]:
        # Meta tensors have the shapes and no data: even a split that has to copy costs nothing.
        return [groups.split(torch.empty(cost.shape, device="meta")).shape for cost in self.tensors]

    def _check_budgets(self, budgets: Budgets) -> None:
        if self.least is not None or self.most is not None:
            raise ValueError(
                "Selection: least and most beside budgets; a most is a budget of weight 1 in its tensor, 0 elsewhere."
            )
        if self.groups is None:
            numbers = [cost.numel() for cost in self.tensors]
        else:
            numbers = [shape[0] for shape in self._group_shapes(self.groups)]
        kind = "entries" if self.groups is None else "groups"
        if self.keep is not None and _count("keep", self.keep) > sum(numbers):
            raise ValueError(f"Selection: keep {self.keep} of {sum(numbers)} {kind}; need 0 <= keep <= {sum(numbers)}.")
        knapsacks = as_knapsacks(budgets, numbers, self.tensors, self.groups is not None)
        object.__setattr__(self, "knapsacks", knapsacks)

    def _check_counts(self) -> None:
        sizes = [cost.numel() for cost in self.tensors]
        assert self.keep is not None
        if not isinstance(self.keep, int):
            if self.least is not None or self.most is not None:
                raise ValueError("Selection: a keep for each tensor leaves nothing to bound; leave out least and most.")
            for index, (count, size) in enumerate(zip(_counts("keep", self.keep, len(sizes)), sizes, strict=True)):
                if count > size:
                    raise ValueError(
                        f"Selection: keep {count} of {size} entries of tensor {index}; need 0 <= keep <= {size}."
                    )
            return
        keep = _count("keep", self.keep)
        if keep > self.total:
            raise ValueError(f"Selection: keep {keep} of {self.total} entries; need 0 <= keep <= {self.total}.")
        least = [0] * len(sizes) if self.least is None else _counts("least", self.least, len(sizes))
        most = sizes if self.most is None else _counts("most", self.most, len(sizes))
        for index, (low, high, size) in enumerate(zip(least, most, sizes, strict=True)):
            if not low <= high <= size:
                raise ValueError(
                    f"Selection: least {low} and most {high} of tensor {index} with {size} entries; "
                    "need least <= most <= entries."
                )
        if not sum(least) <= keep <= sum(most):
            raise ValueError(
                f"Selection: keep {keep}, but the bounds of the tensors allow {sum(least)} to {sum(most)}. "
                "Give a count in between."
            )


@dataclass(frozen=True)
class Solution:
    """A mask, what it costs, and what is proved about it.

    masks: bool tensors (True = kept), shaped like the costs and on their device; empty where none was found.
    objective: the sum of kept costs, accumulated in float64; +inf where a kept cost is +inf, else -inf where one is
    -inf. bound: no mask costs less; gap: objective - bound, 0 where proved optimal. status: "optimal" means proved, up
    to `gap`, which holds what rounding can hide. seconds: wall time. certificate: anybody can check it in one pass.
    """

    masks: list[Tensor]
    objective: float
    bound: float
    gap: float
    status: Status
    seconds: float
    # The problem decides which kind, and callers know their problem: no type says that better than Any.
    certificate: Certificate | Any | None = None


def as_tensors(costs: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The costs as a tuple of detached tensors. Raises ValueError unless they share a float dtype and a device."""
    tensors = (costs,) if isinstance(costs, Tensor) else tuple(costs)
    if not tensors:
        raise ValueError("costs: an empty sequence; give at least one tensor.")
    for cost in tensors:
        if not isinstance(cost, Tensor) or cost.dtype not in _DTYPES:
            kind = cost.dtype if isinstance(cost, Tensor) else type(cost).__name__
            raise ValueError(f"costs: {kind}; give tensors of float64, float32, bfloat16 or float16.")
        if (cost.dtype, cost.device) != (tensors[0].dtype, tensors[0].device):
            raise ValueError(
                f"costs: {cost.dtype} on {cost.device} beside {tensors[0].dtype} on {tensors[0].device}; "
                "give one dtype and one device."
            )
    return tuple(cost.detach() for cost in tensors)


def matched(
    owner: str, costs: Tensor | Sequence[Tensor], masks: Tensor | Sequence[Tensor]
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Costs and masks as tuples. Raises ValueError, in the owner's name, unless these are bool and of one shape."""
    tensors = as_tensors(costs)
    kept = (masks,) if isinstance(masks, Tensor) else tuple(masks)
    if len(kept) != len(tensors):
        raise ValueError(f"{owner}: {len(kept)} masks for {len(tensors)} tensors of costs; give one each.")
    for mask, cost in zip(kept, tensors, strict=True):
        if mask.dtype != torch.bool or mask.shape != cost.shape:
            raise ValueError(
                f"{owner}: a {mask.dtype} mask of shape {tuple(mask.shape)} for costs of shape "
                f"{tuple(cost.shape)}; give torch.bool of the same shape."
            )
    return tensors, kept


def refuse_nan(tensors: Sequence[Tensor]) -> None:
    """Raise ValueError if a cost is NaN."""
    for index, cost in enumerate(tensors):
        # A sum without NaN had no NaN in it, and costs a tenth of a look at every entry.
        if bool(cost.sum().isnan()) and bool(cost.isnan().any()):
            raise ValueError(f"costs of tensor {index} contain NaN; every entry needs a cost that can be ordered.")


def refuse_infinite(tensors: Sequence[Tensor]) -> None:
    """Raise ValueError if a cost is infinite; there must be no NaN."""
    for index, cost in enumerate(tensors):
        if not bool(cost.sum().isfinite()) and bool(cost.isinf().any()):
            raise ValueError(f"costs of tensor {index} contain an infinity; where costs trade off, give finite ones.")


def chunks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Equal parts of tensors of one shape, flattened; views where the layout allows, of few entries on a CPU."""
    size = _CHUNK if tensors[0].device.type == "cpu" else _DEVICE_CHUNK
    yield from zip(*(torch.split(tensor.reshape(-1), size) for tensor in tensors), strict=True)


def objective_of(costs: Sequence[Tensor], masks: Sequence[Tensor]) -> float:
    """The sum of kept costs in float64, never NaN: +inf outweighs -inf, and both outweigh numbers."""
    parts = [pair for cost, mask in zip(costs, masks, strict=True) for pair in chunks(cost, mask)]
    result = _kept_sum(parts, 1.0)
    if math.isfinite(result):
        return result
    for infinity in (math.inf, -math.inf):
        if any(bool(((cost == infinity) & kept).any()) for cost, kept in parts):
            return infinity
    # All are finite, and a partial sum left float64's range: what the whole sum does is seen at a smaller scale.
    return _kept_sum(parts, 2.0**-64) * 2.0**64


def _kept_sum(parts: Sequence[tuple[Tensor, ...]], scale: float) -> float:
    sums = [(torch.where(kept, cost, 0.0) * scale).sum(dtype=torch.float64) for cost, kept in parts]
    return sum(float(value) for value in sums)


def _count(name: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"Selection: {name} {value}; a count is an integer >= 0.")
    return value


def _counts(name: str, values: Sequence[int], number: int, of: str = "tensor") -> list[int]:
    if not isinstance(values, Sequence) or isinstance(values, str):
        raise ValueError(f"Selection: {name} {values!r}; give integers >= 0, one for each of the {number} {of}s.")
    if len(values) != number:
        raise ValueError(f"Selection: {name} has {len(values)} counts; give one for each of the {number} {of}s.")
    return [_count(name, value) for value in values]
