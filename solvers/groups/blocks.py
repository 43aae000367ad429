"""Blocks of adjacent entries: whole blocks, parts of rows and of columns inside strips, runs of a row.

`width` counts inputs, along a row; `height` counts outputs, down a column; `strips` is a number of strips, never a
size. Where sizes do not divide, the short groups are filled up with zeros that `join` drops.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from argprune.solvers.groups.base import Groups, checked_matrix


@dataclass(frozen=True)
class Blocks:
    """Every block of `rows` x `columns` adjacent entries of a matrix is a group.

    pad: where the sizes do not divide the matrix's, fill the blocks at its lower and right edge up with zeros instead
    of refusing.

    >>> Blocks(1, 2).split(torch.arange(6.0).view(2, 3)[:, :2])
    tensor([[0., 1.],
            [3., 4.]])
    """

    rows: int
    columns: int
    pad: bool = False

    def __post_init__(self) -> None:
        if self.rows < 1 or self.columns < 1:
            raise ValueError(f"Blocks: {self.rows} x {self.columns}; a block has at least one row and one column.")

    def split(self, w: Tensor) -> Tensor:
        """Return `w` as (blocks, rows * columns), blocks and their entries in row-major order."""
        height, width = checked_matrix("Blocks", w).shape
        down, across = self._tiles(height, width)
        missing = down * self.rows - height, across * self.columns - width
        if missing != (0, 0):
            if not self.pad:
                raise ValueError(
                    f"Blocks: {self.rows} x {self.columns} does not divide a {height} x {width} matrix. "
                    f"Give divisors, or pad=True."
                )
            w = torch.nn.functional.pad(_fillable("Blocks", w), (0, missing[1], 0, missing[0]))
        tiles = w.reshape(down, self.rows, across, self.columns)
        return tiles.transpose(1, 2).reshape(down * across, self.rows * self.columns)

    def join(self, groups: Tensor, shape: torch.Size) -> Tensor:
        """Return the blocks as a matrix of the given shape."""
        height, width = shape
        down, across = self._tiles(height, width)
        tiles = groups.reshape(down, across, self.rows, self.columns).transpose(1, 2)
        return tiles.reshape(down * self.rows, across * self.columns)[:height, :width]

    def _tiles(self, height: int, width: int) -> tuple[int, int]:
        return -(-height // self.rows), -(-width // self.columns)


@dataclass(frozen=True)
class BlockRows:
    """The matrix is cut into vertical strips; a group is the part of one row inside one strip.

    Exactly one of width: inputs in a strip, the last one may be narrower; and strips: their number, widths then
    differing by one at most. A width of at least the matrix's gives its rows, a width of 1 its entries.
    The "block_filter" of the code of Li et al. (2020), whose option meant the number of strips, later their width.

    >>> BlockRows(width=2).split(torch.arange(6.0).view(2, 3))
    tensor([[0., 1.],
            [2., 0.],
            [3., 4.],
            [5., 0.]])
    """

    width: int | None = None
    strips: int | None = None

    def __post_init__(self) -> None:
        _check_strips("BlockRows", "width", self.width, self.strips)

    def split(self, w: Tensor) -> Tensor:
        """Return `w` as (rows * strips, width), the strips of a row one after the other."""
        return _split_rows("BlockRows", "inputs", checked_matrix("BlockRows", w), self.width, self.strips)

    def join(self, groups: Tensor, shape: torch.Size) -> Tensor:
        """Return the parts of rows as a matrix of the given shape."""
        return _join_rows("BlockRows", "inputs", groups, shape, self.width, self.strips)


@dataclass(frozen=True)
class BlockColumns:
    """The matrix is cut into horizontal strips; a group is the part of one column inside one strip.

    Exactly one of height: outputs in a strip, the last one may be lower; and strips: their number, heights then
    differing by one at most. A height of at least the matrix's gives its columns, a height of 1 its entries.
    The "block_column" of the code of Li et al. (2020).
    """

    height: int | None = None
    strips: int | None = None

    def __post_init__(self) -> None:
        _check_strips("BlockColumns", "height", self.height, self.strips)

    def split(self, w: Tensor) -> Tensor:
        """Return `w` as (columns * strips, height), the strips of a column one after the other."""
        return _split_rows("BlockColumns", "outputs", checked_matrix("BlockColumns", w).t(), self.height, self.strips)

    def join(self, groups: Tensor, shape: torch.Size) -> Tensor:
        """Return the parts of columns as a matrix of the given shape."""
        turned = torch.Size((shape[1], shape[0]))
        return _join_rows("BlockColumns", "outputs", groups, turned, self.height, self.strips).t()


@dataclass(frozen=True)
class Runs:
    """Every run of `length` consecutive entries of a row (of the last axis) is a group: the M of N:M sparsity.

    The length must divide the row's: with padding, keeping N of every M would keep more of a short group than asked.
    """

    length: int

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ValueError(f"Runs: length {self.length}; a run has at least one entry.")

    def split(self, w: Tensor) -> Tensor:
        """Return `w` as (numel / length, length)."""
        if w.dim() == 0 or w.shape[-1] % self.length:
            raise ValueError(
                f"Runs: length {self.length} does not divide the rows of a tensor of shape {tuple(w.shape)}. "
                f"Give a divisor."
            )
        return w.reshape(w.numel() // self.length, self.length)

    def join(self, groups: Tensor, shape: torch.Size) -> Tensor:
        """Return the runs as a tensor of the given shape."""
        return groups.reshape(shape)


@dataclass(frozen=True)
class Stacked:
    """`count` tensors of equal shape in one, stacked along the first axis: group g is the g-th of `groups` in each.

    What a fused matrix of queries, keys and values holds of each head, with blocks of a head's rows and count 3.
    """

    groups: Groups
    count: int

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"Stacked: count {self.count}; there is at least one tensor.")

    def split(self, w: Tensor) -> Tensor:
        """Return `w` as (groups, count * group_size)."""
        if w.dim() == 0 or w.shape[0] % self.count:
            raise ValueError(f"Stacked: a tensor of shape {tuple(w.shape)} is not {self.count} of equal shape stacked.")
        return torch.cat([self.groups.split(part) for part in w.chunk(self.count)], dim=1)

    def join(self, groups: Tensor, shape: torch.Size) -> Tensor:
        """Return the groups as a tensor of the given shape."""
        part = torch.Size((shape[0] // self.count, *shape[1:]))
        return torch.cat([self.groups.join(stack, part) for stack in groups.chunk(self.count, dim=1)])


@dataclass(frozen=True)
class Transposed:
    """The `groups` of a matrix that is stored transposed, as GPT-2's Conv1D stores (inputs, outputs)."""

    groups: Groups

    def split(self, w: Tensor) -> Tensor:
        """Split the transpose of `w`."""
        return self.groups.split(checked_matrix("Transposed", w).t())

    def join(self, groups: Tensor, shape: torch.Size) -> Tensor:
        """Return the groups as a matrix of the stored shape."""
        return self.groups.join(groups, torch.Size((shape[1], shape[0]))).t()


