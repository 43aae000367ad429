"""An optimizer step's batch in parts: one for each process and accumulation step, and what each part's loss counts.

The gradient of a step is that of the whole batch, whatever the parts. A term of the loss is a mean: over texts, over
labelled tokens, over pairs of tokens. With n of them in a part, N in the batch, and P processes, over which gradients
are averaged,

    mean over the batch = 1/P * sum over parts of  P * n / N * (mean over the part)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import Sampler

from argprune.tasks.ranks import Ranks

_BASES = ("targets", "tokens", "pairs")


class Parts(Sampler[list[int]]):
    """A sampler's batches, each dealt row by row to so many parts; part `p` of a batch is rank `p % size`'s.

    A last batch of fewer rows than parts has its first row in those that would be empty; it counts nothing there.
    """

    # No `batch_size`, deliberately: accelerate would fill up parts that are smaller with rows from the start.

    def __init__(self, sampler: Sampler[int], rows: int, batch_size: int, count: int) -> None:
        self._sampler, self._rows, self._batch_size, self._count = sampler, rows, batch_size, count

    def __len__(self) -> int:
        return self._count * math.ceil(self._rows / self._batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        batch: list[int] = []
        for number, index in enumerate(self._sampler, 1):
            batch.append(index)
            if len(batch) == self._batch_size or number == self._rows:
                for part in range(self._count):
                    yield batch[part :: self._count] or batch[:1]
                batch = []


class Shares:
    """How much each part of a step counts in the mean over the whole batch, for every kind of mean.

    rows: of the training split. count_of: see `argprune.models.outputs.count_terms`. All processes open each step.
    """

    def __init__(
        self, ranks: Ranks, rows: int, batch_size: int, count_of: Callable[[Mapping[str, Any]], dict[str, int]]
    ) -> None:
        self._ranks, self._rows, self._batch_size, self._count_of = ranks, rows, batch_size, count_of
        self._coming: list[dict[str, float]] = []

    def open(self, step: int, batches: Sequence[Mapping[str, Any]]) -> None:
        """Count a step's parts of this process, which come one after the other."""
        per_epoch = math.ceil(self._rows / self._batch_size)
        rows = min(self._batch_size, self._rows - (step % per_epoch) * self._batch_size)
        counts = []
        for number, batch in enumerate(batches):
            is_filler = number * self._ranks.size + self._ranks.rank >= rows
            counts.append({} if is_filler else self._count_of(batch))
        own = torch.tensor([sum(count.get(basis, 0) for count in counts) for basis in _BASES])
        totals = dict(zip(_BASES, self._ranks.add_up(own).tolist(), strict=True))
        self._coming = [
            {basis: self._ranks.size * count.get(basis, 0) / max(totals[basis], 1) for basis in _BASES}
            for count in counts
        ]

    def next(self) -> dict[str, float]:
        """The factors of the coming part, by what its means are over."""
        return self._coming.pop(0)


def scaled(term: torch.Tensor, factor: float) -> torch.Tensor:
    """A term of the loss times its factor; the mean over nothing, which is NaN, counts nothing."""
    return term * factor if factor else torch.nan_to_num(term) * 0
