"""A matrix kept as two factors with a gate a component, as methods see it: tensors, and no model class.

W = Q diag(gate) P = sum_k gate_k q_k p_k^T          P (r, inputs), Q (outputs, r)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn


class FactoredLayer(Protocol):
    """What holds the factors and computes with them."""

    @property
    def first(self) -> nn.Parameter:
        """P, (r, inputs); where `transposed`, stored (inputs, r)."""

    @property
    def second(self) -> nn.Parameter:
        """Q, (outputs, r)."""

    @property
    def transposed(self) -> bool:
        """Whether `first` is stored with a row an input, as the table of an embedding is."""

    @property
    def gate(self) -> Tensor | None:
        """(r,), a float32 leaf that gathers gradients; None where every component is simply there."""

    def set_gate(self, values: Tensor | None) -> None:
        """Compute with these gates from now on, (r,) and any floating dtype; None: without."""

    def keep(self, index: Tensor) -> None:
        """Drop all components but those of `index`, multiplying the gate, where there is one, into Q."""


@dataclass(frozen=True, eq=False)
class Factors:
    """The factors of one weight.

    name: of the dense weight in its model. layer: what computes with them. values: (r,) what dropping each component
    cost when the factors were made (`Factorisation.values`); None where that is not known. dense: the numbers against
    which sizes are counted; None: outputs x inputs, those of the matrix that the factors stand for.
    The parameters stay the same objects for good; `keep` changes their shapes and drops their gradients, so that an
    optimizer's state no longer fits them.
    """

    name: str
    layer: FactoredLayer
    values: Tensor | None = None
    dense: int | None = None

    @property
    def first(self) -> nn.Parameter:
        """The parameter P, (r, inputs), or (inputs, r) for an embedding's table."""
        return self.layer.first

    @property
    def second(self) -> nn.Parameter:
        """The parameter Q, (outputs, r)."""
        return self.layer.second

    @property
    def matrices(self) -> tuple[Tensor, Tensor]:
        """P (r, inputs) and Q (outputs, r), detached; they share memory with the parameters."""
        first = self.first.detach()
        return (first.t() if self.layer.transposed else first), self.second.detach()

    @property
    def rank(self) -> int:
        """The number of components r."""
        return self.second.shape[1]

    @property
    def shape(self) -> tuple[int, int]:
        """(outputs, inputs) of the product."""
        return self.second.shape[0], self.first.numel() // max(1, self.rank)

    @property
    def dense_size(self) -> int:
        """The numbers against which sizes are counted."""
        return math.prod(self.shape) if self.dense is None else self.dense

    @property
    def unit_size(self) -> int:
        """The parameters of one component: outputs + inputs."""
        return sum(self.shape)

    @property
    def gate(self) -> Tensor | None:
        """The gates, (r,) float32, with d loss / d gate in `gate.grad` after backward; None without."""
        return self.layer.gate

    def set_gate(self, values: Tensor | None) -> None:
        """Compute with these gates from now on: a copy of `values` (r,), or none. ValueError for another shape."""
        self.layer.set_gate(values)

    def keep(self, index: Tensor) -> None:
        """Drop all components but those of `index` (int64, each at most once, at least one), the gate folded into Q."""
        self.layer.keep(index)
