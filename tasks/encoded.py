"""Tokenised examples, and the order in which a training sees them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Dataset, Sampler

from argprune.tasks.texts import encode_rows

_POOL = 16


class Encoded(Dataset[dict[str, Any]]):
    """Tokenised rows; `lengths` are their numbers of tokens. `by_length` sorts them, which saves padding.

    encode: a task's; that of classification is the default. `about` is what examples have for the task's `measure`,
    None of those that have nothing, beside the rows and the tokenizer that they were made of and with. `order` says
    which one of `encode`'s each example is.
    """

    def __init__(
        self,
        rows: Sequence[Any],
        tokenizer: Any,
        max_length: int,
        *,
        by_length: bool = False,
        encode: Callable[[Sequence[Any], Any, int], list[dict[str, Any]]] = encode_rows,
    ) -> None:
        self.rows, self.tokenizer = rows, tokenizer
        items = encode(rows, tokenizer, max_length)
        self.order = list(range(len(items)))
        if by_length:
            self.order.sort(key=lambda at: len(items[at]["input_ids"]))
        self._items = [items[at] for at in self.order]
        self.lengths = [len(item["input_ids"]) for item in self._items]
        self.about = [item.pop("about", None) for item in self._items]

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._items[index]


class LengthGroupedSampler(Sampler[int]):
    """A seeded shuffle in which batches hold texts of like length.

    The order depends on seed and epoch alone, so that a resumed run sees the batches of an uninterrupted one.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int, epoch: Callable[[], int]) -> None:
        self._lengths, self._batch_size, self._seed, self._epoch = lengths, batch_size, seed, epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + self._epoch())
        order = torch.randperm(len(self._lengths), generator=generator).tolist()
        pool = self._batch_size * _POOL
        batches: list[list[int]] = []
        for start in range(0, len(order), pool):
            chunk = sorted(order[start : start + pool], key=self._lengths.__getitem__)
            batches += [chunk[i : i + self._batch_size] for i in range(0, len(chunk), self._batch_size)]
        # A short batch anywhere but at the end would shift the rest out of its length group.
        last = batches.pop()
        for index in torch.randperm(len(batches), generator=generator).tolist():
            yield from batches[index]
        yield from last