class _Cuts(NamedTuple):
    """How an axis is cut: strips, the entries of the longest, and where strips are shorter, what fills each place.

    source: position on the axis for every place of every strip, or the axis's size for padding.
    """

    strips: int
    longest: int
    source: Tensor | None


@functools.lru_cache(maxsize=64)
def _cuts(size: int, length: int | None, strips: int | None) -> _Cuts:
    if length is None:
        assert strips is not None
        bounds = [-(-size * strip // strips) for strip in range(strips + 1)]
    else:
        bounds = [*range(0, size, length), size]
    starts, lengths = torch.tensor(bounds[:-1]), torch.tensor(bounds).diff()
    longest = int(lengths.max()) if len(lengths) else 1
    if bool((lengths == longest).all()):
        return _Cuts(len(lengths), longest, None)
    place = torch.arange(longest)
    source = torch.where(place < lengths[:, None], starts[:, None] + place, size)
    return _Cuts(len(lengths), longest, source.flatten())


def _cuts_of(owner: str, axis: str, size: int, length: int | None, strips: int | None) -> _Cuts:
    if strips is not None and strips > max(1, size):
        raise ValueError(f"{owner}: {strips} strips of {size} {axis}; give at most one for each.")
    return _cuts(size, length, strips)


def _split_rows(owner: str, axis: str, w: Tensor, length: int | None, strips: int | None) -> Tensor:
    rows, size = w.shape
    cuts = _cuts_of(owner, axis, size, length, strips)
    if cuts.source is not None:
        filled = torch.nn.functional.pad(_fillable(owner, w), (0, 1))
        w = filled.index_select(1, cuts.source.to(w.device))
    return w.reshape(rows * cuts.strips, cuts.longest)


def _join_rows(
    owner: str, axis: str, groups: Tensor, shape: torch.Size, length: int | None, strips: int | None
) -> Tensor:
    rows, size = shape
    cuts = _cuts_of(owner, axis, size, length, strips)
    filled = groups.reshape(rows, cuts.strips * cuts.longest)
    if cuts.source is None:
        return filled
    # Sources rise along the axis, so that dropping the padding leaves the entries in order.
    return filled[:, (cuts.source < size).to(groups.device)]


def _check_strips(owner: str, name: str, length: int | None, strips: int | None) -> None:
    if (length is None) == (strips is None):
        raise ValueError(f"{owner}: {name} {length} and strips {strips}; give exactly one of them.")
    given, value = (name, length) if length is not None else ("strips", strips)
    assert value is not None
    if value < 1:
        raise ValueError(f"{owner}: {given} {value}; it must be at least 1.")


def _fillable(owner: str, w: Tensor) -> Tensor:
    """w. Raises ValueError for integers, such as positions, among which a zero would be taken for one of them."""
    if w.dtype != torch.bool and not w.is_floating_point():
        raise ValueError(
            f"{owner}: a tensor of {w.dtype} where groups differ in size; padding is for floating and bool tensors. "
            f"Give sizes that divide the matrix's."
        )
    return w
