"""How the entries of a matrix are tied: which of them are kept or pruned together.

A `Groups` sees a matrix as a stack of rows, one row a group, without copying where the layout allows. Methods and
regularizers work on that stack and never need to know what a group stands for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor


@runtime_checkable
class Groups(Protocol):
    """A partition of a matrix's entries into groups of equal size."""

    def split(self, w: Tensor) -> Tensor:
        """Return `w` as (groups, group_size); a view where strides allow."""

    def join(self, groups: Tensor, shape: torch.Size) -> Tensor:
        """Undo `split`: return a tensor of the given matrix shape."""


@dataclass(frozen=True)
class Elements:
    """Every entry is a group of its own: unstructured sparsity."""

    def split(self, w: Tensor) -> Tensor:
        """Return `w` as (numel, 1)."""
        return w.reshape(-1, 1)

    def join(self, groups: Tensor, shape: torch.Size) -> Tensor:
        """Return (numel, 1) as a tensor of the given shape."""
        return groups.reshape(shape)


@dataclass(frozen=True)
class Rows:
    """Every row is a group: an output unit of a matrix, the last axis of any other tensor."""

    def split(self, w: Tensor) -> Tensor:
        """Return `w` as (numel / last size, last size); a 0-dim tensor is one group of one entry."""
        last = w.shape[-1] if w.dim() else 1
        return w.reshape(math.prod(w.shape[:-1]), last)

    def join(self, groups: Tensor, shape: torch.Size) -> Tensor:
        """Return the rows as a tensor of the given shape."""
        return groups.reshape(shape)


@dataclass(frozen=True)
class Columns:
    """Every column of a matrix is a group: an input unit."""

    def split(self, w: Tensor) -> Tensor:
        """Return the (rows, columns) matrix `w` as (columns, rows), a view."""
        return _matrix("Columns", w).t()

    def join(self, groups: Tensor, shape: torch.Size) -> Tensor:
        """Return (columns, rows) as the (rows, columns) matrix."""
        return groups.t()


@dataclass(frozen=True)
class Blocks:
    """Every block of `rows` x `columns` adjacent entries of a matrix is a group; the sizes must divide the matrix's."""

    rows: int
    columns: int

    def __post_init__(self) -> None:
        if self.rows < 1 or self.columns < 1:
            raise ValueError(f"Blocks: {self.rows} x {self.columns}; a block has at least one row and one column.")

    def split(self, w: Tensor) -> Tensor:
        """Return `w` as (blocks, rows * columns), blocks and their entries in row-major order."""
        height, width = _matrix("Blocks", w).shape
        if height % self.rows or width % self.columns:
            raise ValueError(
                f"Blocks: {self.rows} x {self.columns} does not divide a {height} x {width} matrix. Give divisors."
            )
        tiles = w.reshape(height // self.rows, self.rows, width // self.columns, self.columns)
        return tiles.transpose(1, 2).reshape(-1, self.rows * self.columns)

    def join(self, groups: Tensor, shape: torch.Size) -> Tensor:
        """Return the blocks as a matrix of the given shape."""
        height, width = shape
        tiles = groups.reshape(height // self.rows, width // self.columns, self.rows, self.columns)
        return tiles.transpose(1, 2).reshape(shape)


@dataclass(frozen=True)
class Whole:
    """The whole tensor is one group."""

    def split(self, w: Tensor) -> Tensor:
        """Return `w` as (1, numel)."""
        return w.reshape(1, -1)

    def join(self, groups: Tensor, shape: torch.Size) -> Tensor:
        """Return (1, numel) as a tensor of the given shape."""
        return groups.reshape(shape)


def _matrix(name: str, w: Tensor) -> Tensor:
    if w.dim() != 2:
        raise ValueError(f"{name}: a tensor of shape {tuple(w.shape)}; these groups are those of a matrix.")
    return w


@dataclass(frozen=True, eq=False)
class Weight:
    """A prunable matrix: its name in the model, its parameter, and how its entries are tied.

    parameter: 2-D floating tensor; `transposed` says that it is stored (inputs, outputs), as GPT-2's Conv1D does, so
    that `matrix` can always offer rows = output units.
    """

    name: str
    parameter: torch.nn.Parameter
    groups: Groups = Elements()
    transposed: bool = False

    @property
    def matrix(self) -> Tensor:
        """The detached matrix with one row an output unit; shares memory with the parameter."""
        data = self.parameter.detach()
        return data.t() if self.transposed else data
