"""The closed form of one count on a CPU, in one pass over memory after a sample has bracketed the threshold.

Pieces that fit a core's cache are compared with both ends of the bracket, counted and summed while they are there; of
the entries inside the bracket, a percent or so, positions and values are kept, and only these are selected from.
NumPy's comparisons write their flags several times as fast as torch's, and threads share the pieces.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Fewer entries are selected from directly: the sample and the threads would cost more than they save.
LEAST = 1 << 17
# Entries a piece, and of the sample.
_PIECE = 1 << 17
_SAMPLE = 1 << 16
# More than this share of all entries inside the bracket: many are equal, and positions would take too much memory.
_CROWD = 1 / 16


@dataclass(frozen=True)
class Chosen:
    """Masks of the smallest costs, and what the pass saw on its way.

    objective: sum of kept costs in float64, NaN or inf where infinities are kept. largest_kept: the threshold; ties:
    entries equal to it. smallest_pruned: None where it lies outside of the bracket.
    """

    masks: list[Tensor]
    objective: float
    largest_kept: float
    smallest_pruned: float | None
    ties: int


def choose(costs: Sequence[Tensor], keep: int) -> Chosen | None:
    """The `keep` smallest costs, ties by position; None where the sample misleads or many entries are equal.

    costs: tensors on the CPU, as for `Selection`, no NaN (not checked); 0 < keep < total number of entries.
    Extra memory: a strided tensor is copied, all others only where they lie inside the bracket.
    """
    flat = [cost.reshape(-1) for cost in costs]
    sizes = [len(part) for part in flat]
    low, high = _bracket(flat, keep, sum(sizes))
    flags = [np.empty(size, dtype=bool) for size in sizes]
    pieces = [
        (part[start : start + _PIECE], out[start : start + _PIECE])
        for part, out in zip(flat, flags, strict=True)
        for start in range(0, len(part), _PIECE)
    ]
    threads = max(1, min(torch.get_num_threads(), len(pieces)))
    # Neighbouring pieces to one thread, and several shares a thread, so that none waits long for another.
    share = max(1, len(pieces) // (4 * threads))
    shares = [pieces[start : start + share] for start in range(0, len(pieces), share)]
    most = int(_CROWD * sum(sizes)) + 1
    with ThreadPoolExecutor(threads) as pool:
        passes = list(pool.map(lambda part: _look(part, low, high, most), shares))
    if any(one is None for one in passes):
        return None
    looks = [look for one in passes if one is not None for look in one]
    values = np.concatenate([look.values for look in looks])
    rank = keep - sum(look.below for look in looks)
    if not 0 < rank <= len(values) or len(values) > most:
        return None
    threshold = np.partition(values, rank - 1)[rank - 1]
    kept = values <= threshold
    equal = np.flatnonzero(values == threshold)
    # Looks are in order of position: the last of the ties go.
    kept[equal[len(equal) - (int(np.count_nonzero(kept)) - rank) :]] = False
    start = 0
    for look, (_, out) in zip(looks, pieces, strict=True):
        out[look.positions] = kept[start : start + len(look.positions)]
        start += len(look.positions)
    with np.errstate(invalid="ignore", over="ignore"):
        objective = sum(look.total for look in looks) + float(values[kept].sum(dtype=np.float64))
    return Chosen(
        masks=[torch.from_numpy(out).view(cost.shape) for out, cost in zip(flags, costs, strict=True)],
        objective=objective,
        largest_kept=float(threshold),
        smallest_pruned=float(values[~kept].min()) if rank < len(values) else None,
        ties=len(equal),
    )


@dataclass(frozen=True)
class _Look:
    """Of a piece: how many lie below the bracket, their sum, and positions and values of those inside."""

    below: int
    total: float
    positions: Any
    values: Any


def _bracket(flat: Sequence[Tensor], keep: int, total: int) -> tuple[float, float]:
    """An interval that holds the keep-th smallest cost with overwhelming probability, from an evenly spaced sample."""
    stride = max(1, total // _SAMPLE)
    sample = np.sort(torch.cat([part[::stride] for part in flat]).to(_wide(flat[0])).numpy())
    position = keep / total * len(sample)
    # Six standard deviations of a binomial count, plus what the stride's rounding per tensor can shift.
    slack = 6 * math.sqrt(position * (1 - keep / total)) + len(flat) + 1
    first, last = int(position - slack), int(position + slack)
    return (
        float(sample[first]) if first >= 0 else -math.inf,
        float(sample[last]) if last < len(sample) else math.inf,
    )


def _look(pieces: Sequence[tuple[Tensor, Any]], low: float, high: float, most: int) -> list[_Look] | None:
    """Look at pieces, flag in place what lies below the bracket; None where too much lies inside."""
    result = []
    for piece, out in pieces:
        # bfloat16 and float16, which NumPy is slow at or lacks, in float32: the order is the same.
        values = piece.to(_wide(piece)).numpy()
        np.less(values, low, out=out)
        inside = np.less_equal(values, high)
        np.not_equal(inside, out, out=inside)
        positions = np.flatnonzero(inside)
        below = int(np.count_nonzero(out))
        result.append(_Look(below, _sum_of(values, out) if below else 0.0, positions, values[positions]))
        most -= len(positions)
        if most < 0:
            return None
    return result


def _sum_of(values: Any, flags: Any) -> float:
    """Sum of flagged values in float64. A mask of bits leaves zeros elsewhere, for infinities too."""
    integer = np.int32 if values.dtype == np.float32 else np.int64
    bits = np.negative(flags.view(np.int8)).astype(integer)
    np.bitwise_and(bits, values.view(integer), out=bits)
    with np.errstate(over="ignore"):
        return float(bits.view(values.dtype).sum(dtype=np.float64))


def _wide(cost: Tensor) -> torch.dtype:
    return torch.float64 if cost.dtype == torch.float64 else torch.float32
