"""How the entries of a matrix are tied: which of them are kept or pruned together.

A `Groups` sees a matrix as a stack of rows, one row a group, without copying where the layout allows. Methods and
regularizers work on that stack and never need to know what a group stands for.
"""

from __future__ import annotations

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
