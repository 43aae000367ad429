"""How many numbers a matrix of rank r takes: two factors, or one matrix where that is fewer."""

from __future__ import annotations


def break_even_rank(outputs: int, inputs: int) -> int:
    """The largest rank whose two factors take no more numbers than the matrix, and at least 1.

    floor(i o / (i + o)); outputs, inputs: >= 1. Raises ValueError outside.

    >>> break_even_rank(768, 768), break_even_rank(768, 3072), break_even_rank(8, 1)
    (384, 614, 1)
    """
    _check(outputs, inputs)
    return max(1, outputs * inputs // (outputs + inputs))


def stored_size(rank: int, outputs: int, inputs: int) -> int:
    """The numbers that a matrix of this rank takes: min(r (i + o), i o); bias not counted.

    rank: >= 0. outputs, inputs: of the matrix, >= 1. Raises ValueError outside.

    >>> stored_size(96, 768, 768), stored_size(768, 768, 768)
    (147456, 589824)
    """
    _check(outputs, inputs)
    if rank < 0:
        raise ValueError(f"stored_size: rank {rank}; it is at least 0.")
    return min(rank * (outputs + inputs), outputs * inputs)


def _check(outputs: int, inputs: int) -> None:
    if outputs < 1 or inputs < 1:
        raise ValueError(f"A matrix of {outputs} outputs and {inputs} inputs; both are at least 1.")
