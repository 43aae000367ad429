"""The closed form of one count on a CPU, in one pass over memory after a sample has bracketed the threshold.

Pieces that fit a core's cache are compared with both ends of the bracket and counted while they are there; of the
entries inside the bracket, a percent or so, positions and values are kept, and only these are selected from. NumPy's
comparisons write their flags several times as fast as torch's, and threads share the pieces. Adding up what is kept
takes as long again as all this, and no mask needs it: it is done where asked for.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from argprune.solvers.ilp.bracket import bracket, evenly, wide
from argprune.solvers.ilp.problem import refuse_nan
from argprune.solvers.sampling import stride_of

T = TypeVar("T")

# Fewer entries are selected from directly: the sample and the threads would cost more than they save.
LEAST = 1 << 17
# Entries a piece, and of the sample at most.
_PIECE = 1 << 17
_SAMPLE = 1 << 17
# More than this share of all entries inside the bracket: many are equal, and positions would take too much memory.
_CROWD = 1 / 16


@dataclass(frozen=True)
class Chosen:
    """Masks of the smallest costs, and what the pass saw on its way.

    masks: tensors with storages of their own, in one piece of memory that is freed with the last of them. largest_kept:
    the threshold; ties: entries equal to it. smallest_pruned: None where it lies outside of the bracket.
    """

    masks: list[Tensor]
    largest_kept: float
    smallest_pruned: float | None
    ties: int


def choose(costs: Sequence[Tensor], keep: int) -> Chosen | None:
    """The `keep` smallest costs, ties by position; None where the sample misleads or many entries are equal.

    costs: tensors on the CPU, as for `Selection`; 0 < keep < total number of entries. Extra memory: a strided tensor
    is copied, all others only where they lie inside the bracket. Raises ValueError for NaN, but None may come first.
    """
    flat = [cost.reshape(-1) for cost in costs]
    total = sum(len(part) for part in flat)
    low, high = bracket(evenly(flat, stride_of(total, sample_size(total))), keep, total)
    seen = look(flat, low, high, int(_CROWD * total) + 1, summed=False)
    if seen is None:
        return None
    if seen.nan:
        refuse_nan(costs)
    rank = keep - seen.below
    if not 0 < rank <= len(seen.values):
        return None
    settled = settle(seen.values, rank)
    return Chosen(
        masks=seen.masks(costs, settled.threshold, settled.ties_kept),
        largest_kept=settled.threshold,
        smallest_pruned=settled.smallest_pruned,
        ties=settled.ties,
    )


def kept_sum(costs: Sequence[Tensor], masks: Sequence[Tensor]) -> float:
    """The sum of kept costs in float64, the same on any number of threads; NaN or infinite where infinities are kept.

    costs, masks: on the CPU, as for `Selection` and as from it.
    """
    flat = [cost.reshape(-1) for cost in costs]
    pieces = _pieces(flat, [mask.reshape(-1).numpy() for mask in masks])
    sums = [0.0] * len(pieces)
    todo = deque(enumerate(pieces))

    def work() -> None:
        adder = _Adder(np.float64 if flat[0].dtype == torch.float64 else np.float32)
        for index, (piece, kept) in _each(todo):
            sums[index] = adder(_values(piece), kept)

    _on_threads(work, len(pieces))
    return sum(sums)


def sample_size(total: int) -> int:
    """Of how many entries a bracket pays best: a larger sample takes longer, and leaves fewer entries inside."""
    return min(_SAMPLE, max(_SAMPLE // 4, total // 128, 1))


@dataclass(frozen=True)
class Settled:
    """The `rank` smallest of some values: the largest of them, and how many equal it, of all and of these."""

    threshold: float
    ties: int
    ties_kept: int
    smallest_pruned: float | None


def settle(values: Any, rank: int) -> Settled:
    """Select among the values inside a bracket. values: a NumPy array without NaN; 1 <= rank <= len(values)."""
    ordered = np.partition(values, rank - 1)
    threshold = ordered[rank - 1]
    return Settled(
        threshold=float(threshold),
        ties=int(np.count_nonzero(ordered == threshold)),
        ties_kept=int(np.count_nonzero(ordered[:rank] == threshold)),
        smallest_pruned=float(ordered[rank:].min()) if rank < len(values) else None,
    )


def smallest_of(values: Any, threshold: float, ties: int) -> Any:
    """Flags of the values below the threshold and of the first `ties` of those equal to it."""
    kept = values <= threshold
    kept[np.flatnonzero(values == threshold)[ties:]] = False
    return kept


@dataclass(frozen=True)
class Looks:
    """What a pass over flat tensors saw.

    below: how many entries lie below the bracket; total: their sum in float64, NaN where it was not asked for. values:
    of the entries inside, in order of position. nan: whether any entry is NaN; nothing else means anything then.
    """

    below: int
    total: float
    values: Any
    nan: bool
    _flags: list[Any]
    _pieces: list[_Look]

    def masks(self, costs: Sequence[Tensor], threshold: float, ties: int) -> list[Tensor]:
        """Masks of the entries below the threshold, which is inside, and of the first `ties` equal to it; call once."""
        kept = smallest_of(self.values, threshold, ties)
        ends = list(accumulate(len(piece.positions) for piece in self._pieces))
        todo = deque(zip(self._pieces, [0, *ends], ends, strict=False))

        def work() -> None:
            for piece, start, end in _each(todo):
                piece.flags[piece.positions] = kept[start:end]

        _on_threads(work, len(todo))
        return [torch.from_numpy(flags).view(cost.shape) for flags, cost in zip(self._flags, costs, strict=True)]


def look(flat: Sequence[Tensor], low: float, high: float, most: int, *, summed: bool = True) -> Looks | None:
    """Pass over flat tensors on the CPU; None where more than `most` entries lie inside the bracket, or are NaN.

    summed: whether to add up what lies below the bracket, which takes as long as all the rest.
    """
    # In one piece of memory, which the kernel can give in huge pages: in small ones it takes a fifth of all the time.
    ends = list(accumulate(len(part) for part in flat))
    memory = np.empty(sum(len(part) for part in flat), dtype=bool)
    every_flag = [memory[end - len(part) : end] for part, end in zip(flat, ends, strict=True)]
    pieces = _pieces(flat, every_flag)
    # By position, whichever thread does which: sums must not depend on that.
    looks: list[_Look | None] = [None] * len(pieces)
    todo = deque(enumerate(pieces))
    _on_threads(lambda: _look(todo, looks, low, high, most, summed), len(pieces))
    seen = [one for one in looks if one is not None]
    if len(seen) < len(pieces) or sum(len(one.positions) for one in seen) > most:
        return None
    values = np.concatenate([one.values for one in seen]) if seen else np.empty(0, np.float32)
    return Looks(
        below=sum(one.below for one in seen),
        total=sum(one.total for one in seen) if summed else math.nan,
        values=values,
        nan=bool(np.isnan(values).any()),
        _flags=every_flag,
        _pieces=seen,
    )


@dataclass(frozen=True)
class _Look:
    """Of a piece: how many lie below the bracket, their sum, and positions and values of those inside and of NaN."""

    flags: Any
    below: int
    total: float
    positions: Any
    values: Any


def _pieces(flat: Sequence[Tensor], flags: Sequence[Any]) -> list[tuple[Any, Any]]:
    """Flat tensors on the CPU and as long arrays of flags, cut into pieces."""
    # NumPy's slices take a fifth of the time of torch's; float16 and bfloat16 wait to be converted a piece at a time.
    parts = [part.numpy() if part.dtype == wide(part.dtype) else part for part in flat]
    return [
        (part[start : start + _PIECE], flag[start : start + _PIECE])
        for part, flag in zip(parts, flags, strict=True)
        for start in range(0, len(part), _PIECE)
    ]


def _values(piece: Any) -> Any:
    """A piece as a NumPy array."""
    # bfloat16 and float16, which NumPy is slow at or lacks, in float32: the order is the same.
    return piece.float().numpy() if isinstance(piece, Tensor) else piece


def _on_threads(work: Callable[[], None], pieces: int) -> None:
    """Do the same on as many threads as torch has, one for each piece at most."""

    def quietly() -> None:
        # Sums of infinities, and beyond float64's range, are no mistake; threads do not inherit what is set outside.
        with np.errstate(over="ignore", invalid="ignore"):
            work()

    threads = max(1, min(torch.get_num_threads(), pieces))
    with ThreadPoolExecutor(threads) as pool:
        # NumPy lets go of the interpreter in its loops.
        for done in [pool.submit(quietly) for _ in range(threads)]:
            done.result()


def _each(todo: deque[T]) -> Iterator[T]:
    """What is left to do, one after the other, shared with other threads."""
    with suppress(IndexError):
        while True:
            yield todo.popleft()


def _look(
    todo: deque[tuple[int, tuple[Any, Any]]],
    looks: list[_Look | None],
    low: float,
    high: float,
    most: int,
    summed: bool,
) -> None:
    """Look at pieces, flag in place what lies below the bracket; end it for all threads where too much lies inside."""
    # Reused by all pieces: fresh memory costs more than the work on it.
    above = np.empty(_PIECE, dtype=bool)
    adder = None
    for index, (piece, flags) in _each(todo):
        values = _values(piece)
        np.less(values, low, out=flags)
        inside = np.greater(values, high, out=above[: len(values)])
        # Neither below nor above. That is NaN too: it needs no look of its own.
        np.equal(inside, flags, out=inside)
        positions = inside.nonzero()[0]
        below, total = int(np.count_nonzero(flags)), 0.0
        if summed:
            adder = adder or _Adder(values.dtype)
            total = adder(values, flags)
        looks[index] = _Look(flags, below, total, positions, values[positions])
        most -= len(positions)
        if most < 0:
            todo.clear()
            # The others may have been done: that something is missing says that it was too much.
            looks[index] = None


class _Adder:
    """The sum in float64 of the flagged entries of a piece; infinite or NaN where one of them is."""

    def __init__(self, dtype: Any) -> None:
        self._work = np.empty(_PIECE, dtype)

    def __call__(self, values: Any, flags: Any) -> float:
        # A mask of bits leaves zeros elsewhere, for infinities too.
        work = self._work[: len(values)]
        bits = work.view(np.int32 if work.dtype == np.float32 else np.int64)
        np.copyto(bits, np.negative(flags.view(np.int8)))
        np.bitwise_and(bits, values.view(bits.dtype), out=bits)
        # Adds up float32 in float64 in less time than `sum`, but one by one, which is not enough for float64 itself.
        return float(np.einsum("i->", work, dtype=np.float64) if work.dtype == np.float32 else work.sum())
