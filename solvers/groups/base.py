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

from argprune.solvers.shards import Shard


@runtime_checkable
class Groups(Protocol):
    """A partition of a matrix's entries into groups, as rows of equal length.

    Where groups differ in size, `split` fills the shorter ones with zeros (False in a mask), which `join` drops:
    zeros change no norm, and `group_sizes` does not count them.
    """

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
        return checked_matrix("Columns", w).t()

    def join(self, groups: Tensor, shape: torch.Size) -> Tensor:
        """Return (columns, rows) as the (rows, columns) matrix."""
        return groups.t()


@dataclass(frozen=True)
class Whole:
    """The whole tensor is one group."""

    def split(self, w: Tensor) -> Tensor:
        """Return `w` as (1, numel)."""
        return w.reshape(1, -1)

    def join(self, groups: Tensor, shape: torch.Size) -> Tensor:
        """Return (1, numel) as a tensor of the given shape."""
        return groups.reshape(shape)


def group_sizes(groups: Groups, shape: torch.Size, device: torch.device | str = "cpu") -> Tensor:
    """The number of entries of each group of a tensor of this shape, int64 (groups,) on `device`; without padding.

    >>> from argprune.solvers.groups import BlockRows
    >>> group_sizes(BlockRows(width=2), torch.Size((1, 5)))
    tensor([2, 2, 1])
    """
    return groups.split(torch.ones(shape, dtype=torch.bool, device=device)).sum(1)


def group_norms(w: Tensor, groups: Groups, rms: bool = False) -> Tensor:
    """The l2 norm of each group, float64 (groups,); with `rms` its root mean square, over true sizes.

    w: floating tensor that `groups` can split. Norms of groups grow with the square root of their size; root mean
    squares do not, so that one threshold is fair to all of them.

    >>> group_norms(torch.tensor([[3.0, 4.0, 0.0, 5.0]]), Rows())
    tensor([7.0711], dtype=torch.float64)
    >>> group_norms(torch.tensor([[1.0, 1.0, 1.0, 1.0]]), Rows(), rms=True)
    tensor([1.], dtype=torch.float64)
    """
    norms: Tensor = torch.linalg.vector_norm(groups.split(w.detach()), dim=1, dtype=torch.float64)
    return norms / group_sizes(groups, w.shape, w.device).double().sqrt() if rms else norms


def checked_matrix(owner: str, w: Tensor) -> Tensor:
    """w. Raises ValueError unless it is a matrix."""
    if w.dim() != 2:
        raise ValueError(f"{owner}: a tensor of shape {tuple(w.shape)}; these groups are those of a matrix.")
    return w


@dataclass(frozen=True, eq=False)
class Weight:
    """A prunable matrix: its name in the model, its parameter, and how its entries are tied.

    parameter: 2-D floating tensor, seen in `groups`; `transposed` says that it is stored (inputs, outputs), as
    GPT-2's Conv1D does, so that `matrix` can always offer rows = output units. `shard`: where other processes hold
    other rows of it, which ones the parameter is; None: all.
    """

    name: str
    parameter: torch.nn.Parameter
    groups: Groups = Elements()
    transposed: bool = False
    shard: Shard | None = None

    @property
    def numel(self) -> int:
        """The number of entries, those that other processes hold included."""
        return self.parameter.numel() if self.shard is None else self.shard.numel

    def first_of(self, stride: int) -> int:
        """Where in the flat parameter every stride-th entry of the whole weight begins."""
        return 0 if self.shard is None else -self.shard.start % stride

    @property
    def matrix(self) -> Tensor:
        """The detached matrix with one row an output unit; shares memory with the parameter."""
        return self.oriented(self.parameter.detach())

    def oriented(self, tensor: Tensor) -> Tensor:
        """A tensor stored like the parameter (a mask, a gradient, a prox step) with rows = output units, and back."""
        return tensor.t() if self.transposed else tensor
