"""Masks with exact counts in every row and every column of a matrix, or of each of its tiles: transposable N:M.

Minimise sum_ij c_ij z_ij over z in {0,1}^(m x n) with r entries in every row and c in every column, r m = c n. The
constraints are those of a b-matching in a bipartite graph, totally unimodular, so that the linear program is tight.
Weak duality: for any u (rows) and v (columns), and any mask with these counts,

    c.z - D(u, v) = sum over kept (c - u - v)+  +  sum over pruned (u + v - c)+  >= 0.

Costs are rounded to integers of 40 bits, tile by tile, so that sums and comparisons are exact. Tiles of up to 4 x 4 are
compared with all patterns at once. Others begin with prices of the columns, from some sweeps of exact maximisation of D
over u and v in turn, at which every row takes its best r entries. Columns that then have too many hand one entry after
the other, along shortest paths of exchanges, to columns that have too few; no exchange along a cycle ever helps, which
is optimality. Tiles are worked on in batches, by operations on whole tensors.
Source: dossier paper-pins-sparsebert, section 5; Ahuja, Magnanti, Orlin (1993), "Network flows", section 9.7.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from argprune.solvers.groups import Blocks
from argprune.solvers.ilp.problem import (
    Solution,
    as_tensors,
    matched,
    objective_of,
    refuse_infinite,
    refuse_nan,
)

# Tiles up to this size are compared with all patterns: 2^16 masks are looked through once, at most 90 remain.
_ENUMERABLE = 4
# Entries of tiles that are worked on together.
_BATCH = 1 << 18
# Bits of the integers that stand for costs; longer than any path of them, and the sum of three is no overflow.
_BITS, _FAR = 40, 1 << 60
# Sweeps over the prices: large matrices, whose paths are long, deserve more.
_SWEEPS, _MOST_SWEEPS, _ENTRIES_A_SWEEP = 4, 32, 16


def solve_transposable(
    costs: Tensor | Sequence[Tensor], keep_rows: int, keep_columns: int, tile: int | None = None
) -> Solution:
    """The masks of least cost with exactly so many kept in each row and each column; exact, on the costs' device.

    costs: a matrix or a sequence of matrices, of one floating dtype and on one device, all finite. keep_rows: kept in
    every row; keep_columns: kept in every column; rows * keep_rows must equal columns * keep_columns. tile: the counts
    are those of every aligned tile x tile block, whose size must divide the matrices': keep_rows = keep_columns = N
    with tile = M is N:M in both directions. Which of several optimal masks is not specified.
    Status "optimal"; gap: what rounding costs to 40 bits can hide, 0 for float32 whose magnitudes in a tile are all
    within 2^16 of the largest. Certificate: a `TransposableCertificate`. Tiles of 8 x 8 take some 30 microseconds each
    on one core, a 256 x 256 matrix as a whole takes half a second, many equal costs several times as much.
    Raises ValueError for other arguments, NaN and infinities.

    >>> costs = torch.tensor([[0.0, 1.0], [1.0, 3.0]])
    >>> solve_transposable(costs, keep_rows=1, keep_columns=1).masks
    [tensor([[False,  True],
            [ True, False]])]
    """
    start = time.perf_counter()
    tensors = as_tensors(costs)
    refuse_nan(tensors)
    refuse_infinite(tensors)
    masks, rows, columns = [], [], []
    for cost in tensors:
        shape = _tile_shape(cost, keep_rows, keep_columns, tile)
        parts = [_solved(stack, keep_rows, keep_columns) for (stack,) in _batches(shape, cost)]
        kept, u, v = (torch.cat(tiles) for tiles in zip(*parts, strict=True))
        masks.append(_joined(kept, cost, shape))
        rows.append(u)
        columns.append(v)
    certificate = TransposableCertificate(keep_rows, keep_columns, tile, tuple(rows), tuple(columns), 0.0)
    gap = certificate.check(tensors, masks)
    certificate = TransposableCertificate(keep_rows, keep_columns, tile, tuple(rows), tuple(columns), gap)
    objective = objective_of(tensors, masks)
    seconds = time.perf_counter() - start
    return Solution(masks, objective, objective - gap, gap, "optimal", seconds, certificate)


@dataclass(frozen=True, eq=False)
class TransposableCertificate:
    """Dual values of rows and columns: they show in one pass how far, at most, masks are from optimal.

    keep_rows, keep_columns, tile: as for `solve_transposable`. rows, columns: for each matrix, (tiles, tile) float64,
    in units of the costs, tiles in row-major order; of the whole matrix, (1, rows) and (1, columns). gap: cost of the
    masks above the bound, 0 = optimal. For tiles of m x m, these are 2 / m numbers an entry.

    >>> costs = torch.tensor([[0.0, 1.0], [1.0, 3.0]])
    >>> certificate = solve_transposable(costs, 1, 1).certificate
    >>> certificate.check(costs, torch.eye(2, dtype=torch.bool))
    1.0
    """

    keep_rows: int
    keep_columns: int
    tile: int | None
    rows: tuple[Tensor, ...]
    columns: tuple[Tensor, ...]
    gap: float

    def check(self, costs: Tensor | Sequence[Tensor], masks: Tensor | Sequence[Tensor]) -> float:
        """The gap of the masks, computed from nothing but costs, masks and dual values; 0 = optimal.

        One pass, in batches of tiles, accumulated in float64. Raises ValueError for masks without the stated counts,
        for shapes that differ, NaN and infinities.
        """
        tensors, kept = matched("TransposableCertificate", costs, masks)
        if len(tensors) != len(self.rows):
            raise ValueError(f"TransposableCertificate: of {len(self.rows)} matrices; {len(tensors)} were given.")
        refuse_nan(tensors)
        refuse_infinite(tensors)
        gap = 0.0
        for index, (cost, mask, u, v) in enumerate(zip(tensors, kept, self.rows, self.columns, strict=True)):
            shape = _tile_shape(cost, self.keep_rows, self.keep_columns, self.tile)
            number = cost.numel() // max(shape[0] * shape[1], 1)
            if (u.shape, v.shape) != ((number, shape[0]), (number, shape[1])):
                raise ValueError(
                    f"TransposableCertificate: dual values of shapes {tuple(u.shape)} and {tuple(v.shape)} for matrix "
                    f"{index}; there are {number} tiles of {shape[0]} x {shape[1]}."
                )
            start = 0
            for values, flags in _batches(shape, cost, mask):
                wrong_rows, wrong_columns = flags.sum(2) != self.keep_rows, flags.sum(1) != self.keep_columns
                if bool(wrong_rows.any()) or bool(wrong_columns.any()):
                    raise ValueError(
                        f"TransposableCertificate: mask {index} does not keep {self.keep_rows} in every row and "
                        f"{self.keep_columns} in every column of its {shape[0]} x {shape[1]} tiles."
                    )
                part = slice(start, start + len(values))
                slack = values.double() - u[part].to(cost.device)[:, :, None] - v[part].to(cost.device)[:, None]
                gap += float(torch.where(flags, slack, -slack).clamp(min=0).sum())
                start += len(values)
        return gap

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and lists, for JSON: all dual values, tile by tile."""
        return {
            "keep_rows": self.keep_rows,
            "keep_columns": self.keep_columns,
            "tile": self.tile,
            "rows": [u.tolist() for u in self.rows],
            "columns": [v.tolist() for v in self.columns],
            "gap": self.gap,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TransposableCertificate:
        """Undo `to_dict`. Raises ValueError for a missing or an unknown entry."""
        names = cls.__dataclass_fields__.keys()
        if data.keys() != names:
            given, wanted = ", ".join(sorted(data)), ", ".join(sorted(names))
            raise ValueError(f"TransposableCertificate: entries {given}; give {wanted}.")
        return cls(
            keep_rows=int(data["keep_rows"]),
            keep_columns=int(data["keep_columns"]),
            tile=None if data["tile"] is None else int(data["tile"]),
            rows=tuple(torch.tensor(u, dtype=torch.float64) for u in data["rows"]),
            columns=tuple(torch.tensor(v, dtype=torch.float64) for v in data["columns"]),
            gap=float(data["gap"]),
        )


def _tile_shape(cost: Tensor, keep_rows: int, keep_columns: int, tile: int | None) -> tuple[int, int]:
    if cost.dim() != 2 or 0 in cost.shape:
        raise ValueError(f"transposable: costs of shape {tuple(cost.shape)}; give matrices that are not empty.")
    for name, count in (("keep_rows", keep_rows), ("keep_columns", keep_columns), ("tile", tile)):
        if isinstance(count, bool) or not isinstance(count, int | None) or (count is not None and count < 0):
            raise ValueError(f"transposable: {name} {count!r}; give an integer >= 0.")
    height, width = cost.shape
    if tile is not None:
        if tile < 1 or height % tile or width % tile:
            raise ValueError(
                f"transposable: tiles of {tile} do not divide a {height} x {width} matrix; give a common divisor."
            )
        height = width = tile
    if height * keep_rows != width * keep_columns or keep_rows > width:
        raise ValueError(
            f"transposable: keep_rows {keep_rows} and keep_columns {keep_columns} of {height} x {width}; "
            f"{height} rows and {width} columns must keep as many in all, at most every entry."
        )
    return height, width


def _batches(shape: tuple[int, int], *matrices: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Matrices of one shape as stacks of tiles, (tiles, rows, columns), some tiles at a time."""
    stacks = [Blocks(*shape).split(matrix).view(-1, *shape) for matrix in matrices]
    step = max(1, _BATCH // (shape[0] * shape[1]))
    yield from zip(*(torch.split(stack, step) for stack in stacks), strict=True)


def _joined(tiles: Tensor, cost: Tensor, shape: tuple[int, int]) -> Tensor:
    return Blocks(*shape).join(tiles.flatten(1), cost.shape).contiguous()


def _solved(stack: Tensor, keep_rows: int, keep_columns: int) -> tuple[Tensor, Tensor, Tensor]:
    """Masks of a stack of tiles, and float64 dual values of rows and columns."""
    costs, exponents = _integers(stack)
    if max(stack.shape[1:]) <= _ENUMERABLE and stack.shape[1] == stack.shape[2]:
        patterns = _patterns(keep_rows, stack.shape[1]).to(stack.device)
        # Sums of integers of 40 bits are exact in float64.
        best = (costs.flatten(1).double() @ patterns.double().t()).argmin(1)
        kept = patterns[best].view(stack.shape)
    else:
        kept = _balanced(costs, keep_rows, keep_columns)
    v, _, _ = _distances(costs, kept, torch.zeros_like(costs[:, 0]))
    u = (costs - v[:, None]).masked_fill(~kept, -_FAR).amax(2)
    if keep_rows == 0:
        u = (costs - v[:, None]).amin(2)
    return kept, _times_power(u, -exponents[:, None]), _times_power(v, -exponents[:, None])


def _integers(stack: Tensor) -> tuple[Tensor, Tensor]:
    """int64 close to 2^exponent times each tile's costs, of up to 40 bits, and the exponents, (tiles,)."""
    exponents = _BITS - torch.frexp(stack.abs().amax((1, 2)).double()).exponent
    return _times_power(stack, exponents[:, None, None]).round().long(), exponents


def _times_power(values: Tensor, exponents: Tensor) -> Tensor:
    # In two steps: 2^exponent itself can lie beyond float64 where the product does not.
    half = exponents // 2
    return values.double() * torch.exp2(half.double()) * torch.exp2((exponents - half).double())


@functools.cache
def _patterns(keep: int, size: int) -> Tensor:
    """All masks of a size x size tile with `keep` in every row and column, as rows of (patterns, size^2)."""
    bits = torch.arange(2 ** (size * size))[:, None] >> torch.arange(size * size - 1, -1, -1) & 1
    masks = bits.bool().view(-1, size, size)
    return masks[((masks.sum(1) == keep) & (masks.sum(2) == keep)).all(1)].flatten(1)


def _balanced(costs: Tensor, keep_rows: int, keep_columns: int) -> Tensor:
    """Optimal masks by shortest paths; costs: (tiles, rows, columns) int64."""
    kept = _best_of_rows(costs, _prices(costs, keep_rows, keep_columns), keep_rows)
    excess = kept.sum(1) - keep_columns
    result = kept.clone()
    tiles = torch.arange(len(costs), device=costs.device)
    while True:
        active = (excess > 0).any(1)
        result[tiles[~active]] = kept[~active]
        if not bool(active.all()):
            costs, kept, excess, tiles = costs[active], kept[active], excess[active], tiles[active]
        if len(tiles) == 0:
            return result
        lengths, row, column = _distances(costs, kept, torch.where(excess > 0, 0, _FAR))
        at = torch.where(excess < 0, lengths, 2 * _FAR).argmin(1)
        which = torch.arange(len(tiles), device=costs.device)
        excess[which, at] += 1
        # Back along each tile's path, from the column that gains an entry to the one that loses one.
        while bool((row[which, at] >= 0).any()):
            moving = row[which, at] >= 0
            tile, to, by, origin = (index[moving] for index in (which, at, row[which, at], column[which, at]))
            kept[tile, by, to] = True
            kept[tile, by, origin] = False
            at = at.masked_scatter(moving, origin)
        excess[which, at] -= 1


def _prices(costs: Tensor, keep_rows: int, keep_columns: int) -> Tensor:
    """Dual values of the columns, (tiles, columns), after some sweeps of maximisation over rows and columns in turn."""
    rows, columns = costs.shape[1:]
    v = torch.zeros_like(costs[:, 0])
    if 0 < keep_rows < columns:
        for _ in range(min(_MOST_SWEEPS, max(_SWEEPS, max(rows, columns) // _ENTRIES_A_SWEEP))):
            u = _middle(costs - v[:, None], keep_rows, 2)
            v = _middle(costs - u[:, :, None], keep_columns, 1)
    return v


def _middle(values: Tensor, keep: int, dim: int) -> Tensor:
    """Between the keep-th smallest and the next."""
    ordered = values.sort(dim=dim).values
    return (ordered.select(dim, keep - 1) + ordered.select(dim, keep)) // 2


def _best_of_rows(costs: Tensor, v: Tensor, keep: int) -> Tensor:
    """Masks of the `keep` entries of each row of least cost - v; of equal ones those in columns with fewer so far."""
    kept = torch.zeros(costs.shape, dtype=torch.bool, device=costs.device)
    counts = torch.zeros_like(v)
    rows = costs.shape[1]
    for row in range(rows):
        order = ((costs[:, row] - v) * (rows + 1) + counts).argsort(dim=1, stable=True)[:, :keep]
        kept[:, row].scatter_(1, order, True)
        counts += kept[:, row]
    return kept


def _distances(costs: Tensor, kept: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Lengths of the shortest paths of exchanges to each column, from columns of the given lengths (Bellman, Ford).

    An exchange in row i from column j to j' prunes (i, j), keeps (i, j') and has the length c_ij' - c_ij. Also the row
    and the column j of each path's last exchange, -1 where there is none. Masks must be optimal in their counts: a
    cycle of negative length would never end.
    """
    taken, free = costs.masked_fill(~kept, -_FAR), costs.masked_fill(kept, _FAR)
    row, column = torch.full_like(lengths, -1), torch.full_like(lengths, -1)
    while True:
        to_rows, origins = (lengths[:, None] - taken).min(2)
        to_columns, rows = (to_rows[:, :, None] + free).min(1)
        shorter = to_columns < lengths
        if not bool(shorter.any()):
            return lengths, row, column
        lengths = torch.where(shorter, to_columns, lengths)
        row = torch.where(shorter, rows, row)
        column = torch.where(shorter, origins.gather(1, rows), column)
