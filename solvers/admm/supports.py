"""How sparse a layer shall become, whatever its shape: a share of its entries, N:M, or a share of its groups.

Each stands for a constraint set of `argprune.solvers.prox` once the matrix's shape is known, with exact counts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from argprune.solvers.groups import Groups, Rows
from argprune.solvers.methods.base import keep_count
from argprune.solvers.prox.sets import L0Ball, SupportSet
from argprune.solvers.prox.structured_sets import NM as NMSet
from argprune.solvers.prox.structured_sets import KGroups, KPerGroup

Scope = Literal["matrix", "row"]


@runtime_checkable
class Support(Protocol):
    """The supports that a layer's weight may have."""

    def within(self, shape: torch.Size) -> SupportSet:
        """The set of matrices of this shape with such a support. ValueError where the shape does not allow one."""

    def select(self, scores: Tensor) -> Tensor:
        """Mask (True = kept) of the support with the largest sum of squared scores; scores: a matrix, >= 0."""

    def eased(self, share: float) -> Self:
        """The same with that share of the pruning, 0 (nothing is pruned) to 1 (the support itself)."""


class _Selecting:
    """What all supports share: selection by the set of the scores' own shape."""

    def within(self, shape: torch.Size) -> SupportSet:
        raise NotImplementedError

    def select(self, scores: Tensor) -> Tensor:
        """Mask (True = kept) of the support with the largest sum of squared scores; scores: a matrix, >= 0.

        Exactly as many are kept as the support says. Raises ValueError on NaN.
        """
        if bool(scores.isnan().any()):
            raise ValueError(f"{type(self).__name__}: scores contain NaN; every entry needs one that can be ordered.")
        return self.within(scores.shape).select(scores)


@dataclass(frozen=True)
class Unstructured(_Selecting):
    """A share `sparsity` in [0, 1] of the entries is zero: of the whole matrix, or of each row (scope "row")."""

    sparsity: float
    scope: Scope = "matrix"

    def __post_init__(self) -> None:
        _check_sparsity("Unstructured", self.sparsity)
        if self.scope not in ("matrix", "row"):
            raise ValueError(f"Unstructured: scope {self.scope!r}; need 'matrix' or 'row'.")

    def within(self, shape: torch.Size) -> SupportSet:
        """Exactly round(sparsity x entries) pruned."""
        if self.scope == "row":
            return KPerGroup(keep_count(shape[1], self.sparsity), Rows())
        return L0Ball(keep_count(shape.numel(), self.sparsity))

    def eased(self, share: float) -> Self:
        """The same with that share of the sparsity."""
        return replace(self, sparsity=share * self.sparsity)


@dataclass(frozen=True)
class NM(_Selecting):
    """n of every m adjacent entries of a row are kept; 0 <= n <= m, and m divides the number of columns."""

    n: int
    m: int

    def __post_init__(self) -> None:
        # The set refuses counts that make no sense.
        NMSet(self.n, self.m)

    def within(self, shape: torch.Size) -> SupportSet:
        """Exactly n of every m kept."""
        if shape[1] % self.m:
            raise ValueError(f"NM: {self.m} does not divide the {shape[1]} columns of a weight. Give a divisor.")
        return NMSet(self.n, self.m)

    def eased(self, share: float) -> Self:
        """The same with that share of the m - n pruned, rounded."""
        return replace(self, n=self.m - round(share * (self.m - self.n)))


@dataclass(frozen=True)
class Grouped(_Selecting):
    """A share `sparsity` in [0, 1] of the groups is zero: blocks, rows, columns, or other groups of equal size."""

    groups: Groups
    sparsity: float

    def __post_init__(self) -> None:
        _check_sparsity("Grouped", self.sparsity)

    def within(self, shape: torch.Size) -> SupportSet:
        """Exactly round(sparsity x groups) pruned."""
        # Seen on a matrix without memory: how many there are is a question of the shape.
        count = len(self.groups.split(torch.empty(shape, device="meta")))
        return KGroups(keep_count(count, self.sparsity), self.groups)

    def eased(self, share: float) -> Self:
        """The same with that share of the sparsity."""
        return replace(self, sparsity=share * self.sparsity)


def _check_sparsity(owner: str, sparsity: float) -> None:
    if not 0 <= sparsity <= 1:
        raise ValueError(f"{owner}: sparsity {sparsity}; it is the share of zeros, in [0, 1].")
