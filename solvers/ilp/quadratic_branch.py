"""Branch and bound for the 0-1 quadratic program with refit (best-subset selection in the Hessian's metric).

A node keeps some weights and prunes others. Kept ones drop out of M = H^-1, pruned ones are swept out of it, so that a
node is the same problem again, smaller, plus what the pruned ones cost already: alone a bound, since keeping more never
hurts. The perspective relaxation of the rest, warm-started from the parent's split and shares, does the work; weights
whose slope alone lifts its bound above the incumbent are fixed. Nodes are taken best first, in batches.
"""

from __future__ import annotations

import heapq
import time
from typing import NamedTuple

import numpy as np

from argprune.solvers.ilp.quadratic import Floats, Indices, Quadratic, greedy, swaps
from argprune.solvers.ilp.quadratic_bounds import Nodes, Relaxed, relax, root

# A branch is closed when it cannot be better than the incumbent by more than this share of the incumbent.
TOLERANCE = 1e-7
_BATCH = 64
# Bounds a node: more cost time, fewer cost nodes; measured on correlated instances of n = 64.
_STEPS = 5
# Rounds and steps at the root: more lift its bound by a few percent and do not save time, as nodes go on from there.
_ROOT = (4, 20)

_FREE, _KEPT, _PRUNED = np.int8(0), np.int8(1), np.int8(2)


class _Node(NamedTuple):
    bound: float
    order: int
    state: np.ndarray[tuple[int, ...], np.dtype[np.int8]]
    split: Floats
    share: Floats


class Search(NamedTuple):
    """pruned (s,), its excess, a lower bound on every excess (both less the problem's constant), nodes looked at."""

    pruned: Indices
    excess: float
    bound: float
    nodes: int


def search(problem: Quadratic, deadline: float) -> Search:
    """Prove the best mask of a problem with refit, or stop at the deadline (time.perf_counter) with a bound.

    Proved: bound = (1 - 1e-7) excess. Valid up to the rounding of M and its sweeps, relative errors of about 1e-16
    times the condition number of the scaled Hessian, which damping limits to 1e8 n. About 10 n bytes an open node.
    """
    pruned, _ = swaps(problem, greedy(problem))
    incumbent = float(problem.excess(pruned[None])[0])
    if problem.keep in (0, problem.n):
        return Search(pruned, incumbent, incumbent, 1)
    if incumbent <= 0:
        return Search(pruned, incumbent, min(incumbent, 0.0), 1)
    first = root(problem, incumbent, *_ROOT)
    state = np.zeros(problem.n, dtype=np.int8)
    heap = [_Node(max(0.0, float(first.bound[0])), 0, state, first.split[0], first.share[0])]
    best = _Incumbent(problem, pruned, incumbent)
    nodes, order = 0, 1
    while heap and heap[0].bound < best.limit and time.perf_counter() < deadline:
        batch = [heapq.heappop(heap) for _ in range(min(_BATCH, len(heap)))]
        nodes += len(batch)
        for child in _children(problem, [node for node in batch if node.bound < best.limit], best):
            heapq.heappush(heap, child._replace(order=order))
            order += 1
    bound = min([best.limit, *(heap[0].bound for _ in heap[:1])])
    return Search(best.pruned, best.excess, bound, nodes)


class _Incumbent:
    """The best pruned set so far."""

    def __init__(self, problem: Quadratic, pruned: Indices, excess: float) -> None:
        self.problem, self.pruned, self.excess = problem, pruned, excess

    @property
    def limit(self) -> float:
        """Nodes with a bound of at least this are closed."""
        return self.excess * (1 - TOLERANCE)

    def offer(self, pruned: Indices) -> None:
        """Take the best of (b, s) pruned sets, searched around, where it is better."""
        values = self.problem.excess(pruned)
        index = int(values.argmin())
        if values[index] < self.excess:
            self.pruned = swaps(self.problem, pruned[index])[0]
            self.excess = float(self.problem.excess(self.pruned[None])[0])


