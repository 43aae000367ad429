"""What follows from a threshold once it is known: counts, masks, sums and the certificate, a tensor at a time.

Shared by the selections that never have all entries in one place, over processes and over files.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from argprune.solvers.ilp.certificate import Certificate, of_one_count
from argprune.solvers.ilp.problem import chunks


@dataclass(frozen=True)
class Weighed:
    """Of some entries: how many lie below a threshold and their sum in float64, how many equal it, what comes next.

    total: NaN or infinite where infinities are below. next_above: the smallest entry above the threshold, inf for none.
    """

    below: int
    total: float
    ties: int
    next_above: float


def weigh(flat: Iterable[Tensor], threshold: float) -> Weighed:
    """Look at all entries, in chunks. flat: tensors of any shapes and floating types, no NaN."""
    below, total, ties, above = 0, 0.0, 0, math.inf
    for part in flat:
        for (chunk,) in chunks(part):
            if not len(chunk):
                continue
            under = chunk < threshold
            below += int(under.count_nonzero())
            total += float(torch.where(under, chunk, 0.0).sum(dtype=torch.float64))
            ties += int((chunk == threshold).count_nonzero())
            above = min(above, float(torch.where(chunk > threshold, chunk, math.inf).amin()))
    return Weighed(below, total, ties, above)


def masks_up_to(costs: Sequence[Tensor], threshold: float, ties: int) -> list[Tensor]:
    """Masks of the costs below the threshold and of the first `ties` equal to it, by tensor, then flat index."""
    masks = []
    for cost in costs:
        # Contiguous: a comparison keeps the strides of a transposed cost, and `view` below needs flat memory.
        mask = (cost < threshold).contiguous()
        if ties:
            equal = (cost == threshold).flatten().nonzero().flatten()[:ties]
            mask.view(-1)[equal] = True
            ties -= len(equal)
        masks.append(mask)
    return masks


def split_ties(counts: Sequence[int], kept: int) -> list[int]:
    """How many of the first `kept` ties are in each of some places that follow each other and have `counts` of them."""
    result = []
    for count in counts:
        result.append(min(count, kept))
        kept -= result[-1]
    return result


def combined(objectives: Sequence[float]) -> float:
    """The sum of parts of an objective: +inf outweighs -inf, and both outweigh numbers."""
    for infinity in (math.inf, -math.inf):
        if infinity in objectives:
            return infinity
    return sum(objectives)


def certificate_at(sizes: Sequence[int], keep: int, threshold: float, smallest_pruned: float, ties: int) -> Certificate:
    """The certificate of the `keep` smallest of all entries.

    sizes: entries of each tensor. threshold: the largest kept entry, or the smallest of all where none is kept.
    smallest_pruned: inf for none. ties: entries that equal the threshold.
    """
    if not sum(sizes):
        return replace(of_one_count(sizes, 0, -math.inf, math.inf, 0), nu=0.0, thresholds=(math.inf,) * len(sizes))
    if not keep:
        made = of_one_count(sizes, keep, -math.inf, threshold, ties)
        return replace(made, nu=threshold, thresholds=(threshold,) * len(sizes))
    return of_one_count(sizes, keep, threshold, smallest_pruned, ties)
