"""The closed form of one count over costs of which only a part is in memory at a time.

min sum_i c_i m_i subject to sum_i m_i = k, where i runs over the entries of all shards. The first pass counts the
entries by the first digits of their bit patterns, which says exactly in which class of close values the k-th smallest
lies; the second collects that class and selects from it. No sample, so that nothing can be missed. Masks are made
when asked for, a shard at a time.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from argprune.solvers.ilp import digits, one_pass
from argprune.solvers.ilp.certificate import Certificate
from argprune.solvers.ilp.problem import Status, as_tensors, objective_of, refuse_nan
from argprune.solvers.ilp.threshold import Weighed, certificate_at, combined, masks_up_to, split_ties, weigh

T = TypeVar("T")
R = TypeVar("R")


class Shards(Protocol):
    """A list, or anything that has a length and loads one part of the costs by its number, the same each time.

    A part is a tensor or a sequence of tensors, as for `Selection`, of one dtype in all parts; it may be empty.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Tensor | Sequence[Tensor]: ...


@dataclass(frozen=True)
class StreamedSolution:
    """A mask that is made a shard at a time, what it costs, and what is proved about it.

    threshold: the largest kept cost, or the smallest of all where none is kept. kept, ties_kept: of each shard, how
    many entries are kept and how many of them equal the threshold. passes: over all shards. objective, bound, gap,
    status, seconds, certificate: see `Solution`.
    """

    threshold: float
    kept: tuple[int, ...]
    ties_kept: tuple[int, ...]
    objective: float
    bound: float
    gap: float
    status: Status
    passes: int
    seconds: float
    certificate: Certificate
    shards: Shards = field(repr=False)

    def masks(self, index: int) -> list[Tensor]:
        """Masks (True = kept) of one shard's tensors, which is loaded for it.

        Raises ValueError if as many are not kept as when it was solved: the shard gave other costs then.
        """
        return _masks(_load(self.shards, index), self, index)

    def __iter__(self) -> Iterator[list[Tensor]]:
        """The masks of one shard after the other."""
        return (self.masks(index) for index in range(len(self.shards)))

    def check(self) -> float:
        """The gap of all masks by the certificate's dual values, in one pass over the shards; 0 = optimal."""
        first, gaps = 0, []
        for index, kept in enumerate(self.kept):
            tensors = _load(self.shards, index)
            part = slice(first, first + len(tensors))
            first += len(tensors)
            # The gap is a sum over entries: that of a shard is that of a certificate for as many as are kept of it.
            of_shard = replace(
                self.certificate,
                keep=kept,
                least=self.certificate.least[part],
                most=self.certificate.most[part],
                thresholds=self.certificate.thresholds[part],
            )
            gaps.append(of_shard.check(tensors, _masks(tensors, self, index)) if tensors else 0.0)
        return sum(gaps)


def solve_streamed(shards: Shards, keep: int) -> StreamedSolution:
    """Keep the `keep` smallest costs of all shards together, with one shard in memory at a time.

    shards: see `Shards`; a list of tensors will do, but what saves memory loads them when asked, as from safetensors
    files. keep: 0 <= keep <= number of entries. Ties go to the earlier shard, then tensor, then flat index: the masks
    are those that `solve` makes of all costs. Loads every shard twice, and once more in the rare case that float64
    costs crowd, or that the threshold is the largest of its class. Memory: a shard, its masks and at most a sixteenth
    of all costs, as a rule less than a hundredth.
    Raises ValueError for NaN, types that differ and a count out of range.
    Source: dossier paper-pins-sparsebert, section 4.

    >>> solution = solve_streamed([torch.tensor([3.0, 1.0]), torch.tensor([1.0, 2.0])], keep=2)
    >>> solution.threshold, [mask.tolist() for [mask] in solution]
    (1.0, [[False, True], [True, False]])
    """
    start = time.perf_counter()
    if not isinstance(keep, int) or isinstance(keep, bool) or keep < 0:
        raise ValueError(f"keep {keep!r}; a count is an integer >= 0.")
    stream = _Stream(shards)
    sizes, dtype, first = stream.survey()
    total = sum(sizes)
    if keep > total:
        raise ValueError(f"keep {keep} of {total} entries; need 0 <= keep <= {total}.")
    if total:
        k, most = max(keep, 1), max(one_pass.LEAST, int(one_pass._CROWD * total))
        found = digits.narrow(lambda prefix: stream.count(prefix) if prefix else first, dtype, k, most)
        threshold, weighed = stream.weigh(found.low) if found.low == found.high else stream.settle(found, k)
    else:
        found = digits.Class(0.0, 0.0, 0)
        threshold, weighed = 0.0, [Weighed(0, 0.0, 0, math.inf)] * len(shards)
    ties = sum(one.ties for one in weighed)
    ties_kept = split_ties([one.ties for one in weighed], keep - sum(one.below for one in weighed))
    above = min(one.next_above for one in weighed)
    if sum(ties_kept) < ties:
        above = threshold
    elif math.isinf(above) and found.low < found.high:
        # What follows the threshold may lie outside of its class.
        above = min(one.next_above for one in stream.weigh(threshold)[1])
    objective = sum(one.total for one in weighed) + (sum(ties_kept) * threshold if sum(ties_kept) else 0.0)
    kept = [one.below + count for one, count in zip(weighed, ties_kept, strict=True)]
    made = StreamedSolution(
        threshold=threshold,
        kept=tuple(kept),
        ties_kept=tuple(ties_kept),
        objective=objective,
        bound=objective,
        gap=0.0,
        status="optimal",
        passes=stream.passes,
        seconds=time.perf_counter() - start,
        certificate=certificate_at(sizes, keep, threshold, above, ties),
        shards=shards,
    )
    if math.isfinite(objective):
        return made
    # Infinities are kept, or a partial sum left float64's range.
    objective = combined([objective_of(part, _masks(part, made, index)) for index, part in enumerate(stream)])
    seconds = time.perf_counter() - start
    return replace(made, objective=objective, bound=objective, passes=stream.passes, seconds=seconds)


