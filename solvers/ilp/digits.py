"""The k-th smallest of entries that are never brought together, by counting digits of their bit patterns.

The bits of a float, turned over where it is negative, are an integer of the same order. Entries are counted by their
first 16 bits; the counts add up over tensors, processes or files, and name the class of equal leading bits that holds
the k-th. The next 16 bits of that class are counted next: float32 takes two rounds, float64 four, the others one,
whatever the entries are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

_VALUES = 1 << 16
# Entries taken at a time, which bounds the memory that their int64 digits take.
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Class:
    """Entries of equal leading digits, or two such classes that follow each other, and how many entries they are.

    low, high: ends, both in, of an interval that holds these entries and no others.
    """

    low: float
    high: float
    size: int


def count(flat: Iterable[Tensor], prefix: tuple[int, ...]) -> Tensor:
    """How many entries that begin with the digits of `prefix` have which digit next: 65536 counts, int64 on the CPU.

    flat: 1-dimensional tensors of one of the four floating types, no NaN; fewer digits in `prefix` than they have.
    """
    result = torch.zeros(_VALUES, dtype=torch.int64)
    for part in flat:
        for chunk in torch.split(part, _CHUNK) if len(part) else ():
            words = chunk.dtype.itemsize // 2
            # Adding 0 turns -0.0 into 0.0, which is in another class and equal. The first digit comes last in memory.
            digits = (chunk + 0.0).view(torch.int16).view(len(chunk), words).flip(1)
            for digit in prefix:
                digits = digits[_unsigned(digits[:, 0]) == digit, 1:]
            result += torch.bincount(_unsigned(digits[:, 0]), minlength=_VALUES).cpu()
    return result


def narrow(counted: Callable[[tuple[int, ...]], Tensor], dtype: torch.dtype, k: int, most: int = 0) -> Class:
    """A class that holds the k-th smallest (1-based) entry: of at most `most` entries, or all equal to it.

    Where there is room, it reaches to the next entries, so that what follows the k-th is as a rule inside as well.
    counted: `count` of all entries, for a prefix. dtype: theirs.
    """
    words = dtype.itemsize // 2
    prefix: tuple[int, ...] = ()
    while True:
        counts = counted(prefix)
        order = _order(prefix)
        cumulative = counts[order].cumsum(0)
        place = int(torch.searchsorted(cumulative, k))
        size = int(counts[order[place]])
        first = last = (*prefix, int(order[place]))
        if size <= most or len(first) == words:
            after = int(torch.searchsorted(cumulative, cumulative[place], right=True))
            if len(first) < words and after < _VALUES and size + int(counts[order[after]]) <= most:
                last = (*prefix, int(order[after]))
                size += int(counts[order[after]])
            ends = [_value(one, fill, dtype) for one in (first, last) for fill in (0, _VALUES - 1)]
            return Class(min(ends), max(ends), size)
        k -= int(cumulative[place]) - size
        prefix = first


def _unsigned(digits: Tensor) -> Tensor:
    return digits.long() & (_VALUES - 1)


def _order(prefix: tuple[int, ...]) -> Tensor:
    """Digits that can follow, by the order of the floats: the first bit is the sign, and turns the others over."""
    half = _VALUES // 2
    rising = torch.arange(_VALUES)
    if not prefix:
        return torch.cat([rising[half:].flip(0), rising[:half]])
    return rising.flip(0) if prefix[0] >= half else rising


def _value(prefix: tuple[int, ...], fill: int, dtype: torch.dtype) -> float:
    words = dtype.itemsize // 2
    digits = [*prefix, *[fill] * (words - len(prefix))]
    value = torch.tensor(digits[::-1], dtype=torch.uint16).view(dtype)
    if prefix[0] < _VALUES // 2:
        # The class of an infinity reaches into the patterns of NaN.
        return math.inf if value.isnan() else float(value)
    # Nothing is -0.0: the class that it begins starts at the number next to it.
    least = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    return -math.inf if value.isnan() else min(float(value), -least)
