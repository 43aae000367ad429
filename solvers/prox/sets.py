"""Constraint sets as regularizers: the indicator is 0 on the set and inf outside, the prox is the projection."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from argprune.solvers.ilp.closed_form import keep_largest


@dataclass(frozen=True, eq=False)
class FixedSupport:
    """Tensors that are zero wherever `mask` is False.

    mask: boolean tensor of the weights' shape, True = kept. The projection zeroes the rest, for every step.
    """

    mask: Tensor
    _dropped: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.mask.dtype != torch.bool:
            raise TypeError(f"FixedSupport: mask is {self.mask.dtype}; give a boolean tensor, True = kept.")
        object.__setattr__(self, "_dropped", ~self.mask)

    def value(self, w: Tensor) -> Tensor:
        """0 if w is zero outside the support, else inf."""
        return w.new_tensor(torch.inf if bool((w[self._dropped] != 0).any()) else 0.0)

    def prox(self, w: Tensor, step: float | Tensor) -> Tensor:
        """Projection: w with zeros outside the support."""
        return self.prox_(w.detach().clone(), step)

    def prox_(self, w: Tensor, step: float | Tensor) -> Tensor:
        """Projection, in place."""
        return w.masked_fill_(self._dropped, 0)


@dataclass(frozen=True)
class L0Ball:
    """Tensors with at most `keep` nonzeros; keep >= 0.

    The projection keeps the entries of largest magnitude, ties to the smaller flat index; exact for every step.
    """

    keep: int

    def __post_init__(self) -> None:
        if self.keep < 0:
            raise ValueError(f"L0Ball: keep {self.keep}; the number of nonzeros is >= 0.")

    def value(self, w: Tensor) -> Tensor:
        """0 if w has at most `keep` nonzeros, else inf."""
        return w.new_tensor(0.0 if int(w.count_nonzero()) <= self.keep else torch.inf)

    def prox(self, w: Tensor, step: float | Tensor) -> Tensor:
        """Projection: the `keep` entries of largest magnitude, the rest zero."""
        w = w.detach()
        [mask] = keep_largest([w.abs()], min(self.keep, w.numel()))
        return torch.where(mask, w, 0)