class _Stream:
    """Passes over the shards, which are counted."""

    def __init__(self, shards: Shards) -> None:
        self._shards = shards
        self.passes = 0

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        self.passes += 1
        return (_load(self._shards, index) for index in range(len(self._shards)))

    def survey(self) -> tuple[list[int], torch.dtype, Tensor]:
        """The first pass: how many entries each tensor has, their type, and how often each first digit occurs."""
        sizes: list[int] = []
        dtypes: list[torch.dtype] = []
        counts = digits.count([], ())
        for index, tensors in enumerate(self):
            sizes += [cost.numel() for cost in tensors]
            dtypes += [cost.dtype for cost in tensors]
            if dtypes and dtypes[-1] != dtypes[0]:
                raise ValueError(
                    f"shard {index}: {dtypes[-1]}, but others are {dtypes[0]}; give all of them one dtype."
                )
            _of_shard(index, refuse_nan, tensors)
            counts += digits.count(_flat(tensors), ())
        if not dtypes:
            raise ValueError("costs: no shard holds any tensor; give at least one in some shard.")
        return sizes, dtypes[0], counts

    def count(self, prefix: tuple[int, ...]) -> Tensor:
        """A pass that counts what follows the digits of `prefix`."""
        counts = digits.count([], prefix)
        for tensors in self:
            counts += digits.count(_flat(tensors), prefix)
        return counts

    def weigh(self, threshold: float) -> tuple[float, list[Weighed]]:
        """A pass that weighs each shard by a threshold that is known."""
        return threshold, [weigh(tensors, threshold) for tensors in self]

    def settle(self, found: digits.Class, k: int) -> tuple[float, list[Weighed]]:
        """A pass that selects the k-th smallest from its class: it, and each shard weighed by it.

        What comes next is that of the class alone.
        """
        looks = []
        for tensors in self:
            seen = one_pass.look(_flat(tensors), found.low, found.high, found.size)
            assert seen is not None
            looks.append((seen.below, seen.total, seen.values))
        before = sum(below for below, _, _ in looks)
        threshold = one_pass.settle(np.concatenate([values for _, _, values in looks]), k - before).threshold
        weighed = []
        for below, total, values in looks:
            inside = weigh([torch.from_numpy(values)], threshold)
            weighed.append(replace(inside, below=below + inside.below, total=total + inside.total))
        return threshold, weighed


def _flat(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [cost.reshape(-1) for cost in tensors]


def _load(shards: Shards, index: int) -> tuple[Tensor, ...]:
    """One shard's tensors, on the CPU."""
    shard = shards[index]
    tensors = _of_shard(index, as_tensors, shard) if isinstance(shard, Tensor) or len(shard) else ()
    return tuple(cost.cpu() for cost in tensors)


def _of_shard(index: int, check: Callable[[T], R], costs: T) -> R:
    try:
        return check(costs)
    except ValueError as problem:
        raise ValueError(f"shard {index}: {problem}") from None


def _masks(tensors: Sequence[Tensor], solution: StreamedSolution, index: int) -> list[Tensor]:
    masks = masks_up_to(tensors, solution.threshold, solution.ties_kept[index])
    count = sum(int(mask.count_nonzero()) for mask in masks)
    if count != solution.kept[index]:
        raise ValueError(
            f"shard {index}: {count} entries to keep, but {solution.kept[index]} when it was solved. "
            "Give shards that load the same costs each time."
        )
    return masks