def _children(problem: Quadratic, batch: list[_Node], best: _Incumbent) -> list[_Node]:
    """Bound the nodes, fix weights, round to masks, and branch those that are still open."""
    if not batch:
        return []
    states = np.stack([node.state for node in batch])
    nodes, columns = _reduced(problem, states)
    rows = np.arange(len(batch))[:, None]
    split = np.where(nodes.real, np.stack([node.split for node in batch])[rows, columns], 0.5)
    share = np.where(nodes.real, np.stack([node.share for node in batch])[rows, columns], 0.5)
    relaxed = relax(nodes, split, share, best.excess, _STEPS)
    best.offer(_rounded(problem, states, columns, nodes, relaxed))
    _fix(states, columns, nodes, relaxed, best.limit)
    children, finished = [], []
    for row, node in enumerate(batch):
        bound = max(float(relaxed.bound[row]), float(nodes.base[row]) * (1 - TOLERANCE), node.bound)
        if bound >= best.limit:
            continue
        state, free = states[row], states[row] == _FREE
        if (state == _KEPT).sum() >= problem.keep or (state == _PRUNED).sum() >= problem.prune or not free.any():
            state[free] = _PRUNED if (state == _KEPT).sum() >= problem.keep else _KEPT
            if (state == _PRUNED).sum() == problem.prune:
                finished.append((state == _PRUNED).nonzero()[0])
            continue
        full = node.split.copy(), node.share.copy()
        real = nodes.real[row]
        full[0][columns[row, real]], full[1][columns[row, real]] = relaxed.split[row, real], relaxed.share[row, real]
        # The least decided weight; between those, any.
        index = int(np.where(free, np.abs(full[1] - 0.5), np.inf).argmin())
        for choice in (_KEPT, _PRUNED):
            child = state.copy()
            child[index] = choice
            children.append(_Node(bound, 0, child, *full))
    if finished:
        best.offer(np.stack(finished))
    return children


def _reduced(problem: Quadratic, states: np.ndarray[tuple[int, ...], np.dtype[np.int8]]) -> tuple[Nodes, Indices]:
    """The nodes' own problems over their free weights, and those weights' (b, f) indices (padding: any others)."""
    n = problem.n
    free, pruned = states == _FREE, states == _PRUNED
    # Sweeping the pruned weights out: M - M_P (M_PP)^-1 M_P^T, the pruned block bordered by ones to a common size.
    both = pruned[:, :, None] & pruned[:, None, :]
    block = np.where(both, problem.inverse, 0.0)
    block[:, np.arange(n), np.arange(n)] += ~pruned
    solved = np.linalg.inv(block) * both
    dual = solved @ problem.target
    base = dual @ problem.target / 2
    target = problem.target - dual @ problem.inverse
    inverse = problem.inverse - problem.inverse @ solved @ problem.inverse
    width = int(free.sum(1).max())
    columns = np.argsort(~free, 1, kind="stable")[:, :width]
    rows = np.arange(len(states))[:, None]
    real = free[rows, columns]
    small = inverse[rows[:, :, None], columns[:, :, None], columns[:, None, :]]
    small = np.where(real[:, :, None] & real[:, None, :], small, 0.0)
    small = (small + small.transpose(0, 2, 1)) / 2
    small[:, np.arange(width), np.arange(width)] += ~real
    keep = problem.keep - (states == _KEPT).sum(1)
    return Nodes(small, np.where(real, target[rows, columns], 0.0), base, keep, real), columns


def _rounded(
    problem: Quadratic,
    states: np.ndarray[tuple[int, ...], np.dtype[np.int8]],
    columns: Indices,
    nodes: Nodes,
    relaxed: Relaxed,
) -> Indices:
    """(b, s): in every node, the weights with the smallest shares pruned."""
    rank = np.where(states == _PRUNED, -1.0, 2.0)
    rows, slots = nodes.real.nonzero()
    rank[rows, columns[rows, slots]] = relaxed.share[rows, slots]
    return np.argsort(rank, 1, kind="stable")[:, : problem.prune]


def _fix(
    states: np.ndarray[tuple[int, ...], np.dtype[np.int8]],
    columns: Indices,
    nodes: Nodes,
    relaxed: Relaxed,
    limit: float,
) -> None:
    """Keep or prune, in place, the free weights whose other choice lifts the node's own bound to the limit."""
    gains, width = relaxed.gains, relaxed.gains.shape[1]
    rows, keep = np.arange(len(gains)), nodes.keep
    ordered = -np.sort(-gains, 1)
    place = np.argsort(np.argsort(-gains, 1, kind="stable"), 1)
    inside = place < keep[:, None]
    smallest_in = ordered[rows, np.maximum(keep - 1, 0)][:, None]
    largest_out = np.where(keep < width, ordered[rows, np.minimum(keep, width - 1)], 0.0)[:, None]
    missing = (limit - relaxed.bound)[:, None]
    for fixed, choice in (
        (inside & (gains - largest_out >= missing), _KEPT),
        (~inside & (smallest_in - gains >= missing), _PRUNED),
    ):
        row, slot = (fixed & nodes.real).nonzero()
        states[row, columns[row, slot]] = choice
