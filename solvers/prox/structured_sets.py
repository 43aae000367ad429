"""Sets of tensors with structured supports: N:M, so many per group, so many groups, so many per row and column.

All project onto a union of coordinate subspaces: the mask m maximises sum_i w_i^2 m_i over the allowed masks.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from argprune.solvers.groups import Blocks, Groups, Rows
from argprune.solvers.ilp.closed_form import keep_largest
from argprune.solvers.prox.sets import SupportSet, check_count, power_of_two
from argprune.solvers.registry import register

# Blocks up to this size are solved by enumeration: 2^16 masks are looked through once, a few hundred remain.
_ENUMERABLE = 4
# Blocks that are compared with all patterns at a time, which bounds memory to some tens of MB.
_BATCH = 1 << 14


@register("constraints", "k_per_group", examples=[{"keep": 2}, {"keep": 1, "groups": Blocks(2, 3)}, {"keep": 0}])
@dataclass(frozen=True)
class KPerGroup(SupportSet):
    """Tensors with at most `keep` nonzeros in each of `groups`; keep >= 0.

    The projection keeps the largest magnitudes of each group (largest w_i^2 / step_i for a tensor step), ties to the
    smaller flat index; exact for every step.
    """

    keep: int
    groups: Groups = field(default=Rows())

    def __post_init__(self) -> None:
        check_count("KPerGroup", "keep", self.keep, "the number of nonzeros in a group")

    def allows(self, support: Tensor) -> Tensor:
        """At most `keep` nonzeros in every group."""
        return (self.groups.split(support).sum(1) <= self.keep).all()

    def select(self, scores: Tensor) -> Tensor:
        """The `keep` largest of every group."""
        return self.groups.join(_largest_of_rows(self.groups.split(scores), self.keep), scores.shape)


@register("constraints", "k_groups", examples=[{"keep": 2}, {"keep": 3, "groups": Blocks(2, 2)}, {"keep": 0}])
@dataclass(frozen=True)
class KGroups(SupportSet):
    """Tensors that are zero in all but `keep` groups; keep >= 0.

    The projection keeps the groups of largest norm (largest sum of w_i^2 / step_i for a tensor step), ties to the
    earlier group; exact for every step. Norms are taken in float64 and cannot overflow.
    """

    keep: int
    groups: Groups = field(default=Rows())

    def __post_init__(self) -> None:
        check_count("KGroups", "keep", self.keep, "the number of groups")

    def allows(self, support: Tensor) -> Tensor:
        """At most `keep` groups hold a nonzero."""
        return self.groups.split(support).any(1).sum() <= self.keep

    def select(self, scores: Tensor) -> Tensor:
        """The `keep` groups of largest norm."""
        stack = self.groups.split(scores).double()
        scale = power_of_two(stack.amax(1))
        # The groups are of equal size, so that root mean squares order them as norms do, and they cannot overflow.
        sizes = (stack / scale[:, None]).square().mean(1).sqrt() * scale
        [kept] = keep_largest([sizes], min(self.keep, len(sizes)))
        return self.groups.join(kept[:, None].expand(stack.shape), scores.shape)


@register("constraints", "n_m", examples=[{"n": 1, "m": 2}, {"n": 1, "m": 3}, {"n": 2, "m": 4, "axis": 0}])
@dataclass(frozen=True)
class NM(SupportSet):
    """N:M sparsity: at most n nonzeros among entries j m, ..., j m + m - 1 along an axis, for every j.

    0 <= n <= m, m >= 1; axis: 1 along the rows of a matrix (its input units), 0 down its columns. The axis must exist
    and m divide its size, else ValueError. The projection keeps the n largest magnitudes of each m (largest
    w_i^2 / step_i for a tensor step), ties to the smaller index; exact for every step.
    """

    n: int
    m: int
    axis: int = 1

    def __post_init__(self) -> None:
        _check_n_m("NM", self.n, self.m)
        if self.axis not in (0, 1):
            raise ValueError(f"NM: axis {self.axis}; give 1 (along the rows) or 0 (down the columns).")

    def allows(self, support: Tensor) -> Tensor:
        """At most n nonzeros in every m."""
        return (self._split(support).sum(1) <= self.n).all()

    def select(self, scores: Tensor) -> Tensor:
        """The n largest of every m."""
        kept = _largest_of_rows(self._split(scores), self.n)
        return kept.reshape(scores.movedim(self.axis, -1).shape).movedim(-1, self.axis)

    def _split(self, w: Tensor) -> Tensor:
        if w.dim() <= self.axis or w.shape[self.axis] % self.m:
            raise ValueError(
                f"NM: {self.m} does not divide axis {self.axis} of a tensor of shape {tuple(w.shape)}. Give a divisor."
            )
        return w.movedim(self.axis, -1).reshape(-1, self.m)


@register("constraints", "row_column", examples=[{"per_row": 2, "per_column": 1}, {"per_row": 3, "per_column": 2}])
@dataclass(frozen=True)
class RowColumn(SupportSet):
    """Matrices with at most `per_row` nonzeros in each row and at most `per_column` in each column; both >= 0.

    The projection is a transportation problem, exact for every step up to rounding of the sum of squares: HiGHS finds a
    vertex, integral as the constraints are totally unimodular, and exchanges along cycles make up for its tolerance.
    On the CPU, whatever the device: a linear program of rows x columns variables, then at least one pass of
    (rows + columns)^2 operations; measured on one core, 0.02 s at 32 x 32, 0.2 s at 128 x 128, 2 s at 256 x 256.
    Closed form where one of the two counts does not bind, an assignment problem where both are 1. Which of several
    optimal masks is not specified. In a tensor step's metric, the sum of w_i^2 / step_i.
    """

    per_row: int
    per_column: int

    def __post_init__(self) -> None:
        check_count("RowColumn", "per_row", self.per_row, "the number of nonzeros in a row")
        check_count("RowColumn", "per_column", self.per_column, "the number of nonzeros in a column")

    def allows(self, support: Tensor) -> Tensor:
        """At most so many nonzeros in every row, and in every column."""
        _check_matrix("RowColumn", support)
        return ((support.sum(1) <= self.per_row).all()) & ((support.sum(0) <= self.per_column).all())

    def select(self, scores: Tensor) -> Tensor:
        """The mask of largest sum of squares."""
        _check_matrix("RowColumn", scores)
        height, width = scores.shape
        if self.per_column >= height or self.per_row == 0:
            return _largest_of_rows(scores, self.per_row)
        if self.per_row >= width or self.per_column == 0:
            return _largest_of_rows(scores.t(), self.per_column).t()
        return _transport(scores, self.per_row, self.per_column)


@register("constraints", "transposable_n_m", examples=[{"n": 1, "m": 2}, {"n": 0, "m": 2}])
@dataclass(frozen=True)
class TransposableNM(SupportSet):
    """Transposable N:M sparsity: at most n nonzeros in every row and every column of each aligned m x m block.

    0 <= n <= m, m >= 1; m must divide both sides of the matrix, else ValueError. W and its transpose are both N:M.
    The projection is exact for every step. Up to m = 4 all maximal patterns (at most 186) are compared at once, on the
    tensor's device: blocks x patterns x m^2 operations. Beyond, one transportation problem a block (see `RowColumn`),
    on the CPU, some ms each. Which of several optimal masks is not specified.
    Reference: Hubara et al. (2021), "Accelerated sparse neural training: N:M transposable masks", section 3.
    """

    n: int
    m: int

    def __post_init__(self) -> None:
        _check_n_m("TransposableNM", self.n, self.m)

    def allows(self, support: Tensor) -> Tensor:
        """At most n nonzeros in every row and column of every block."""
        blocks = self._split(support).reshape(-1, self.m, self.m)
        return (blocks.sum(1) <= self.n).all() & (blocks.sum(2) <= self.n).all()

    def select(self, scores: Tensor) -> Tensor:
        """The mask of largest sum of squares, block by block."""
        blocks = self._split(scores)
        if self.n == self.m:
            return torch.ones_like(scores, dtype=torch.bool)
        if self.m <= _ENUMERABLE:
            kept = _best_patterns(blocks, self.n, self.m)
        else:
            squares = blocks.reshape(-1, self.m, self.m)
            kept = torch.stack([_transport(block, self.n, self.n) for block in squares]).flatten(1)
        return Blocks(self.m, self.m).join(kept, scores.shape)

    def _split(self, w: Tensor) -> Tensor:
        if w.dim() != 2 or w.shape[0] % self.m or w.shape[1] % self.m:
            raise ValueError(
                f"TransposableNM: {self.m} does not divide both sides of a tensor of shape {tuple(w.shape)}. "
                "Give a divisor, and a matrix."
            )
        return Blocks(self.m, self.m).split(w)


def _check_n_m(owner: str, n: int, m: int) -> None:
    check_count(owner, "m", m, "the length of a run", least=1)
    check_count(owner, "n", n, "the number of nonzeros in a run")
    if n > m:
        raise ValueError(f"{owner}: n {n} of m {m}; give n <= m.")


def _check_matrix(owner: str, w: Tensor) -> None:
    if w.dim() != 2:
        raise ValueError(f"{owner}: a tensor of shape {tuple(w.shape)}; give a matrix.")


def _largest_of_rows(scores: Tensor, keep: int) -> Tensor:
    """Mask of the `keep` largest entries of every row of a matrix, ties to the smaller column."""
    order = scores.sort(dim=1, descending=True, stable=True).indices[:, :keep]
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, order, True)


@functools.cache
def _patterns(n: int, m: int) -> Tensor:
    """All maximal masks of an m x m block with at most n True in each row and column, as rows of (patterns, m^2).

    Maximal, not full: a mask with rows or columns of fewer than n may keep more than every mask of exactly n.
    """
    bits = torch.arange(2 ** (m * m))[:, None] >> torch.arange(m * m - 1, -1, -1) & 1
    masks = bits.bool().reshape(-1, m, m)
    rows, columns = masks.sum(2), masks.sum(1)
    feasible = (rows <= n).all(1) & (columns <= n).all(1)
    addable = ~masks & (rows < n)[:, :, None] & (columns < n)[:, None, :]
    return masks[feasible & ~addable.flatten(1).any(1)].flatten(1)


def _best_patterns(blocks: Tensor, n: int, m: int) -> Tensor:
    """The best pattern of every block, as a mask of the shape of `blocks`, (blocks, m^2)."""
    patterns = _patterns(n, m).to(blocks.device)
    energy = _energy(blocks, 1)
    best = torch.cat([(part @ patterns.double().t()).argmax(1) for part in torch.split(energy, _BATCH)])
    return patterns[best]


def _energy(scores: Tensor, *axes: int) -> Tensor:
    """Squares in float64, up to a factor for each slice along `axes` that keeps them in range."""
    scores = scores.double()
    return (scores / power_of_two(scores.amax(axes, keepdim=True))).square()


def _transport(scores: Tensor, per_row: int, per_column: int) -> Tensor:
    """The mask of at most `per_row` entries in each row, `per_column` in each column, with most energy."""
    energy = _energy(scores, 0, 1).cpu().numpy()
    kept = _vertex(energy, per_row, per_column)
    while (cycle := _improving_cycle(energy, kept, per_row, per_column)) is not None:
        kept[cycle] = ~kept[cycle]
    return torch.from_numpy(kept).to(scores.device)


def _vertex(energy: Any, per_row: int, per_column: int) -> Any:
    """A solution to the tolerance of the solver, as a boolean array."""
    from scipy import sparse
    from scipy.optimize import linear_sum_assignment, linprog

    height, width = energy.shape
    kept = np.zeros(energy.shape, dtype=bool)
    if per_row == per_column == 1:
        kept[linear_sum_assignment(energy, maximize=True)] = True
        return kept
    rows = sparse.kron(sparse.identity(height), np.ones((1, width)))
    columns = sparse.kron(np.ones((1, height)), sparse.identity(width))
    limits = np.repeat([float(per_row), float(per_column)], [height, width])
    # A simplex method: interior points would end between several optimal vertices.
    solved = linprog(-energy.ravel(), sparse.vstack([rows, columns]).tocsr(), limits, bounds=(0, 1), method="highs-ds")
    if solved.x is None:
        raise RuntimeError(f"HiGHS did not solve the transportation problem: {solved.message}")
    return solved.x.reshape(energy.shape) > 0.5


def _improving_cycle(energy: Any, kept: Any, per_row: int, per_column: int) -> Any:
    """Positions (rows, columns) of entries to exchange for more energy, or None where `kept` is optimal.

    Bellman and Ford's algorithm in the residual graph of rows, columns and one more node, at which paths begin and end
    that change how many entries are kept. An edge's weight is the energy gained by adding or dropping its entry.
    """
    height, width = energy.shape
    size = height + width + 1
    weights = np.full((size, size), -np.inf)
    weights[:height, height:-1] = np.where(kept, -np.inf, energy)
    weights[height:-1, :height] = np.where(kept, -energy, -np.inf).T
    weights[-1, :-1] = 0.0
    weights[:-1, -1] = 0.0
    weights[-1, :height][kept.sum(1) >= per_row] = -np.inf
    weights[height:-1, -1][kept.sum(0) >= per_column] = -np.inf
    # Smaller gains are rounding errors of the path lengths.
    least = 8 * np.finfo(np.float64).eps * energy.max()
    lengths, previous = np.zeros(size), np.full(size, -1)
    for _ in range(size):
        reached = lengths[:, None] + weights
        best = reached.argmax(0)
        longer = reached[best, np.arange(size)] > lengths + least
        if not longer.any():
            return None
        lengths[longer] = reached[best, np.arange(size)][longer]
        previous[longer] = best[longer]
    # Still longer after as many rounds as there are nodes: going back from there leads into a cycle.
    node = int(longer.argmax())
    for _ in range(size):
        node = int(previous[node])
    cycle = [node]
    while (node := int(previous[node])) != cycle[0]:
        cycle.append(node)
    edges = list(zip([*cycle[1:], cycle[0]], cycle, strict=True))
    if sum(weights[edge] for edge in edges) <= 0:
        return None
    entries = [(min(edge), max(edge) - height) for edge in edges if size - 1 not in edge]
    return tuple(np.array(entries).T)
