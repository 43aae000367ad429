"""Ranks of many matrices within one size: keep what is worth most.

    minimise over r_1 ... r_m    sum_l sum_{k dropped in l} worth_lk
    subject to                   sum_l min(r_l (i_l + o_l), i_l o_l) <= size

One level a matrix is chosen (`choose_levels`); from the rank on at which two factors take more than the matrix does, it
is kept whole, all components multiplied back into one matrix.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from argprune.solvers.ilp import Levels, choose_levels
from argprune.solvers.ilp.problem import Status
from argprune.solvers.low_rank.sizes import stored_size

# Halvings of the price's interval: as many as float64 can tell apart, about.
_HALVINGS = 60


@dataclass(frozen=True, eq=False)
class Ranks:
    """A rank for each matrix.

    ranks: components kept, or None: all of them, as one dense matrix. kept: for each matrix their int64 indices,
    ascending. size: of all matrices together, within the size asked for. objective: the worth of what is dropped.
    bound: no choice of ranks that was allowed drops less. gap: objective - bound. status: "optimal" where the gap is 0,
    else "feasible". seconds: taken.
    """

    ranks: list[int | None]
    kept: list[Tensor]
    size: int
    objective: float
    bound: float
    gap: float
    status: Status
    seconds: float


def allocate_ranks(
    values: Sequence[Tensor],
    shapes: Sequence[tuple[int, int]],
    size: int,
    multiple: int = 8,
    least: int = 1,
    slack: float = 0.002,
) -> Ranks:
    """Choose the rank of each matrix so that what is dropped is worth least, within a total size.

    values: for each matrix, (r,) floating, finite and >= 0: what each of its components is worth, additive, in one unit
    for all matrices; the squares of singular values, for a squared error. Those worth most are kept; of equal ones the
    first. shapes: (outputs, inputs) of each. size: most numbers that all may take together, as `stored_size` counts.
    multiple: ranks are multiples of it, which kernels like, except `least`, the smallest rank allowed (a matrix of
    fewer components keeps them all), and the full one. slack: where more than this share of the size would be left
    over, single components fill it, whatever the multiple.
    Raises ValueError for lists that do not match, numbers out of range, and a size that `least` exceeds.

    >>> import torch
    >>> worth = [torch.tensor([9.0, 4.0, 1.0]), torch.tensor([9.0, 5.0, 4.0])]
    >>> allocate_ranks(worth, [(4, 8), (4, 8)], size=36, multiple=1).ranks
    [1, 2]
    """
    start = time.perf_counter()
    _check(values, shapes, size, multiple, least, slack)
    orders = [value.detach().double().sort(descending=True, stable=True) for value in values]
    lost = [_lost(order.values) for order in orders]
    smallest = [min(least, len(value)) for value in values]
    needed = sum(stored_size(rank, *shape) for rank, shape in zip(smallest, shapes, strict=True))
    if needed > size:
        raise ValueError(f"allocate_ranks: size {size}, but rank {least} of every matrix takes {needed} already.")
    grids = [_grid(row, shape, multiple, low) for row, shape, low in zip(lost, shapes, smallest, strict=True)]
    found = _chosen(grids, lost, shapes, size)
    ranks = [grid[level] for grid, level in zip(grids, found.levels, strict=True)]
    bound = found.bound
    if size - found.latency > slack * size and multiple > 1:
        ranks = _filled(ranks, grids, lost, shapes, size)
        # The bound of the multiples does not hold for what lies between them.
        singles = [_grid(row, shape, 1, low) for row, shape, low in zip(lost, shapes, smallest, strict=True)]
        bound = _dual_bound(singles, lost, shapes, size)
    objective = math.fsum(row[rank] for row, rank in zip(lost, ranks, strict=True))
    bound = min(bound, objective)
    total = sum(stored_size(rank, *shape) for rank, shape in zip(ranks, shapes, strict=True))
    kept = [order.indices[:rank].sort().values for order, rank in zip(orders, ranks, strict=True)]
    shown = [None if rank * sum(shape) >= math.prod(shape) else rank for rank, shape in zip(ranks, shapes, strict=True)]
    status: Status = "optimal" if bound == objective else "feasible"
    return Ranks(shown, kept, total, objective, bound, objective - bound, status, time.perf_counter() - start)


def kept_whole(
    values: Sequence[Tensor], shapes: Sequence[tuple[int, int]], sparsity: float, multiple: int = 8
) -> list[bool]:
    """Which matrices the ranks keep whole whose relative errors, squared, are least in sum at a sparsity.

    values: of each matrix all its singular values, (min(shape),), plain or weighted by its inputs. shapes: (outputs,
    inputs) of each. sparsity: fraction of all numbers to save, in [0, 1). multiple: see `allocate_ranks`, whose errors
    are raised, also where values are missing. None is whole where not even rank 1 of all matrices fits.

    >>> import torch
    >>> kept_whole([torch.tensor([3.0, 3.0]), torch.tensor([9.0, 1.0])], [(2, 2), (2, 8)], 0.3, multiple=1)
    [True, False]
    """
    for index, (value, shape) in enumerate(zip(values, shapes, strict=True)):
        if len(value) != min(shape):
            raise ValueError(f"kept_whole: {len(value)} values of matrix {index} of {tuple(shape)}; give all of them.")
    dense = sum(math.prod(shape) for shape in shapes)
    size = dense - round(sparsity * dense)
    if size < sum(stored_size(1, *shape) for shape in shapes):
        return [False] * len(shapes)
    found = allocate_ranks([shares_of_squares(value) for value in values], shapes, size, multiple)
    return [rank is None for rank in found.ranks]


def shares_of_squares(values: Tensor) -> Tensor:
    """What each singular value (values, (r,) floating) has of the sum of all their squares, float64 (r,) on the CPU."""
    squares = values.detach().cpu().double().square()
    return squares / squares.sum().clamp_min(torch.finfo(squares.dtype).tiny)


def _check(
    values: Sequence[Tensor], shapes: Sequence[tuple[int, int]], size: int, multiple: int, least: int, slack: float
) -> None:
    if len(values) != len(shapes) or not values:
        raise ValueError(f"allocate_ranks: {len(values)} values, {len(shapes)} shapes; give one of each a matrix.")
    for name, number in (("size", size), ("multiple", multiple), ("least", least)):
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise ValueError(f"allocate_ranks: {name} {number}; it is a whole number, at least 1.")
    if not 0 <= slack < 1:
        raise ValueError(f"allocate_ranks: slack {slack}; it is a share of the size, in [0, 1).")
    for index, (value, shape) in enumerate(zip(values, shapes, strict=True)):
        if value.dim() != 1 or not 1 <= len(value) <= min(shape):
            raise ValueError(
                f"allocate_ranks: values of shape {tuple(value.shape)} for matrix {index} of {tuple(shape)}; give (r,) "
                f"with r from 1 to {min(shape)}."
            )
        if not bool((value.isfinite() & (value >= 0)).all()):
            raise ValueError(f"allocate_ranks: values of matrix {index} with a negative number, a NaN or an infinity.")


def _lost(worth: Tensor) -> list[float]:
    """What is lost at each rank from 0 on, of worth in descending order: sums of the tails, the smallest first."""
    return [*worth.flip(0).cumsum(0).flip(0).tolist(), 0.0]


def _grid(lost: Sequence[float], shape: tuple[int, int], multiple: int, least: int) -> list[int]:
    """The ranks to choose from, ascending: the last is full, and those before take fewer numbers than the matrix."""
    full = len(lost) - 1
    first = (least // multiple + 1) * multiple
    ranks = [least, *range(first, full, multiple)]
    return [*(rank for rank in ranks if rank < full and rank * sum(shape) < math.prod(shape)), full]


def _chosen(
    grids: Sequence[Sequence[int]], lost: Sequence[Sequence[float]], shapes: Sequence[tuple[int, int]], size: int
) -> Levels:
    costs = [[row[rank] for rank in grid] for row, grid in zip(lost, grids, strict=True)]
    sizes = [[float(stored_size(rank, *shape)) for rank in grid] for grid, shape in zip(grids, shapes, strict=True)]
    return choose_levels(costs, sizes, float(size))


def _filled(
    ranks: Sequence[int],
    grids: Sequence[Sequence[int]],
    lost: Sequence[Sequence[float]],
    shapes: Sequence[tuple[int, int]],
    size: int,
) -> list[int]:
    """The ranks with single components on top, each matrix staying below its next level."""
    finer = []
    for rank, grid, shape in zip(ranks, grids, shapes, strict=True):
        level = grid.index(rank)
        following = grid[level + 1] if level + 1 < len(grid) else rank + 1
        finer.append([r for r in range(rank, following) if r == rank or r * sum(shape) < math.prod(shape)])
    found = _chosen(finer, lost, shapes, size)
    return [grid[level] for grid, level in zip(finer, found.levels, strict=True)]


def _dual_bound(
    grids: Sequence[Sequence[int]], lost: Sequence[Sequence[float]], shapes: Sequence[tuple[int, int]], size: int
) -> float:
    """max over p >= 0 of -p size + sum_l min_r (lost_l(r) + p size_l(r)), which no choice within the size is below.

    The function is concave in the price p of a number, and its slope there is what the cheapest choice takes, less the
    size: halving the interval of prices finds where that changes sign.
    """
    costs = [np.asarray(row)[grid] for row, grid in zip(lost, grids, strict=True)]
    sizes = [
        np.asarray([stored_size(rank, *shape) for rank in grid]) for grid, shape in zip(grids, shapes, strict=True)
    ]

    def at(price: float) -> tuple[float, int]:
        chosen = [int((cost + price * taken).argmin()) for cost, taken in zip(costs, sizes, strict=True)]
        total = sum(int(taken[level]) for taken, level in zip(sizes, chosen, strict=True))
        value = math.fsum(float(cost[level]) for cost, level in zip(costs, chosen, strict=True))
        return value + price * (total - size), total

    low, high = 0.0, max(float(cost.max()) for cost in costs)
    best = at(low)[0]
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        value, total = at(middle)
        best = max(best, value)
        low, high = (middle, high) if total > size else (low, middle)
    return best
